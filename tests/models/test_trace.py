"""What model.trace keeps is what the model itself does, and survives a file."""

import sys
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from models.small import lively_model

from energy_flow_mlx import Trace
from energy_flow_mlx.models.lattice import EnergyLattice
from energy_flow_mlx.text import Tokeniser

SPAWNING = {"movement_based_spawn": True, "spawn_movement_threshold_ratio": 0.15, "spawn_capacity": 0.1}
SETTINGS = [
    {},
    {"collection": "bilinear", "project_unfinished": False},
    {"enable_displacement_filtering": True, "min_displacement_threshold": 0.3},
    {"convergence_enabled": True, "convergence_min_steps": 1, "convergence_patience": 1},
    SPAWNING,
    {**SPAWNING, "collection": "bilinear"},
]


def embeddings(batch=4):
    return np.random.default_rng(0).normal(size=(batch, 10)).astype(np.float32)


@pytest.fixture(scope="module")
def spawning():
    return lively_model(**SPAWNING).trace(embeddings())


@pytest.mark.parametrize("changes", SETTINGS)
def test_the_surface_is_that_of_the_model_bit_for_bit(changes):
    model, x = lively_model(**changes), embeddings()
    trace, out = model.trace(x), model(x)
    np.testing.assert_array_equal(trace.surface, np.array(out.surface))
    np.testing.assert_array_equal(trace.start, np.array(out.start))
    there, end = trace.exists[-1], trace.arrived[-1]
    assert np.sum(end) == out.flow.reached_z0.item() + out.flow.reached_zdepth.item() > 0 or "convergence_enabled" in changes
    assert np.sum(trace.parent >= 0) == out.flow.spawned.item()
    assert np.sum(there) == 4 * 12 + out.flow.spawned.item()
    surface = np.zeros_like(trace.surface)
    for sample, cell, flow in np.argwhere(trace.cell >= 0)[:, [0, 2, 1]]:
        part = trace.weight[sample, flow, cell] * trace.energy[-1, sample, flow]
        surface[sample, trace.cell[sample, flow, cell]] += part
    np.testing.assert_allclose(surface, trace.surface, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, SPAWNING])
def test_what_the_last_step_left_is_collected_to_the_same_surface(changes):
    """The recorded end alone, put into the lattice again, gives the model's surface bit for bit."""
    model, x = lively_model(**changes), embeddings()
    trace = model.trace(x)
    lattice = EnergyLattice(model.config)
    flows = {name: mx.array(array[-1]) for name, array in trace.to_numpy().items() if len(array) == trace.steps + 1}
    count = trace.born.size
    state = lattice.place_initial_energy(mx.array(trace.start))._replace(
        position=flows["position"].reshape(count, 3),
        energy=flows["energy"].reshape(count, 1),
        age=flows["age"].reshape(-1),
        sample=mx.repeat(mx.arange(4), count // 4),
    )
    collected = (flows["arrived"] | flows["active"]).reshape(-1)
    np.testing.assert_array_equal(np.array(lattice.collect(state, collected)), np.array(model(x).surface))


def test_children_are_born_at_their_parents_place(spawning):
    assert (spawning.parent >= 0).sum() > 20 and spawning.born.max() > 1
    for sample, child in np.argwhere(spawning.parent >= 0):
        step, parent = spawning.born[sample, child], spawning.parent[sample, child]
        assert step > spawning.born[sample, parent]
        np.testing.assert_array_equal(spawning.position[step, sample, child], spawning.position[step - 1, sample, parent])
        assert spawning.energy[step, sample, child] == spawning.energy[step, sample, parent]
        assert spawning.age[step, sample, child] == 0 and spawning.active[step, sample, child]
        assert not spawning.exists[step - 1, sample, child]


def test_age_counts_steps_until_arrival():
    trace = lively_model().trace(embeddings())
    assert np.array_equal(trace.age, np.cumsum(np.concatenate([np.zeros((1, 4, 12), bool), trace.active[:-1]]), axis=0))
    assert np.all(trace.arrived[1:] >= trace.arrived[:-1]) and np.all(np.abs(trace.position[trace.arrived][:, 2]) == 1)


def test_texts_go_through_the_text_encoder():
    model = lively_model()
    texts = ["a dog runs", "prices fell"]
    model.text_encoder.tokeniser = Tokeniser.whitespace(texts, 20)
    model.train()
    trace = model.trace(texts)
    assert model.training and trace.texts == tuple(texts)
    model.eval()
    np.testing.assert_array_equal(trace.start, np.array(model.text_encoder.encode(texts)))


def test_the_size_is_said_before_it_is_taken():
    model = lively_model(**SPAWNING)
    with pytest.raises(ValueError, match=r"limit_gb=1e-06: the trace of 56 flows over 3 steps takes 4\.93e-06 GB"):
        model.trace(embeddings(), limit_gb=1e-6)
    trace = model.trace(embeddings(), limit_gb=1)
    recorded = sum(getattr(trace, name).nbytes for name in ("position", "energy", "active", "arrived", "age"))
    assert recorded == 22 * trace.active.size


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("a dog", "inputs must be a list of strings, got str"),
        (["a dog", 3], r"inputs\[1\] must be a string"),
        ([], r"embeddings: shape \(0,\) came"),
        (np.zeros((0, 10)), r"embeddings: shape \(0, 10\) came, accepted is a batch of at least one row"),
        (np.zeros((2, 9)), r"embeddings: shape \(2, 9\) came, accepted is \(any, 10\)"),
    ],
)
def test_refused_inputs(inputs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lively_model().trace(inputs)


def test_a_model_without_flows_has_nothing_to_trace():
    with pytest.raises(ValueError, match="flows_enabled is off"):
        lively_model(flows_enabled=False).trace(embeddings())


def test_a_file_holds_it_all(spawning, tmp_path):
    path = tmp_path / "flows.safetensors"
    spawning.save(path)
    again = Trace.load(path)
    for name, array in spawning.to_numpy().items():
        np.testing.assert_array_equal(again.to_numpy()[name], array, strict=True)
    assert repr(again) == repr(spawning) and "152 of them children" in repr(spawning)
    assert [each.name for each in tmp_path.iterdir()] == ["flows.safetensors"]


def test_other_files_are_refused(spawning, tmp_path):
    path = tmp_path / "weights.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros(3)}, metadata={"format": "mlx"})
    with pytest.raises(ValueError, match=r"weights\.safetensors: its format is 'mlx', accepted is 'energy-flow trace 1'"):
        Trace.load(path)
    for change, message in (({"width": 9}, "do not fit each other: start"), ({"energy": spawning.energy[1:]}, "do not fit each other: energy")):
        Trace(**{**vars(spawning), **change}).save(path)
        with pytest.raises(ValueError, match=message):
            Trace.load(path)
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none.safetensors")


def test_a_frame_has_a_row_for_each_flow_and_step(spawning, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", SimpleNamespace(DataFrame=dict))
    for library in (None, "polars"):
        frame = spawning.to_frame(library)
        assert list(frame) == ["step", "sample", "flow", "x", "y", "z", "energy", "active", "arrived", "age", "parent"]
        assert {len(column) for column in frame.values()} == {spawning.exists.sum()}
        row = np.argmax(frame["parent"] >= 0)
        step, sample, flow = (frame[name][row] for name in ("step", "sample", "flow"))
        assert frame["z"][row] == spawning.position[step, sample, flow, 2] and frame["parent"][row] == spawning.parent[sample, flow]
    with pytest.raises(ImportError, match="pandas is not installed"):
        spawning.to_frame("pandas")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match="neither pandas nor polars is installed"):
        spawning.to_frame()
    with pytest.raises(ValueError, match="library='numpy' came, accepted are pandas, polars"):
        spawning.to_frame("numpy")
