"""The recorded numbers of the PyTorch modules and of five whole flows are reproduced."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.golden import CONFIG, golden_model
from models.parity import assert_close, gradients_in_torch_terms
from safetensors.numpy import load_file

from energy_flow_mlx import CarrierOutput, EnergyFlow
from energy_flow_mlx.ops import geometry

Recorded = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Recorded:
    return load_file(golden / "modules.safetensors")


@pytest.fixture(scope="module")
def flows(golden: Path) -> Recorded:
    return load_file(golden / "flows.safetensors")


@pytest.fixture(scope="module")
def model(golden: Path) -> EnergyFlow:
    return golden_model(golden)


def run_neuron(model: EnergyFlow, data: Recorded) -> dict[str, mx.array]:
    return {"": model.neuron(mx.array(data["neuron.in.position"]), mx.array(data["neuron.in.energy"]))}


def run_carrier(model: EnergyFlow, data: Recorded, **changes: object) -> dict[str, mx.array]:
    names = ("neuron_output", "energy", "hidden", "position")
    arguments: dict = {name: mx.array(data[f"carrier.in.{name}"]) for name in names} | changes
    output: CarrierOutput = model.carrier(**arguments)
    return {f".{name}": value for name, value in output._asdict().items()}


def run_mapper(model: EnergyFlow, data: Recorded) -> dict[str, mx.array]:
    return {"": model.mapper.map_to_surface(mx.array(data["mapper.in"]))}


def run_collector(model: EnergyFlow, data: Recorded) -> dict[str, mx.array]:
    return {"": model.collector.collect(mx.array(data["collector.in"]))}


def run_text_encoder(model: EnergyFlow, data: Recorded) -> dict[str, mx.array]:
    ids, mask = (mx.array(data[f"text_encoder.{name}"]) for name in ("input_ids", "attention_mask"))
    return {"": model.text_encoder(ids, mask)}


MODULES = {
    "neuron": (run_neuron, "neuron", "neuron."),
    "carrier": (run_carrier, "carrier", "carrier."),
    "mapper": (run_mapper, "mapper", "input_mapper."),
    "collector": (run_collector, "collector", "output_collector."),
    "text_encoder": (run_text_encoder, "text_encoder", "text_encoder."),
}


@pytest.mark.parametrize("name", MODULES)
def test_module_and_its_gradients(name: str, model: EnergyFlow, recorded: Recorded) -> None:
    run: Callable[[EnergyFlow, Recorded], dict[str, mx.array]]
    run, attribute, torch_prefix = MODULES[name]
    for output, value in run(model, recorded).items():
        assert_close(f"{name}.out{output}", value, recorded[f"{name}.out{output}"])

    module = getattr(model, attribute)
    weights = module.parameters()

    def loss(parameters: dict) -> mx.array:
        module.update(parameters)
        outputs = run(model, recorded)
        cotangents = {key: recorded.get(f"{name}.cotangent{key}") for key in outputs}
        return sum(mx.sum(outputs[key] * mx.array(value)) for key, value in cotangents.items() if value is not None)

    value, gradients = mx.value_and_grad(loss)(weights)
    module.update(weights)
    assert_close(f"{name}.loss", value.reshape(1), recorded[f"{name}.loss"])
    named = {f"{attribute}.{key}": np.array(gradient) for key, gradient in tree_flatten(gradients)}
    ours = gradients_in_torch_terms(named, model.config)
    wanted = {key: value for key, value in recorded.items() if key.startswith(f"{name}.grad.")}
    assert wanted
    for key, gradient in wanted.items():
        assert_close(key, ours[torch_prefix + key.removeprefix(f"{name}.grad.")], gradient)


@pytest.mark.parametrize("case", ["carrier_nohidden", "carrier_history"])
def test_other_calls_of_the_carrier(case: str, model: EnergyFlow, recorded: Recorded) -> None:
    if case == "carrier_nohidden":
        outputs = run_carrier(model, recorded, hidden=None)
    else:
        history = mx.array(recorded["carrier_history.in.position_history"])
        outputs = run_carrier(model, recorded, position_history=history)
    for name, value in outputs.items():
        assert_close(f"{case}.out{name}", value, recorded[f"{case}.out{name}"])


def test_collector_of_cells(model: EnergyFlow, recorded: Recorded) -> None:
    energy, corners = recorded["collector_cells.energy"], recorded["collector_cells.xy"].tolist()
    cells = {(x, y): mx.array(energy[:, i : i + 1]) for i, (x, y) in enumerate(corners)}
    assert_close("cells", model.collector.collect(cells), recorded["collector_cells.out"])


def test_geometry(recorded: Recorded) -> None:
    size = CONFIG.lattice_width, CONFIG.lattice_height, CONFIG.lattice_depth
    position = mx.array(recorded["geometry.position"])
    assert np.array_equal(np.array(geometry.cell_index(position, *size[:2])), recorded["geometry.cell"])
    rounded = geometry.normalise(geometry.quantise(position, *size), *size)
    assert_close("rounded", rounded, recorded["geometry.rounded"])
    assert_close("reflected", geometry.reflect(position), recorded["geometry.reflected"])
    points = mx.array(recorded["geometry.lattice"])
    assert_close("normalised", geometry.normalise(points, *size), recorded["geometry.lattice_normalised"])


FLOWS: dict[str, dict] = {
    "clamp": {"boundary_reflection_enabled": False},
    "reflect": {},
    "drop": {"project_unfinished": False},
    "spawn": {"movement_based_spawn": True},
    "long": {},
}


@pytest.mark.parametrize("name", FLOWS)
def test_whole_flow(name: str, golden: Path, flows: Recorded) -> None:
    model = golden_model(golden, **FLOWS[name])
    result = model.processor(mx.array(flows["surface"]), steps=CONFIG.lattice_depth if name == "long" else None)
    assert_close(f"{name}.out", result.surface, flows[f"{name}.out"])
    arrived = int(result.reached_z0 + result.reached_zdepth)
    flows_in_all = flows["surface"].size + int(result.spawned)
    assert [arrived, int(result.reached_z0), flows_in_all] == flows[f"{name}.counts"].tolist()
    unfinished = result.dropped if name == "drop" else result.projected
    assert int(unfinished) == flows_in_all - arrived
    assert int(result.overflowed) == 0
    if name == "spawn":
        assert_close("spawn.embedding", model.collector.collect(result.surface), flows["spawn.embedding"])


def test_children_need_no_setting(golden: Path, flows: Recorded) -> None:
    """PyTorch has room for every child: in evaluation the room grows to what they take."""
    model = golden_model(golden, movement_based_spawn=True, spawn_capacity=0.1)
    result = model.processor(mx.array(flows["surface"]))
    assert_close("spawn.out", result.surface, flows["spawn.out"])
    assert int(result.overflowed) == 0
