"""Test cases on random data: every op that has a kernel, with a preset's sizes, and a complete training step."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..benchmark.work import make_batches, make_model
from ..config import EnergyConfig
from ..models.carrier import DISPLACEMENT_WIDTH, input_size
from ..models.mapper import intermediate_size
from ..ops import (
    adamw,
    advance,
    bias_gelu_norm,
    collect,
    embedding,
    flow_step,
    gru_gates,
    heads,
    inherit,
    masked_mean,
    neuron,
    norms,
    spawn,
)
from ..train.loss import energy_flow_loss
from ..train.optimiser import clip_factors, gradient_norms, make_optimiser


@dataclasses.dataclass
class Case:
    """One op with its arguments, in the shapes that the op takes.

    function: called as `function(kernels, *arrays)`.
    floats: the first `floats` arrays have gradients.
    unread: indices of arrays whose values the backward pass does not read.
    constant: indices of outputs without a gradient.
    picked: indices of arrays of which the op reads only as many elements as it writes.
    held: arrays that the function holds.
    """

    function: Callable[..., Any]
    arrays: list[mx.array]
    floats: int
    unread: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()
    picked: tuple[int, ...] = ()
    held: Sequence[mx.array] = ()


def leaves(tree: Any) -> list[mx.array]:
    """The arrays, of any shape, in a tree of lists and tuples."""
    return [leaf for branch in tree for leaf in leaves(branch)] if isinstance(tree, (list, tuple)) else [tree]


def floating(arrays: Sequence[mx.array]) -> list[mx.array]:
    """The floating-point arrays, of any shape: those that can have a gradient."""
    return [array for array in arrays if mx.issubdtype(array.dtype, mx.floating)]


def both(case: Case, kernels: bool) -> Callable[..., list[mx.array]]:
    """Forward and backward as one function.

    It maps the arrays and the gradients of the floating-point outputs (in their shapes) to these outputs and the
    gradients of the first `floats` arrays (in their shapes).
    """

    def run(*arguments: mx.array) -> list[mx.array]:
        arrays, cotangents = list(arguments[: len(case.arrays)]), list(arguments[len(case.arrays) :])
        fixed = arrays[case.floats :]

        def differentiable(*floats: mx.array) -> list[mx.array]:
            return floating(leaves(case.function(kernels, *floats, *fixed)))

        outputs, gradients = mx.vjp(differentiable, arrays[: case.floats], cotangents)
        return [*outputs, *gradients]

    return run


def training_step(config: EnergyConfig, *, optimise: bool = True) -> tuple[mx.array, mx.array, Any]:
    """Build the graph of one training step on random data: every kernel that training launches, not evaluated.

    Returns:
        The loss [], the gradients' norms [P] and, if `optimise`, the new parameters.
    """
    model, (batch, *_) = make_model(config, training=True, dropout=False), make_batches(config)

    def loss() -> mx.array:
        return energy_flow_loss(model, config, batch, key=mx.random.key(0), training_step=0)[0]

    value, gradients = nn.value_and_grad(model, loss)()
    norms = gradient_norms(gradients)[1]
    if not optimise:
        return value, norms, None
    optimiser, trainable = make_optimiser(config), model.trainable_parameters()
    optimiser.init(trainable)
    factors = clip_factors(norms, config.gradient_clip_per_tensor, config.gradient_clip)
    return value, norms, optimiser.apply_gradients(gradients, trainable, factors)


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Standard normal numbers of `shape`."""
    return mx.random.normal(shape).astype(dtype)


def uniform(*shape: int) -> mx.array:
    """Numbers of `shape`, uniform in [-1, 1)."""
    return mx.random.uniform(-1, 1, shape)


def some(*shape: int) -> mx.array:
    """Booleans of `shape`, of which about 80 % are True."""
    return mx.random.uniform(0, 1, shape) < 0.8


def ages(flows: int) -> mx.array:
    """Random ages [flows], int32."""
    return mx.random.randint(1, 20, (flows,), dtype=mx.int32)


def advance_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n = batch * config.slots_per_sample

    def function(kernels: bool, *a: mx.array) -> Any:
        return advance.advance(*a, reflection=True, kernels=kernels)

    halves = [normal(n, 3, dtype=dtype), normal(n, 1, dtype=dtype)]
    return Case(function, [*halves, uniform(n, 3), uniform(n, 1), normal(n, 3), some(n), ages(n)], 4, unread=(1, 3, 6), constant=(5,))


def gru_gates_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n, h = batch * config.slots_per_sample, config.carrier_hidden_size

    def function(kernels: bool, *a: mx.array) -> Any:
        return gru_gates.gru_gates(*a, bound=10.0, kernels=kernels)

    gates = [normal(n, 3 * h, dtype=dtype), normal(n, 3 * h, dtype=dtype)]
    return Case(function, [*gates, normal(3 * h), normal(h), normal(n, h, dtype=dtype), some(n)], 5)


def neuron_weights(config: EnergyConfig) -> list[mx.array]:
    """The twelve parameters of a neuron."""
    h, f = config.neuron_hidden_dim, config.neuron_output_dim
    shapes = [(3, 3), (3,), (h, 4), (h,), (h,), (h,), (h, h), (h,), (h,), (h,), (f, h), (f,)]
    return [0.3 * normal(*shape) for shape in shapes]


def neuron_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n = batch * config.slots_per_sample

    def function(kernels: bool, position: mx.array, energy: mx.array, *weights: mx.array) -> Any:
        options: dict[str, Any] = {"padded": input_size(config), "bound": 10.0, "dtype": dtype}
        return neuron.neuron(position, energy, weights, **options, kernels=kernels)

    return Case(function, [uniform(n, 3), uniform(n, 1), *neuron_weights(config)], 14)


def heads_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n, half = batch * config.slots_per_sample, config.carrier_hidden_size // 2
    inner = half + DISPLACEMENT_WIDTH

    def function(kernels: bool, *a: mx.array) -> Any:
        return heads.heads(*a, kernels=kernels)

    weights = [normal(inner), 0.1 * normal(half), 0.1 * normal(3, DISPLACEMENT_WIDTH), normal(4)]
    return Case(function, [normal(n, inner, dtype=dtype), *weights, mx.ones((1,))], 5)


def flow_step_case(config: EnergyConfig, batch: int, dtype: mx.Dtype, steps: int = 0) -> Case:
    """Whole tiles of flows: one step from any hidden states, or so many steps from those of 0. The weights are packed for the kernel once for many calls, as evaluation does; in a step, each call brings hidden states into its order and back, as evaluation does not."""
    layers, h, m = config.carrier_num_layers, config.carrier_hidden_size, DISPLACEMENT_WIDTH
    options: dict[str, Any] = {"features_bound": 10.0, "bound": 10.0, "reflection": True}
    kernel = flow_step.StepKernel(layers, h, m, config.neuron_hidden_dim, config.neuron_output_dim, **options, dtype=dtype)
    n = -(-batch * config.slots_per_sample // kernel.rows()) * kernel.rows()
    inner = h // 2 + m

    def matrix(outputs: int, inputs: int) -> mx.array:
        return (normal(outputs, inputs) / inputs**0.5).astype(dtype)

    of_layers = [(matrix(3 * h, width), matrix(3 * h, h), normal(3 * h), normal(h)) for width in (input_size(config), *[h] * (layers - 1))]
    heads = (matrix(inner, h), normal(inner), 0.1 * normal(h // 2), 0.1 * normal(3, m), normal(4))
    weights = flow_step.Weights(neuron_weights(config), of_layers, heads)
    packed = kernel.packed(neuron.pack(weights.neuron), weights.layers, weights.heads)

    def function(kernels: bool, *a: Any) -> Any:
        (position, energy, hidden, active, age, scale), given = a[:6], a[6:]
        if kernels and steps:
            return kernel.life(packed, position, energy, active, age, scale, steps)
        if kernels:
            move, after = kernel(packed, position, energy, kernel.padded(hidden), active, age, scale)
            return move, kernel.unpadded(after, n)
        of_layers = [given[at : at + 4] for at in range(12, 12 + 4 * layers, 4)]
        own = flow_step.Weights(given[:12], of_layers, given[12 + 4 * layers :])
        if steps:
            return flow_step.flow_life_reference(position, energy, hidden, active, age, scale, own, steps=steps, **options)
        return flow_step.flow_step_reference(position, energy, hidden, active, age, scale, own, **options)

    hidden = mx.zeros((layers, n, h), dtype=dtype) if steps else uniform(layers, n, h).astype(dtype)
    flows = [uniform(n, 3), uniform(n, 1), hidden, some(n), ages(n), mx.ones((1,))]
    return Case(function, [*flows, *leaves(weights)], 0, held=list(packed))


def collect_case(
    config: EnergyConfig, batch: int, dtype: mx.Dtype, method: str = "nearest", deterministic: bool = True
) -> Case:
    n = batch * config.slots_per_sample
    size: dict[str, Any] = {"batch": batch, "width": config.lattice_width, "height": config.lattice_height, "method": method}

    def function(kernels: bool, *a: mx.array) -> Any:
        return collect.collect(*a, **size, deterministic=deterministic, kernels=kernels)

    sample = mx.repeat(mx.arange(batch, dtype=mx.int32), config.slots_per_sample)
    return Case(function, [uniform(n, 1), uniform(n, 3), ages(n), sample, some(n)], 2)


def spawn_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    slots, children = config.slots_per_sample, config.slots_per_sample - config.surface_dim
    threshold, most = config.spawn_movement_threshold_ratio, config.max_spawn_per_step
    options: dict[str, Any] = {"slots": children, "threshold": threshold, "most": most}

    def function(kernels: bool, *a: mx.array) -> Any:
        return spawn.spawn(*a, **options, kernels=kernels)[:3]  # the last is an argument

    length = mx.abs(uniform(batch, slots)) * 2.5 * config.spawn_movement_threshold_ratio
    taken = mx.full((batch,), children // 4, dtype=mx.int32)
    return Case(function, [length, some(batch, slots), taken, mx.full((batch,), 1_000_000, dtype=mx.int32)], 0)


def inherit_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    """The hidden state of one layer; each sample has children in half of its child slots."""
    slots, children = config.slots_per_sample, config.slots_per_sample - config.surface_dim
    born = -(-children // 2)
    parent = mx.broadcast_to(mx.where(mx.arange(children) < born, mx.arange(children) // 2, -1), (batch, children))
    births = spawn.Births(mx.contiguous(parent), *(mx.full((batch,), number, dtype=mx.int32) for number in (born, 0, 0)))

    def function(kernels: bool, hidden: mx.array, parent: mx.array) -> Any:
        return inherit.inherit(hidden, hidden, births._replace(parent=parent), kernels=kernels)

    rows = normal(batch * slots, config.carrier_hidden_size, dtype=dtype)
    return Case(function, [rows, births.parent], 1, unread=(0,))


def bias_gelu_norm_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    """The sizes of the mapper's first layer."""
    d = intermediate_size(config.embedding_dim, config.surface_dim)

    def function(kernels: bool, *a: mx.array) -> Any:
        return bias_gelu_norm.bias_gelu_norm(*a, kernels=kernels)

    return Case(function, [normal(batch, d, dtype=dtype), normal(d), normal(d), normal(d)], 4)


def embedding_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    entries = config.text_vocab_size

    def function(kernels: bool, *a: mx.array) -> Any:
        return embedding.embedding(*a, kernels=kernels)

    ids = mx.random.randint(0, entries, (batch, config.text_max_length), dtype=mx.int32)
    return Case(function, [normal(entries, config.text_model_dim, dtype=dtype), ids], 1, unread=(0,), picked=(0,))


def masked_mean_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    tokens, d = config.text_max_length, config.text_model_dim

    def function(kernels: bool, *a: mx.array) -> Any:
        return masked_mean.masked_mean(*a, kernels=kernels)

    return Case(function, [normal(batch, tokens, d, dtype=dtype), some(batch, tokens)], 1, unread=(0,))


def adamw_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    """As many tensors as one launch takes, each of the size of a GRU layer's largest weight; gradients in `dtype`."""
    h = config.carrier_hidden_size
    numbers = mx.array([1e-3, 1e-5, 0.9, 0.999, 1e-8, 0.1, 0.01])

    def function(kernels: bool, *a: mx.array) -> Any:
        tensors = [adamw.AdamTensor(*a[4 * n : 4 * n + 4]) for n in range(adamw.TENSORS)]
        new = adamw.adamw(tensors, adamw.AdamStep(*a[4 * adamw.TENSORS :]), kernels=kernels)
        return [array for stepped in new for array in stepped]

    arrays = [normal(3 * h, h, dtype=dtype if n % 4 == 1 else mx.float32) for n in range(4 * adamw.TENSORS)]
    arrays[3::4] = [mx.abs(second) for second in arrays[3::4]]
    return Case(function, [*arrays, numbers, mx.ones((adamw.TENSORS,)), mx.array([True]), mx.ones((adamw.TENSORS,))], 0)


def norms_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    """The gradients of a GRU layer's weights, twice."""
    h = config.carrier_hidden_size

    def function(kernels: bool, *a: mx.array) -> Any:
        return norms.l2_norms(list(a), kernels=kernels)

    shapes = [shape for shape in ((3 * h, h), (3 * h, h), (3 * h,), (h,)) for _ in range(2)]
    return Case(function, [normal(*shape, dtype=mx.float32 if len(shape) == 1 else dtype) for shape in shapes], 0)


# The part of a name before the comma is the op's name in kernels/.
CASES: dict[str, Callable[[EnergyConfig, int, mx.Dtype], Case]] = {
    "advance": advance_case,
    "gru_gates": gru_gates_case,
    "neuron": neuron_case,
    "heads": heads_case,
    "flow_step": flow_step_case,
    "flow_step, life": partial(flow_step_case, steps=3),
    "spawn": spawn_case,
    "inherit": inherit_case,
    "collect, nearest": collect_case,
    "collect, nearest, atomics": partial(collect_case, deterministic=False),
    "collect, bilinear": partial(collect_case, method="bilinear"),
    "collect, bilinear, atomics": partial(collect_case, method="bilinear", deterministic=False),
    "bias_gelu_norm": bias_gelu_norm_case,
    "embedding": embedding_case,
    "masked_mean": masked_mean_case,
    "adamw": adamw_case,
    "norms": norms_case,
}


def fitting(name: str, config: EnergyConfig, dtype: mx.Dtype, most: int) -> tuple[int, Case]:
    """The batch size and the case: the preset's batch size, halved until the arrays take at most `most` bytes."""
    batch = config.batch_size
    case = CASES[name](config, batch, dtype)
    while sum(array.nbytes for array in case.arrays) > most and batch > 1:
        batch = -(-batch // 2)
        case = CASES[name](config, batch, dtype)
    return batch, case
