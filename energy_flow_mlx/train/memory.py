"""The memory of a training step: prediction, recomputation that fits a budget, and MLX's limits, also those of evaluation."""

import math
import os
import resource
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from ..config import ConfigError, EnergyConfig, ModelConfig
from ..models.carrier import DISPLACEMENT_WIDTH
from ..models.mapper import intermediate_size
from ..nn.precision import DTYPES, flow_dtype
from ..ops.host import by_host
from ..ops.kernel import use_kernel

GB = 1e9
CUDA_SHARE = 0.8  # of a CUDA device that MLX may fill; its own limit leaves nothing to CUDA and the driver
# On CUDA MLX puts this many operations into a command buffer, by compute capability, and queues up to this many buffers. The results of
# all queued operations are allocated: a step of the optimized preset at batch 4, which needs 29 GB, ran out of 80 GB.
OPERATIONS = {(9, 0): 100, (10, 0): 100, (12, 0): 100}
OTHERS_OPERATIONS = 20
BUFFERS = 10
VARIABLE = "MLX_MAX_OPS_PER_BUFFER"
# The device starts when the first buffer is full. On an H200 a training step of `debug` took 9.9 ms with 30 operations in a buffer and 12.7 to
# 13.1 with 100, its forward pass 1.8 with 32 and 2.2 with 100; `experiment`, whose time is the device's, took the same.
MOST_OPERATIONS = 30
# Evaluation keeps nothing for a backward pass: beside the weights it takes little but the results of what queues. They may take EVALUATION_ROOM.
# A pass has some STEP_OPERATIONS operations a step; where the results of all of them fit, MOST_OPERATIONS stay: such a model is small, the
# host's time decides, and every buffer costs some. A larger one's operations take the device longer than that: on an H200 `experiment` and
# `optimized` were as fast, to 2%, with 8 and 2 operations in a buffer as with 100, in a half and a fifth of the memory; one was not tried beside them.
EVALUATION_ROOM = 2.0**30
STEP_OPERATIONS = 13
FEWEST_OPERATIONS = 2
BY_NUMPY = 1.6
LAYER_ARRAYS = 40  # of a decoder's width, kept of a token in each of its layers; measured
# What threads and libraries of a run on a CPU reserve of the address space beside its arrays, and each core of it: OpenBLAS's buffer of
# 128 MiB. Where a limit leaves less, OpenBLAS tries for its buffer without an end, and MLX writes to memory that it did not get.
LIBRARIES, A_CORE = 0.25e9, 0.14e9


class Memory(NamedTuple):
    """Bytes of a training step, predicted.

    weights: with Adam's two moments, gradients, their sums over micro-batches and copies in a 16-bit `compute_dtype`. flows: what
    the backward pass keeps of them and the arrays of the step in work. update: the most that the optimiser's step holds, when the
    flows are gone; one launch has its tensors before and after the step. total: at the worst time.
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
    inner product; the plain graph keeps the gates and what they are made of besides, 11 Hd in all. Where ops compute by NumPy, MLX keeps
    what their inputs were made from too, measured as BY_NUMPY times as much. Gradient checkpointing stores the
    states of every k-th step, and everything of k steps during their backward pass. The step in progress also holds the gradients of its
    products.
    """
    kernels = use_kernel("gru_gates")
    computed, size = DTYPES[config.compute_dtype].size, flow_dtype(config).size
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
    of_texts, kept_of_texts = text_decoding(config)
    number, several = parameters(config) + of_texts, config.gradient_accumulation_steps > 1
    if config.part == "corrector" or (config.part == "decoder" and not config.text_decoder_flow_share):
        flows, kept = 0, 0.0  # none runs
    of_flows = kept + 2.0 * flows * size * 7 * hidden
    if not kernels and by_host("gru_gates"):
        of_flows *= BY_NUMPY
    copies, sums = (computed if computed < 4 else 0), (4 if several else 0)
    return Memory(
        weights=(12.0 + copies + computed + sums) * number,
        flows=of_flows + kept_of_texts,
        update=(12.0 + (sums or computed)) * number + largest_update(config),
    )


def text_decoding(config: EnergyConfig) -> tuple[float, float]:
    """Parameters of the text decoder and corrector that a run has, and the bytes that a step keeps of them: of each token some arrays of
    the decoder's width for each layer, its row of attention, and three of the vocabulary's size, the logits and what the loss makes of them."""
    corrector = config.part == "corrector"
    if not (config.text_decoder_loss_weight or corrector):
        return 0.0, 0.0
    d, layers, P, V = config.text_decoder_dim, config.text_decoder_layers, config.text_decoder_prefix, config.text_vocab_size
    number = 14.0 * layers * d * d + 2 * V * d + config.surface_dim * 4 * d + 4 * d * P * d
    share = config.text_decoder_flow_share
    rows = config.batch_size * (1 if corrector else (2 if share < 1 else 0) + (1 if share > 0 else 0))
    tokens = rows * config.text_max_length
    a_layer = LAYER_ARRAYS * d + 3 * config.text_decoder_heads * config.text_max_length
    kept = 4.0 * tokens * (layers * a_layer + 3 * V)
    return (2 * number, 2 * kept) if corrector else (number, kept)


def largest_update(config: EnergyConfig) -> float:
    """Bytes of the largest weight and its two moments, which one launch of the optimiser allocates anew: that of the middle layer
    of mapper and collector, or the token embedding."""
    surface = config.surface_dim
    middle = 2.0 * surface * intermediate_size(config.embedding_dim, surface)
    return 12.0 * max(middle, config.text_vocab_size * config.text_model_dim)


def parameters(config: EnergyConfig) -> int:
    """The number of parameters of the model."""
    S, E, hidden = config.surface_dim, config.embedding_dim, config.carrier_hidden_size
    M, d, F, h = intermediate_size(E, S), config.text_model_dim, config.neuron_output_dim, config.neuron_hidden_dim
    surfaces = 2 * (E * M + 2 * M * S + 2 * S * S)
    gru = 3 * hidden * (F + 1 + hidden) + (config.carrier_num_layers - 1) * 6 * hidden * hidden
    heads = hidden * (hidden // 2 + DISPLACEMENT_WIDTH)
    layer = 4 * d * d + 2 * d * config.text_feedforward_dim
    text = (config.text_vocab_size + config.text_max_positions) * d + config.text_num_layers * layer + d * (d + S)
    return surfaces + gru + heads + text + h * (h + F)


def within_budget(config: EnergyConfig, processes: int = 1) -> EnergyConfig:
    """`within` the memory_budget of the configuration; the configuration unchanged if it has none.

    processes: the number that share a batch; each has the budget.
    """
    if not config.memory_budget:
        return config
    return within(share(config, processes), config.memory_budget * GB).replace(batch_size=config.batch_size)


def share(config: EnergyConfig, processes: int) -> EnergyConfig:
    """The configuration of the micro-batch that each of several processes has.

    Raises:
        ConfigError: the batch cannot be divided.
    """
    if config.batch_size % processes:
        raise ConfigError(
            f"batch_size={config.batch_size} is not accepted: {processes} processes share it equally, so that it must be a multiple "
            f"of {processes}"
        )
    return config.replace(batch_size=config.batch_size // processes)


def within(config: EnergyConfig, budget: float) -> EnergyConfig:
    """The configuration with the least recomputation that fits into `budget` bytes: none, or storing the flows of every k-th step.

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


def check_room(config: EnergyConfig) -> None:
    """Refuse a run on a CPU that would not fit into the address space which the process may take (`ulimit -v`).

    Raises:
        ConfigError: says how much it takes and how much there is.
    """
    room = _address_room()
    if room is None or mx.default_device().type != mx.DeviceType.cpu:
        return
    step, beside = predicted(config).total, LIBRARIES + A_CORE * (os.cpu_count() or 1)
    if step + beside > room:
        raise ConfigError(
            f"a step takes about {step / GB:.2f} GB and the libraries {beside / GB:.2f} GB, but this process may take {max(room, 0) / GB:.2f} GB "
            f"more (ulimit -v): raise that limit, lower batch_size={config.batch_size}, or set memory_budget"
        )


def _address_room() -> float | None:
    """Bytes of address space that this process may still take; None where nothing limits it or no system tells it."""
    most, statm = resource.getrlimit(resource.RLIMIT_AS)[0], Path("/proc/self/statm")
    if most == resource.RLIM_INFINITY or not statm.is_file():
        return None
    return float(most - int(statm.read_text().split()[0]) * resource.getpagesize())


def limit(config: EnergyConfig) -> None:
    """Keep MLX within `memory_budget`; without one, on CUDA, within CUDA_SHARE of the device.

    Sets MLX's memory limit, beyond which it waits for the device before it allocates; what a step needs at one time it takes all
    the same. With a budget also the limits of freed memory that MLX keeps and, on a Mac, of wired memory. On CUDA, MLX's command
    buffers are made so small that what queues fits too: by MLX_MAX_OPS_PER_BUFFER, unless it is set already. MLX reads that once,
    when it first uses the device: call this before.
    """
    budget = config.memory_budget * GB
    device = int(mx.device_info(mx.gpu).get("total_memory", 0)) if mx.cuda.is_available() else 0
    most = budget or CUDA_SHARE * device
    if most:
        # MLX looks at the limit before it allocates: the largest result comes on top.
        mx.set_memory_limit(int(max(most - largest_update(config), most / 2)))
    if device:
        _put_at_most(operations_a_buffer(config, most))
    if budget:
        mx.set_cache_limit(int(budget / 4))
    if budget and mx.metal.is_available():
        wired = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(int(budget), wired))


def limit_evaluation(config: ModelConfig, batch_size: int) -> None:
    """On CUDA, for a process that only evaluates: make MLX's command buffers so small that the results which queue take some EVALUATION_ROOM,
    but not smaller than FEWEST_OPERATIONS. MLX_MAX_OPS_PER_BUFFER stands if it is set; call this, as `limit`, before MLX first uses the device.

    batch_size: samples of a batch, at most.
    """
    if not mx.cuda.is_available():
        return
    result = _result(config, batch_size)
    fits = STEP_OPERATIONS * config.flow_steps * result <= EVALUATION_ROOM
    _put_at_most(MOST_OPERATIONS if fits else max(int(EVALUATION_ROOM / (BUFFERS * result)), FEWEST_OPERATIONS))


def operations_a_buffer(config: EnergyConfig, most: float) -> int:
    """How many operations MLX may put into a command buffer so that the results of those that queue take about a quarter of the
    room that a step leaves of `most` bytes. Small buffers cost host time; a large array's kernels run far longer than that."""
    room = (most - predicted(config).total) / 4
    return int(max(room / (BUFFERS * _result(config, config.batch_size)), 1))


def queued(config: EnergyConfig) -> float:
    """An estimate of the bytes that the results of queued operations take beyond what the step needs: on CUDA, after `limit`."""
    if not mx.cuda.is_available():
        return 0.0
    chosen = os.environ.get(VARIABLE, "")
    return BUFFERS * (int(chosen) if chosen.isdecimal() else _usual_operations()) * _result(config, config.batch_size)


def _put_at_most(operations: int) -> None:
    """Have MLX put so many operations into a command buffer, and no more than MOST_OPERATIONS, if that is fewer than it does by itself and
    the variable is not set."""
    operations = min(operations, MOST_OPERATIONS)
    if operations < _usual_operations():
        os.environ.setdefault(VARIABLE, str(operations))


def _usual_operations() -> int:
    """What MLX puts into a command buffer on this CUDA device."""
    info = mx.device_info(mx.gpu)
    capability = info.get("compute_capability_major"), info.get("compute_capability_minor")
    return OPERATIONS.get(cast(tuple[int, int], capability), OTHERS_OPERATIONS)


def _result(config: ModelConfig, batch_size: int) -> float:
    """Bytes of the hidden states of a batch, about the mean of what an operation of a step returns."""
    return float(batch_size * config.slots_per_sample * config.carrier_hidden_size * flow_dtype(config).size)
