"""CubeToTextDecoder and EnergyFlow.decode refuse what they cannot take, and train."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import SMALL, lively_model, random_surface

from energy_flow_mlx import CubeToTextDecoder, EnergyFlow
from energy_flow_mlx.models.text_decoder import DecoderSettings
from energy_flow_mlx.nn import T5Settings
from energy_flow_mlx.text.search import Search

T5 = T5Settings(vocab_size=20, dim=8, layers=2, heads=2, head_dim=3, feedforward_dim=12)


def decoder() -> CubeToTextDecoder:
    mx.random.seed(0)
    made = CubeToTextDecoder(DecoderSettings(surface_dim=12, adapter_dim=6, t5=T5))
    made.eval()
    return made


@pytest.fixture
def model() -> EnergyFlow:
    model = lively_model()
    model.text_decoder = decoder()
    return model


def test_without_a_decoder() -> None:
    with pytest.raises(ValueError, match=r"text_decoder.*none.*text_decoder.safetensors"):
        lively_model().decode(random_surface(2, SMALL.surface_dim))


def test_without_a_tokeniser(model: EnergyFlow) -> None:
    with pytest.raises(ValueError, match="tokeniser: None"):
        model.decode(random_surface(2, 12))


@pytest.mark.parametrize("shape", [(2, 11), (2, 4, 3), (12,), (1, 2, 3, 4)])
def test_a_surface_of_another_size(model: EnergyFlow, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"surface: shape \(.*(\(B, 12\) and \(B, 3, 4\)|\(any, 3, 4\))"):
        model.decode(mx.zeros(shape))
    if len(shape) != 3:
        with pytest.raises(ValueError, match=r"surface: shape .*\(any, 12\)"):
            model.text_decoder.generate(mx.zeros(shape), Search())


def test_surface_or_embedding(model: EnergyFlow) -> None:
    with pytest.raises(ValueError, match="none came"):
        model.decode()
    with pytest.raises(ValueError, match="both came"):
        model.decode(random_surface(2, 12), embedding=mx.zeros((2, 10)))
    with pytest.raises(ValueError, match=r"embedding: shape \(2, 9\) came, accepted is \(any, 10\)"):
        model.decode(embedding=mx.zeros((2, 9)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_surface_that_is_not_finite(model: EnergyFlow, bad: float) -> None:
    surface = random_surface(3, 12)
    surface[1, 4] = bad
    with pytest.raises(ValueError, match="surface: row 1 holds NaN or infinity"):
        model.text_decoder.generate(surface, Search())


def test_no_surface_gives_no_text(model: EnergyFlow) -> None:
    assert model.text_decoder.generate(mx.zeros((0, 12)), Search()) == []


def test_a_text_does_not_depend_on_its_neighbours(model: EnergyFlow) -> None:
    surface = random_surface(5, 12)
    for beams in (1, 3):
        settings = Search(num_beams=beams, max_length=6)
        together = model.text_decoder.generate(surface, settings)
        assert together == [model.text_decoder.generate(surface[row : row + 1], settings)[0] for row in range(5)]


def test_gradients_reach_every_parameter() -> None:
    made = decoder()
    ids = mx.array(np.random.default_rng(0).integers(0, 20, (3, 7)))
    surface = random_surface(3, 12)

    def loss(parameters: dict) -> mx.array:
        made.update(parameters)
        return mx.sum(mx.sin(made(surface, ids)))

    gradients = dict(tree_flatten(mx.grad(loss)(made.parameters())))
    # With one vector to attend to, attention does not depend on query and key.
    blind = {name for name in gradients if any(part in name for part in ("cross_attn.query", "cross_attn.key", "cross_norm"))}
    assert {name for name, gradient in gradients.items() if float(mx.abs(gradient).max()) < 1e-7} == blind


def test_the_run_from_a_surface_is_that_of_its_embedding() -> None:
    model = lively_model()
    embeddings = mx.random.normal((2, 10), key=mx.random.key(1))
    whole, again = model(embeddings), model.from_surface(model.map_to_surface(embeddings))
    assert np.array_equal(np.array(whole.embedding), np.array(again.embedding))
    with pytest.raises(ValueError, match="embeddings: None"):
        lively_model(input_residual=True).from_surface(random_surface(2, 12))
