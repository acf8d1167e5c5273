"""The measured workload: configuration, batches, model and training step, and the FLOPs of its matrix products."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..cli import flag, layered_config
from ..config import ConfigError, EnergyConfig, read_mapping
from ..data.source import PairBatch
from ..distributed import ALONE, World
from ..models.carrier import DISPLACEMENT_WIDTH
from ..models.energy_flow import EnergyFlow
from ..models.mapper import intermediate_size
from ..train.optimiser import freeze_unreached, make_optimiser
from ..train.step import TrainStep

# What the benchmark sets unless asked otherwise: the reference's model without spawning and noise, one micro-batch a step, so that every
# run and every framework does the same work.
STILL: dict[str, Any] = {
    "movement_based_spawn": False,
    "use_exploration_noise": False,
    "gradient_accumulation_steps": 1,
    "collection": "nearest",
    "initial_weights": "reference",
    "input_residual": False,
    "arrival_loss_weight": 0.0,
}
# The settings that the torch baseline implements.
_COMPARABLE: dict[str, Any] = {
    "movement_based_spawn": False,
    "use_exploration_noise": False,
    "collection": "nearest",
    "flows_enabled": True,
    "input_residual": False,
    "arrival_loss_weight": 0.0,
    "enable_displacement_filtering": False,
    "convergence_enabled": False,
}


def benchmark_config(
    preset: str | None, file: Path | None, fields: Mapping[str, Any], *, as_trained: bool
) -> EnergyConfig:
    """The configuration from preset, STILL (unless `as_trained`), file and flags, each overriding the one before.

    Raises:
        ConfigError: a value or a key is not accepted, or the file does not parse.
        FileNotFoundError: there is no such file.
    """
    given = {**(read_mapping(file) if file is not None else {}), **fields}
    still = {} if as_trained else {name: value for name, value in STILL.items() if name not in given}
    config = layered_config(preset, file, {**still, **fields})
    if config.text_decoder_loss_weight or config.part != "all":
        raise ConfigError("text_decoder_loss_weight must be 0 and part all: the benchmark's model has no text decoder")
    return config


def require_comparable(config: EnergyConfig) -> None:
    """Check that the torch baseline implements the configuration.

    Raises:
        ConfigError: it does not; names the field and the value that it must have.
    """
    for name, required in _COMPARABLE.items():
        if getattr(config, name) != required:
            raise ConfigError(
                f"{flag(name)} {getattr(config, name)} is not accepted with --compare torch: the baseline has {required}"
            )


def compute_dtype(config: EnergyConfig) -> str:
    """The name of the dtype of the configuration's matrix products."""
    return str(getattr(config, "compute_dtype", "float32"))


def make_batches(config: EnergyConfig, seed: int = 0) -> list[PairBatch]:
    """Random micro-batches for one step: embeddings of length 1, texts of T / 2 to T tokens (T = `text_max_length`)."""
    rng = np.random.default_rng(seed)
    size, length = config.batch_size, config.text_max_length

    def unit() -> np.ndarray:
        x = rng.standard_normal((size, config.embedding_dim)).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    batches = []
    for number in range(config.gradient_accumulation_steps):
        ids = rng.integers(0, config.text_vocab_size, (size, length)).astype(np.int32)
        tokens = rng.integers((length + 1) // 2, length + 1, (size, 1))
        mask = (np.arange(length) < tokens).astype(np.int32)
        batches.append(PairBatch(unit(), unit(), ids, mask, np.arange(size) + number * size))
    return batches


def make_model(config: EnergyConfig, *, training: bool, dropout: bool) -> EnergyFlow:
    """A model initialised from the configuration's seed, as in training; without dropout unless `dropout`."""
    mx.random.seed(config.seed)
    model = EnergyFlow(config)
    freeze_unreached(model, config)
    model.train(training)
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module._p_1 = 1.0  # the keep probability; the layers that contain the Dropout read it too
    return model


def make_step(config: EnergyConfig, model: EnergyFlow, world: World = ALONE) -> TrainStep:
    """The training step with its optimiser, as in training."""
    optimiser = make_optimiser(config)
    optimiser.init(model.trainable_parameters())
    return TrainStep(model, optimiser, config, world=world)


def product_flops(config: EnergyConfig) -> dict[str, float]:
    """FLOPs of the matrix products in the forward pass of one micro-batch, by part.

    A Linear(a, b) on n rows takes 2 n a b. Elementwise operations, LayerNorms, the collection and padding are not
    counted.
    """
    c, S, E = config, config.surface_dim, config.embedding_dim
    M, B, T = intermediate_size(E, S), config.batch_size, config.text_max_length
    Hd, h, F, d = c.carrier_hidden_size, c.neuron_hidden_dim, c.neuron_output_dim, c.text_model_dim
    moves = B * c.slots_per_sample * c.flow_steps
    gru = 3 * Hd * (F + 1 + Hd) + (c.carrier_num_layers - 1) * 3 * Hd * 2 * Hd
    token = c.text_num_layers * (4 * d * d + 2 * d * c.text_feedforward_dim + 2 * T * d)
    return {
        "mapper": 2.0 * B * (E * M + M * 2 * S + 2 * S * S),
        "neuron": 2.0 * moves * (3 * 3 + 4 * h + h * h + h * F),
        "gru": 2.0 * moves * gru,
        "heads": 2.0 * moves * (Hd * (Hd // 2) + Hd // 2 + Hd * DISPLACEMENT_WIDTH + DISPLACEMENT_WIDTH * 3),
        "collector": 2.0 * B * (2 * S * S + 2 * S * M + M * E),
        "text encoder": 2.0 * B * (T * token + d * d + d * S),
    }


def total_flops(config: EnergyConfig, what: str) -> float:
    """FLOPs of one `forward` (one batch, without the text encoder) or one `training` step.

    A training step counts each forward product three times (forward, gradient of the input, gradient of the weights),
    and once the mapping of targets for the loss, which has no gradient. Recomputation by gradient
    checkpointing is not counted.
    """
    parts = product_flops(config)
    text = parts.pop("text encoder") if config.text_loss_weight else parts.pop("text encoder") * 0
    forward = sum(parts.values())
    if what == "forward":
        return forward
    return config.gradient_accumulation_steps * (3 * (forward + text) + parts["mapper"])


def flow_steps(config: EnergyConfig, what: str) -> int:
    """The number of slot moves in one call: micro-batches * B * slots per sample * flow steps."""
    micro_batches = 1 if what == "forward" else config.gradient_accumulation_steps
    return micro_batches * config.batch_size * config.slots_per_sample * config.flow_steps
