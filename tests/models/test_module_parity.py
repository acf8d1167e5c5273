"""Every module agrees with torch: outputs, and the gradient of every parameter and input, at odd shapes too."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from models import torch_modules
from models.parity import TOLERANCE, assert_agree, assert_close, gradients_in_torch_terms, load
from models.small import SMALL

from energy_flow_mlx import EmbeddingMapper, EnergyCarrier, OutputCollector, SimpleNeuron, TextToCubeEncoder
from energy_flow_mlx.convert.torch_keys import from_torch


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def uniform(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize(("flows", "lattice", "hidden", "features"), [(1, (2, 9, 3), 7, 5), (17, (6, 5, 8), 16, 24)])
def test_neuron(flows: int, lattice: tuple[int, int, int], hidden: int, features: int) -> None:
    width, height, depth = lattice
    config = SMALL.replace(lattice_width=width, lattice_height=height, lattice_depth=depth)
    torch.manual_seed(0)
    assert_agree(
        SimpleNeuron(hidden, features),
        torch_modules.SimpleNeuron(width, height, depth, hidden, features),
        [uniform(flows, 3), normal(flows, 1)],
        prefix="neuron.",
        config=config,
        forward=lambda module, *x: [module(*x)],
        torch_forward=lambda module, *x: [module(*x)],
    )


@pytest.mark.parametrize(("flows", "features", "size", "layers"), [(1, 4, 5, 1), (13, 5, 9, 3)])
@pytest.mark.parametrize("case", ["hidden", "no hidden", "history", "short history"])
def test_carrier(flows: int, features: int, size: int, layers: int, case: str) -> None:
    config = SMALL.replace(
        neuron_output_dim=features,
        carrier_hidden_size=size,
        carrier_num_layers=layers,
        displacement_scale=1.5,
    )
    torch.manual_seed(1)
    inputs = [normal(flows, features), normal(flows, 1, seed=2), uniform(flows, 3)]
    if case != "no hidden":
        inputs.append(uniform(layers, flows, size, seed=3))
    if "history" in case:
        inputs.append(uniform(flows, 2 if case == "short history" else 5, 3, seed=4))

    def arguments(x: tuple) -> tuple:
        neuron_output, energy, position, *rest = x
        return (neuron_output, energy, rest[0] if rest else None, position), rest[1] if len(rest) > 1 else None

    def forward(module: EnergyCarrier, *x: mx.array) -> list[mx.array]:
        positional, history = arguments(x)
        out = module(*positional, position_history=history)
        return [out.energy, out.next_position, out.raw_next_position, out.hidden]

    def torch_forward(module: torch_modules.EnergyCarrier, *x: torch.Tensor) -> list[torch.Tensor]:
        positional, history = arguments(x)
        return list(module(*positional, history)[:4])

    unused = "position_memory|history_fusion"
    if "history" in case:
        unused = "$never"
    if case == "no hidden":
        unused += "|weight_hh"  # multiplied by zeros
    ours = EnergyCarrier(config)
    theirs = torch_modules.EnergyCarrier(features, size, layers, scale=1.5)
    assert_agree(
        ours,
        theirs,
        inputs,
        prefix="carrier.",
        config=config,
        forward=forward,
        torch_forward=torch_forward,
        unused=unused,
    )
    positional, history = arguments(tuple(map(torch.tensor, inputs)))
    near_plane = (*positional[:3], torch.sign(positional[3]))  # half of these flows leave, half arrive
    terminated = theirs(*near_plane, history)[4].numpy()
    out = ours(
        *(None if x is None else mx.array(x.numpy()) for x in near_plane),
        position_history=None if history is None else mx.array(history.numpy()),
    )
    assert np.array_equal(np.array(out.is_terminated), terminated)


def test_carrier_sanitises_as_torch_does() -> None:
    config = SMALL
    torch.manual_seed(2)
    ours, theirs = EnergyCarrier(config), torch_modules.EnergyCarrier(5, 8, 2)
    load(ours, theirs, "carrier.", "carrier.", config)
    neuron_output, hidden = normal(6, 5) * 20, normal(2, 6, 8) * 20
    neuron_output[0, :3] = [np.nan, np.inf, -np.inf]
    hidden[1, 2, :3] = [np.nan, np.inf, -np.inf]
    inputs = [neuron_output, normal(6, 1), hidden, uniform(6, 3)]
    out = ours(*map(mx.array, inputs))
    expected = theirs(*map(torch.tensor, inputs))
    for name, have, want in zip(out._fields, (*out[:2], out[2], out[3]), expected[:4], strict=False):
        assert_close(name, have, want.detach())


@pytest.mark.parametrize(("batch", "embedding", "width", "height"), [(1, 7, 5, 2), (3, 50, 3, 4)])
def test_mapper(batch: int, embedding: int, width: int, height: int) -> None:
    torch.manual_seed(3)
    assert_agree(
        EmbeddingMapper(embedding, width, height),
        torch_modules.EmbeddingMapper(embedding, width, height),
        [normal(batch, embedding)],
        prefix="mapper.",
        torch_prefix="input_mapper.",
        config=SMALL,
        forward=lambda module, x: [module.map_to_surface(x)],
        torch_forward=lambda module, x: [module(x)],
    )


@pytest.mark.parametrize(("batch", "embedding", "width", "height"), [(1, 7, 5, 2), (3, 50, 3, 4)])
@pytest.mark.parametrize("form", ["surface", "grid", "cells"])
def test_collector(batch: int, embedding: int, width: int, height: int, form: str) -> None:
    torch.manual_seed(4)
    shape = (batch, height, width) if form == "grid" else (batch, width * height)
    present = [(width - 1, 0), (0, height - 1), (1, 1)]

    def cells(x):  # the same indexing in both libraries
        return {(px, py): x[:, py * width + px : py * width + px + 1] for px, py in present}

    assert_agree(
        OutputCollector(embedding, width, height),
        torch_modules.OutputCollector(embedding, width, height),
        [normal(*shape)],
        prefix="collector.",
        torch_prefix="output_collector.",
        config=SMALL,
        forward=lambda module, x: [module.collect(cells(x) if form == "cells" else x)],
        torch_forward=lambda module, x: [module.from_cells(cells(x)) if form == "cells" else module(x.flatten(1))],
        unused="$never" if form == "cells" else "position_weights",
    )


@pytest.mark.parametrize(
    ("lengths", "dim", "heads", "inner", "layers"), [([1], 6, 3, 5, 1), ([4, 7, 1, 7], 12, 4, 9, 3)]
)
def test_text_encoder(lengths: list[int], dim: int, heads: int, inner: int, layers: int) -> None:
    config = SMALL.replace(
        text_model_dim=dim,
        text_num_heads=heads,
        text_feedforward_dim=inner,
        text_num_layers=layers,
        text_max_positions=7,
    )
    torch.manual_seed(5)
    rng = np.random.default_rng(0)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = rng.integers(0, config.text_vocab_size, mask.shape)
    assert_agree(
        TextToCubeEncoder(config),
        torch_modules.TextToCubeEncoder(config.text_vocab_size, 7, dim, heads, inner, layers, config.surface_dim),
        [],
        prefix="text_encoder.",
        config=config,
        forward=lambda module: [module(mx.array(ids), mx.array(mask))],
        torch_forward=lambda module: [module(torch.tensor(ids), torch.tensor(mask))],
    )


def test_gradients_travel_back_by_the_adjoint_of_the_key_map() -> None:
    """<g, map(d)> = <adjoint(g), d> for random g and d: the parity tests above rest on it."""
    config = SMALL.replace(lattice_depth=9)
    state = {f"neuron.{k}": v for k, v in torch_modules.SimpleNeuron(4, 3, 9, 6, 5).state_dict().items()}
    state |= {f"carrier.{k}": v for k, v in torch_modules.EnergyCarrier(5, 8, 2).state_dict().items()}
    text = torch_modules.TextToCubeEncoder(20, 9, 8, 2, 12, 1, 12)
    state |= {f"text_encoder.{k}": v for k, v in text.state_dict().items()}
    direction = {key: normal(*value.shape, seed=seed) for seed, (key, value) in enumerate(state.items())}
    mapped = {name: item.value for name, item in from_torch(direction, config).items()}
    cotangent = {name: normal(*value.shape, seed=seed) for seed, (name, value) in enumerate(mapped.items())}
    back = gradients_in_torch_terms(cotangent, config)
    forward = sum(float(np.sum(cotangent[name] * mapped[name], dtype=np.float64)) for name in mapped)
    backward = sum(float(np.sum(back[name] * direction[name], dtype=np.float64)) for name in direction)
    assert set(back) == set(direction)
    assert abs(forward - backward) < TOLERANCE * abs(forward)
