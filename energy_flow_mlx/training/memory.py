"""How much memory a training step takes, which checkpointing a budget asks for, and MLX's limits."""

import math
from typing import NamedTuple

import mlx.core as mx

from ..config import ConfigError, EnergyConfig
from ..models.carrier import DISPLACEMENT_WIDTH
from ..models.mapper import intermediate_size
from ..nn.precision import DTYPES
from ..ops.kernel import use_kernel

GB = 1e9
# A thousand kernels may queue, and the results of all are allocated. MLX's own limit is so near the size of the device that a step
# of the optimized preset, of 34 GB, ran out of 80 GB.
CUDA_SHARE = 0.8


class Memory(NamedTuple):
    """Bytes of a training step, predicted: weights (with gradients and Adam's moments), flows (what the backward pass keeps of them
    and the arrays of the step in work), and all together."""

    weights: float
    flows: float

    @property
    def total(self) -> float:
        return self.weights + self.flows


def predicted(config: EnergyConfig) -> Memory:
    """The memory of a training step, in bytes, from the configuration.

    With the kernels a step of N flows keeps of each GRU layer the two products [N, 3 Hd] and the new state [N, Hd], and the heads'
    inner product; the plain graph keeps the gates and what they are made of besides, 11 Hd in all. Checkpointing keeps the states of
    every k-th step, and k steps whole while it goes back. A step in work takes the gradients of the products once more.
    """
    kernels = use_kernel("gru_gates")
    size = 4 if config.gru_force_fp32 else DTYPES[config.compute_dtype].size
    flows = config.batch_size * config.slots_per_sample
    hidden, layers = config.carrier_hidden_size, config.carrier_num_layers
    state = flows * (layers * hidden * size + 40.0)
    inner = hidden // 2 + DISPLACEMENT_WIDTH
    whole = flows * (size * (layers * (7 if kernels else 11) * hidden + (1 if kernels else 3) * inner) + 160.0)
    if kernels:
        whole += flows * size * (config.neuron_output_dim + 8)
    else:
        whole += flows * size * (8 * config.neuron_hidden_dim + 3 * config.neuron_output_dim)
    steps = config.flow_steps
    if config.gradient_checkpointing:
        every = config.checkpoint_steps if kernels else 1
        kept = math.ceil(steps / every) * state + min(every, steps) * whole
    else:
        kept = steps * whole
    return Memory(weights=20.0 * parameters(config), flows=kept + 2.0 * flows * size * 7 * hidden)


def parameters(config: EnergyConfig) -> int:
    """How many numbers the model's weights are."""
    S, E, hidden = config.surface_dim, config.embedding_dim, config.carrier_hidden_size
    M, d, F, h = intermediate_size(E, S), config.text_model_dim, config.neuron_output_dim, config.neuron_hidden_dim
    surfaces = 2 * (E * M + 2 * M * S + 2 * S * S)
    gru = 3 * hidden * (F + 1 + hidden) + (config.carrier_num_layers - 1) * 6 * hidden * hidden
    heads = hidden * (hidden // 2 + DISPLACEMENT_WIDTH)
    layer = 4 * d * d + 2 * d * config.text_feedforward_dim
    text = (config.text_vocab_size + config.text_max_positions) * d + config.text_num_layers * layer + d * (d + S)
    return surfaces + gru + heads + text + h * (h + F)


def within(config: EnergyConfig, budget: float) -> EnergyConfig:
    """The configuration with the least recomputing that fits into `budget` bytes: none, or checkpoints every k steps.

    Every k costs one forward pass more; the k that keeps least is taken.

    Raises:
        ConfigError: not even that fits; says what it takes.
    """
    plain = config.replace(gradient_checkpointing=False)
    if predicted(plain).total <= budget:
        return plain
    steps = range(1, config.flow_steps + 1) if use_kernel("gru_gates") else range(1, 2)
    recomputed = [config.replace(gradient_checkpointing=True, checkpoint_steps=k) for k in steps]
    best = min(recomputed, key=lambda c: predicted(c).total)
    if predicted(best).total > budget:
        raise ConfigError(
            f"memory_budget={budget / GB:g} is not accepted: with gradient checkpointing a step still takes "
            f"{predicted(best).total / GB:.1f} GB; lower batch_size={config.batch_size} or raise the budget"
        )
    return best


def limit(budget: float = 0.0) -> None:
    """Hold MLX to `budget` bytes: of memory in use and of freed memory that it keeps, and on a Mac of wired memory.

    MLX waits for the device where it holds more, so that the results of kernels that still queue do not fill the memory; what a
    step needs at one time it takes all the same. Without a budget that is done on CUDA alone, at CUDA_SHARE of the device.
    """
    if not budget:
        if mx.cuda.is_available():
            mx.set_memory_limit(int(CUDA_SHARE * int(mx.device_info(mx.gpu)["total_memory"])))
        return
    mx.set_memory_limit(int(budget))
    mx.set_cache_limit(int(budget / 4))
    if mx.metal.is_available():
        most = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(int(budget), most))
