"""Every parameter learns: finite, non-zero gradients through the whole model, alike with and without checkpointing."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import lively_model

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.data.source import PairBatch
from energy_flow_mlx.train.loss import energy_flow_loss

Gradients = dict[str, np.ndarray]
SPAWN: dict = {
    "movement_based_spawn": True,
    "spawn_movement_threshold_ratio": 0.12,
    "max_spawn_per_step": 2,
    "use_exploration_noise": True,
}


def batch(model: EnergyFlow) -> PairBatch:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((2, 3, model.config.embedding_dim)).astype(np.float32)
    ids = rng.integers(0, model.config.text_vocab_size, (3, 9), dtype=np.int32)  # all nine positions
    mask = (np.arange(9) < np.array([[9], [4], [6]])).astype(np.int32)
    return PairBatch(*embeddings, ids, mask, np.arange(3))


def gradients(model: EnergyFlow) -> Gradients:
    """Of the training loss, dropout and noise on, the same draws each time."""
    model.train()
    mx.random.seed(3)

    def loss(model: EnergyFlow) -> mx.array:
        return energy_flow_loss(model, model.config, batch(model), key=mx.random.key(1), training_step=0)[0]

    return {name: np.array(value) for name, value in tree_flatten(nn.value_and_grad(model, loss)(model)[1])}


def missing(gradients: Gradients) -> set[str]:
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    return {name for name, gradient in gradients.items() if np.abs(gradient).max() < 1e-12}


@pytest.mark.parametrize("changes", [{}, {"collection": "bilinear"}, SPAWN], ids=["nearest", "bilinear", "spawn"])
def test_the_loss_reaches_every_parameter(changes: dict) -> None:
    model = lively_model(**changes)
    found = gradients(model)
    assert set(found) == {name for name, _ in tree_flatten(model.parameters())}
    key_biases = {name for name in found if name.endswith("key_proj.bias")}
    for name in key_biases:  # softmax does not see what is added to all scores of a query
        scale = np.abs(found[name.replace("key_proj", "value_proj")]).max()
        assert np.abs(found.pop(name)).max() < 1e-5 * scale
    # These two have calls of their own, tested below: a position history and a dictionary of cells.
    elsewhere = {name for name in found if "position_memory" in name or "history_fusion" in name}
    assert len(key_biases) == 2 and len(elsewhere) == 6
    assert missing(found) == elsewhere | {"collector.position_weights"}


def test_the_history_reaches_its_parameters() -> None:
    carrier = lively_model().carrier
    x, history = mx.random.normal((6, 5)), mx.random.uniform(-1, 1, (6, 3, 3))

    def loss(carrier: nn.Module) -> mx.array:
        out = carrier(x, mx.ones((6, 1)), mx.ones((2, 6, 8)), mx.zeros((6, 3)), position_history=history)
        return mx.sum(mx.square(out.energy)) + mx.sum(mx.square(out.next_position - 1)) + mx.sum(mx.square(out.hidden))

    found = dict(tree_flatten(nn.value_and_grad(carrier, loss)(carrier)[1]))
    assert missing({name: np.array(value) for name, value in found.items()}) == set()


def test_a_dictionary_of_cells_reaches_the_position_weights() -> None:
    collector = lively_model().collector
    cells = {(x, y): mx.random.normal((2, 1)) for x, y in ((0, 0), (3, 2), (1, 2))}

    def loss(collector: nn.Module) -> mx.array:
        return mx.sum(mx.square(collector.collect(cells)))

    found = {name: np.array(value) for name, value in tree_flatten(nn.value_and_grad(collector, loss)(collector)[1])}
    assert missing(found) == set()
    assert {(x, y) for y, x in np.argwhere(found["position_weights"])} == set(cells)


@pytest.mark.parametrize("collection", ["nearest", "bilinear"])
def test_the_move_learns_from_the_surface(collection: str) -> None:
    """x and y of the displacement head: bilinear alone passes them a gradient in the step that ends a flow's life."""
    model = lively_model(collection=collection)

    def loss(carrier: nn.Module) -> mx.array:
        surface = model.processor(mx.full((1, 12), 0.5), steps=1).surface
        return mx.sum(surface * mx.arange(12))

    gradient = nn.value_and_grad(model.carrier, loss)(model.carrier)[1]["displacement_projection"][2]["bias"]
    assert gradient[2].item() != 0
    assert np.array(gradient[:2] != 0).tolist() == [collection == "bilinear"] * 2


@pytest.mark.parametrize("changes", [SPAWN, {"collection": "bilinear"}], ids=["spawn and noise", "bilinear"])
def test_checkpointing_changes_no_gradient(changes: dict) -> None:
    plain = gradients(lively_model(**changes))
    recomputed = gradients(lively_model(gradient_checkpointing=True, **changes))
    assert set(plain) == set(recomputed)
    for name, gradient in plain.items():
        scale = max(np.abs(gradient).max(), 1e-6)
        assert np.abs(recomputed[name] - gradient).max() < 1e-4 * scale, name


def test_checkpointing_leaves_the_weights_in_place() -> None:
    model = lively_model(gradient_checkpointing=True)
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    gradients(model)
    mx.eval(model.parameters())
    for name, value in tree_flatten(model.parameters()):
        assert np.array_equal(np.array(value), before[name]), name
