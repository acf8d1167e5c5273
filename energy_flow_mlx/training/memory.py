"""How much memory a training step takes, which checkpointing a budget asks for, and MLX's limits."""

import math
import os
from typing import NamedTuple

import mlx.core as mx

from ..config import ConfigError, EnergyConfig
from ..models.carrier import DISPLACEMENT_WIDTH
from ..models.mapper import intermediate_size
from ..nn.precision import DTYPES
from ..ops.kernel import use_kernel

GB = 1e9
CUDA_SHARE = 0.8  # of a CUDA device that MLX may fill; its own limit leaves nothing to CUDA and the driver
# MLX commits so many operations at a time, lets so many commits queue, and the results of all that queue are allocated: on an H100
# the optimized preset's step, which needs 34 GB, ran out of 80 GB.
OPERATIONS_A_COMMIT, COMMITS = 100, 10
OPERATIONS = "MLX_MAX_OPS_PER_BUFFER"


class Memory(NamedTuple):
    """Bytes of a training step, predicted.

    weights: Adam's two moments, gradients, and the copies of the weights in `compute_dtype`. flows: what the backward pass keeps
    of them and the arrays of the step in work. update: the most that the optimiser's step holds, when the flows are gone; one
    launch has its tensors before and after the step. total: at the worst time.
    """

    weights: float
    flows: float
    update: float

    @property
    def total(self) -> float:
        return max(self.weights + self.flows, self.update)


def predicted(config: EnergyConfig) -> Memory:
    """The memory of a training step, in bytes, from the configuration.

    With the kernels a step of N flows keeps of each GRU layer the two products [N, 3 Hd] and the new state [N, Hd], and the heads'
    inner product; the plain graph keeps the gates and what they are made of besides, 11 Hd in all. Checkpointing keeps the states of
    every k-th step, and k steps whole while it goes back. A step in work takes the gradients of the products once more.
    """
    kernels = use_kernel("gru_gates")
    computed = DTYPES[config.compute_dtype].size
    size = 4 if config.gru_force_fp32 else computed
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
    number = parameters(config)
    return Memory(
        weights=(12.0 + 2 * computed) * number,
        flows=kept + 2.0 * flows * size * 7 * hidden,
        update=(12.0 + computed) * number + largest_update(config),
    )


def largest_update(config: EnergyConfig) -> float:
    """Bytes that one launch of the optimiser allocates at most: the largest layer, the middle one of mapper and collector, and its
    moments after the step."""
    surface = config.surface_dim
    return 12.0 * 2 * surface * intermediate_size(config.embedding_dim, surface)


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


def operations_a_commit(config: EnergyConfig, limit: float) -> int:
    """How many operations MLX may commit at a time so that the results of those that queue take about a quarter of the room that a
    step leaves of `limit` bytes. Few cost a little host time each; a large array's kernels run far longer than that."""
    size = 4 if config.gru_force_fp32 else DTYPES[config.compute_dtype].size
    result = float(config.batch_size * config.slots_per_sample * config.carrier_hidden_size * size)
    room = (limit - predicted(config).total) / 4
    return int(min(max(room / (COMMITS * result), 1), OPERATIONS_A_COMMIT))


def hold(config: EnergyConfig) -> None:
    """Hold MLX to the memory budget: of arrays in use and of freed memory that it keeps, and on a Mac of wired memory.

    MLX waits for the device where it holds more; what a step needs at one time it takes all the same. On CUDA the commits are made
    small enough for the budget too, unless MLX_MAX_OPS_PER_BUFFER says how small; MLX reads that once, when it first uses the
    device, so call this before. Without a budget that is done on CUDA alone, for CUDA_SHARE of the device.
    """
    budget = config.memory_budget * GB
    cuda = mx.cuda.is_available()
    if budget or cuda:
        most = budget or CUDA_SHARE * int(mx.device_info(mx.gpu)["total_memory"])
        # MLX looks at the limit before it allocates: the largest result comes on top.
        mx.set_memory_limit(int(max(most - largest_update(config), most / 2)))
        operations = operations_a_commit(config, most)
        if cuda and operations < OPERATIONS_A_COMMIT:
            os.environ.setdefault(OPERATIONS, str(operations))
    if budget:
        mx.set_cache_limit(int(budget / 4))
    if budget and mx.metal.is_available():
        most = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(int(budget), most))
