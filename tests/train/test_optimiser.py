"""AdamW, clipping and the learning rate."""

import math

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_map
from train.small import small_config, small_model

from energy_flow_mlx.train.optimiser import Plateau, clip_factors, gradient_norms, learning_rate, make_optimiser


def random_arrays(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {"a": (3, 5), "b": (7,), "c": (2, 3, 4)}
    return {name: (scale * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def clipped_by(gradients: dict[str, np.ndarray], per_tensor: float, global_norm: float) -> dict[str, np.ndarray]:
    names, norms = gradient_norms(tree_map(mx.array, gradients))
    factors = clip_factors(norms, per_tensor, global_norm)
    return {name: gradients[name] * np.array(factors)[index] for index, name in enumerate(names)}


def test_adamw_follows_torch_for_twenty_steps():
    config = small_config(weight_decay=0.05)
    optimiser = make_optimiser(config)
    weights = tree_map(mx.array, random_arrays(0))
    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in random_arrays(0).items()}
    reference = torch.optim.AdamW(theirs.values(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    for step in range(20):
        rate = 1e-2 / (1 + step)
        gradients = random_arrays(step + 1, scale=10.0 ** (step % 5 - 2))
        optimiser.learning_rate = rate
        weights = optimiser.apply_gradients(tree_map(mx.array, gradients), weights)
        reference.param_groups[0]["lr"] = rate
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        reference.step()
    for name, parameter in theirs.items():
        np.testing.assert_allclose(np.array(weights[name]), parameter.detach().numpy(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_global_clipping_is_torchs(scale):
    gradients = random_arrays(0, scale)
    parameters = [torch.nn.Parameter(torch.zeros(array.shape)) for array in gradients.values()]
    for parameter, array in zip(parameters, gradients.values(), strict=True):
        parameter.grad = torch.tensor(array)
    torch.nn.utils.clip_grad_norm_(parameters, 0.7)
    clipped = clipped_by(gradients, 0.0, 0.7)
    for name, parameter in zip(gradients, parameters, strict=True):
        np.testing.assert_allclose(np.array(clipped[name]), parameter.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_each_tensor_is_clipped_first():
    gradients = random_arrays(0, 100.0)
    wanted = {}
    for name, array in gradients.items():
        parameter = torch.nn.Parameter(torch.zeros(array.shape))
        parameter.grad = torch.tensor(array)
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        wanted[name] = parameter.grad.numpy()
    clipped = clipped_by(gradients, 1.0, 0.0)
    for name, array in wanted.items():
        np.testing.assert_allclose(np.array(clipped[name]), array, rtol=1e-5)
    both = clipped_by(gradients, 1.0, 0.5)
    # three tensors of norm 1 have the global norm sqrt(3)
    for name, array in wanted.items():
        np.testing.assert_allclose(np.array(both[name]), array * 0.5 / math.sqrt(3), rtol=1e-4)


def test_no_clipping_leaves_gradients_alone():
    _, norms = gradient_norms(tree_map(mx.array, random_arrays(0, 100.0)))
    assert clip_factors(norms, 0.0, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_norms_have_the_names_of_the_parameters():
    names, norms = gradient_norms({"layer": [{"weight": mx.array([3.0, 4.0])}, {"bias": mx.array([1.0])}]})
    assert names == ["layer.0.weight", "layer.1.bias"]
    np.testing.assert_allclose(np.array(norms), [5.0, 1.0])


def test_warm_up_is_linear_and_the_cosine_ends_on_a_tenth():
    config = small_config(learning_rate=1.0, warmup_steps=4, training_steps=104, learning_rate_schedule="cosine")
    rates = [learning_rate(config, step, Plateau()) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)
    assert rates[104] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(rates[4:], rates[5:], strict=False))


def test_constant_rate_and_no_warm_up():
    config = small_config(learning_rate=0.5, warmup_steps=0, learning_rate_schedule="constant")
    assert [learning_rate(config, step, Plateau()) for step in (0, 5, 1000)] == [0.5, 0.5, 0.5]


def test_plateau_halves_after_patience_runs_out():
    plateau = Plateau()
    config = small_config(learning_rate=1.0, warmup_steps=0, learning_rate_schedule="plateau")
    rates = []
    for loss in (1.0, 0.9, 0.9, 0.95, 0.91, 0.8, 0.85, 0.85, 0.85):
        plateau.observe(loss, patience=2)
        rates.append(learning_rate(config, 10, plateau))
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_a_nan_validation_loss_counts_as_no_improvement():
    plateau = Plateau(best=1.0)
    plateau.observe(math.nan, patience=0)
    assert plateau.factor == 0.5 and plateau.best == 1.0


def test_frozen_parameters_are_those_no_loss_reaches():
    from energy_flow_mlx.train.optimiser import named_arrays

    model = small_model(small_config())
    frozen = named_arrays(model.parameters()).keys() - named_arrays(model.trainable_parameters()).keys()
    assert frozen and all(
        name.startswith(("carrier.position_memory.", "carrier.history_fusion.")) or name == "collector.position_weights"
        for name in frozen
    )
    model = small_model(small_config(text_loss_weight=0, embedding_loss_weight=0))
    parts = {name.split(".")[0] for name in named_arrays(model.trainable_parameters())}
    assert parts == {"neuron", "carrier", "mapper"}
