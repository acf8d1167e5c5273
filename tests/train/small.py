"""A model, data and a command line small enough for tests."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.data.source import PairData, built_in_data
from energy_flow_mlx.scores import Evaluation
from energy_flow_mlx.train import report
from energy_flow_mlx.train import run as training_run
from energy_flow_mlx.train.optimiser import freeze_unreached
from energy_flow_mlx.train.step import TrainStep

FIELDS = {
    "lattice_width": 3,
    "lattice_height": 2,
    "lattice_depth": 4,
    "input_embedding_dim_from_teacher": 12,
    "neuron_hidden_dim": 4,
    "neuron_output_dim": 4,
    "carrier_hidden_size": 8,
    "text_vocab_size": 120,
    "text_model_dim": 8,
    "text_num_heads": 2,
    "text_feedforward_dim": 8,
    "text_num_layers": 1,
    "text_max_length": 16,
    "text_max_positions": 16,
    "training_steps": 6,
    "warmup_steps": 2,
    "batch_size": 4,
    "validation_interval": 2,
    "checkpoint_interval": 2,
    "log_interval": 1,
    "train_pairs": 40,
    "validation_pairs": 8,
    "test_pairs": 8,
    "use_exploration_noise": True,
}


def small_config(**changes: object) -> EnergyConfig:
    return EnergyConfig.tiny().replace(**{**FIELDS, **changes})


def small_data(config: EnergyConfig) -> PairData:
    return built_in_data(
        config.train_pairs,
        config.validation_pairs,
        config.test_pairs,
        config.seed,
        config.embedding_dim,
        config.text_vocab_size,
        config.text_max_length,
    )


def small_model(config: EnergyConfig) -> EnergyFlow:
    """In training mode, with what training does not reach frozen."""
    mx.random.seed(config.seed)
    model = EnergyFlow(config)
    freeze_unreached(model, config)
    model.train()
    return model


def arguments(out: Path | None = None, **changes: object) -> list[str]:
    """Flags for a small run into `out`."""
    flags = ["--quiet"] + (["--out", str(out)] if out else [])
    for name, value in {**FIELDS, **changes}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def arrays(run: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by file and name."""
    found = {}
    for name in ("model.safetensors", "optimizer.safetensors", "text_decoder.safetensors"):
        if not (run / name).is_file():
            continue
        loaded = mx.load(str(run / name))
        found.update({f"{name}:{key}": np.array(value) for key, value in loaded.items()})
    return found


def assert_same_arrays(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name, strict=True)


def validate_as(patch: pytest.MonkeyPatch, cosines: Mapping[int, float]) -> None:
    """From now on the validation after a step gives the cosine that `cosines` has for it, or 0; and a run has no figure and a short table."""
    real = training_run.evaluate

    def evaluated(model: EnergyFlow, *others: Any) -> Evaluation:
        return dataclasses.replace(real(model, *others), cosine=cosines.get(model.trained_steps, 0.0))

    patch.setattr(training_run, "evaluate", evaluated)
    patch.setattr(training_run, "try_curves", lambda *_: None)
    patch.setattr(report, "simple_baselines", lambda data: {})


def overflow_a_gradient(step: TrainStep) -> None:
    """From now on the gradient of mapper.energy_bias is infinite; the loss stays finite."""
    original = step._loss_and_gradients

    def overflowing(*arguments: object) -> object:
        values, gradients = original(*arguments)
        gradients["mapper"]["energy_bias"] = mx.array([float("inf")])
        return values, gradients

    step._loss_and_gradients = overflowing
