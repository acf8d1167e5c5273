"""The converted model that comes with the repository."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from convert.checkpoints import Modules, Sizes
from models.test_golden import MODULES
from safetensors.numpy import load_file

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.convert.__main__ import main

WEIGHTS = Path(__file__).parents[2] / "weights/golden"


@pytest.fixture(scope="module")
def model() -> EnergyFlow:
    return EnergyFlow.from_pretrained(WEIGHTS)


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 3 * 2**20


def test_texts_and_embeddings_go_through(model: EnergyFlow) -> None:
    surface = model.text_encoder.encode(["A dog runs in the park.", "", "A cat sleeps."])
    assert surface.shape == (3, 30) and float(mx.abs(surface).max()) <= 1
    output = model(mx.random.normal((2, 48), key=mx.random.key(0)))
    assert output.embedding.shape == (2, 48) and bool(mx.isfinite(output.embedding).all())
    flow = output.flow
    assert int(flow.reached_z0 + flow.reached_zdepth + flow.projected) == 60 + int(flow.spawned)


def test_its_modules_are_the_recorded_ones(model: EnergyFlow, golden: Path) -> None:
    recorded = load_file(golden / "modules.safetensors")
    for name, (run, _, _) in MODULES.items():
        for output, value in run(model, recorded).items():
            error = np.abs(np.array(value, dtype=np.float64) - recorded[f"{name}.out{output}"]).max()
            assert error < 5e-3, f"{name}{output}: float16 weights differ by {error}"


def test_it_goes_back_to_torch(model: EnergyFlow, tmp_path: Path) -> None:
    assert main([str(WEIGHTS), "--to-torch", "--to", str(tmp_path / "t")]) == 0
    checkpoint = torch.load(tmp_path / "t/checkpoint.pt", weights_only=True)
    mapper = torch.load(tmp_path / "t/mapper.pt", weights_only=True)
    modules = Modules(Sizes(6, 5, 8, embedding=48, hidden=32, layers=2, neuron=16, features=24))
    own = modules.part(
        "text_encoder."
    )  # of other sizes here; the model's own text encoder is compared in test_both_ways
    modules.load_state_dict({**checkpoint["model_state_dict"], **mapper, **own}, strict=True)
    x = np.random.default_rng(0).standard_normal((4, 48)).astype(np.float32)
    with torch.no_grad():
        wanted = modules.input_mapper(torch.tensor(x)).numpy()
    assert np.abs(np.array(model.mapper(mx.array(x))) - wanted).max() < 1e-4
