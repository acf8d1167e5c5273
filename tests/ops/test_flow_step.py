"""flow_step: kernel against reference, sizes it refuses, and mutants."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import survivors

from energy_flow_mlx.ops import flow_step as op
from energy_flow_mlx.ops.flow_step import StepKernel, Weights, flow_life_reference, flow_step, flow_step_reference
from energy_flow_mlx.ops.kernel import build

from . import test_neuron
from .kernel_parity import HARNESS, backends, kernels_on, same

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
# Of the largest element. The reference runs in float32 on the same numbers; hidden states go from layer to layer in 16 bits.
TOLERANCE = {mx.float32: 2e-5, mx.float16: 2e-3, mx.bfloat16: 2e-2}
BOUNDS: dict[str, Any] = {"features_bound": 0.7, "bound": 0.5, "reflection": True}


def arguments(flows: int, layers: int, size: int, hidden: int = 4, features: int = 3, seed: int = 0) -> tuple[list[mx.array], Weights]:
    """The arrays of `flow_step`, and its weights."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> mx.array:
        return mx.array((scale * rng.standard_normal(shape)).astype(np.float32))

    position, energy, *neuron = test_neuron.arguments(flows, hidden, features, seed)
    widths = [-(-(features + 1) // 8) * 8, *[size] * (layers - 1)]
    of_layers = [
        (normal(3 * size, width, scale=width**-0.5), normal(3 * size, size, scale=size**-0.5), normal(3 * size), normal(size)) for width in widths
    ]
    inner = size // 2 + 8
    heads = (normal(inner, size, scale=size**-0.5), normal(inner), normal(size // 2, scale=0.2), normal(3, 8, scale=0.4), normal(4, scale=0.2))
    state = mx.array(rng.uniform(-0.5, 0.5, (layers, flows, size)).astype(np.float32))
    active, age = mx.array(rng.random(flows) < 0.8), mx.array(rng.integers(0, 5, flows), dtype=mx.int32)
    return [position, energy, state, active, age, mx.array([0.7])], Weights(neuron, of_layers, heads)


def in_dtype(flows: list[mx.array], weights: Weights, dtype: mx.Dtype) -> tuple[list[mx.array], Weights]:
    """With hidden states and matrices rounded to it."""
    layers = [(a.astype(dtype), b.astype(dtype), *biases) for a, b, *biases in weights.layers]
    heads = (weights.heads[0].astype(dtype), *weights.heads[1:])
    return [*flows[:2], flows[2].astype(dtype), *flows[3:]], weights._replace(layers=layers, heads=heads)


def parity(where: str, flows: list[mx.array], weights: Weights, dtype: mx.Dtype, seed: int = 0, **options: Any) -> tuple[mx.array, ...]:
    """The kernel's results, once they are the reference's."""
    rounded = in_dtype(flows, weights, dtype)
    with mx.stream(mx.cpu):
        move, hidden = flow_step_reference(*in_dtype(rounded[0], rounded[1], mx.float32)[0], in_dtype(*rounded, mx.float32)[1], **options)
        wanted = *move, hidden
        mx.eval(wanted)
    with kernels_on(where, seed):
        move, hidden = flow_step(*rounded[0], rounded[1], **options, kernels=True)
        actual = *move, hidden
        mx.eval(actual)
    assert hidden.dtype == dtype
    for a, w in zip(actual, wanted, strict=True):
        same(a, w, TOLERANCE[dtype] if mx.issubdtype(a.dtype, mx.floating) else 0.0)
    return actual


def calls() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """A step and a life in every dtype, as functions without a gradient."""

    def call(dtype: mx.Dtype) -> Callable[..., Any]:
        def run(age: mx.array) -> list[mx.array]:
            given, weights = in_dtype(*arguments(9, 2, 16), dtype)
            given[4] = age
            move, _ = flow_step(*given, weights, **BOUNDS, kernels=True)
            kernel = StepKernel(2, 16, 8, 4, 3, **BOUNDS, dtype=dtype)
            packed = kernel.packed(test_neuron.pack(weights.neuron), weights.layers, weights.heads)
            position, energy, _, active, age, scale = given
            life = kernel.life(packed, position, energy, active, age, scale, 2, 0.1)
            return [move.terminated, move.age, life.arrived, life.age]

        return run

    return [(call(dtype), [mx.ones((9,), dtype=mx.int32)]) for dtype in DTYPES]


@backends
@pytest.mark.parametrize(
    ("flows", "layers", "size", "hidden", "features", "dtype"),
    # Fewer flows than two, than a SIMD-group's, and more than a tile; features with and without zeros behind the energy; more columns than SIMD-groups.
    [(1, 1, 16, 4, 3, mx.float16), *((7, 2, 16, 8, 15, dtype) for dtype in DTYPES), *((37, 3, 48, 12, 20, dtype) for dtype in (mx.float32, mx.bfloat16))],
)
def test_kernel_equals_reference(where: str, flows: int, layers: int, size: int, hidden: int, features: int, dtype: mx.Dtype) -> None:
    parity(where, *arguments(flows, layers, size, hidden, features), dtype)


@backends
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_bounds_reflection_and_planes(where: str, dtype: mx.Dtype) -> None:
    flows, weights = arguments(40, 2, 16)
    position = np.array(flows[0])
    position[:, 2] *= 1.05
    flows[0] = mx.array(np.clip(position, -1, 1))
    *move, _ = parity(where, flows, weights, dtype, **BOUNDS)
    assert 0 < mx.sum(move[2]).item() < 40  # some arrive


@backends
def test_numbers_that_are_none_stay_in_the_lattice(where: str) -> None:
    flows, weights = arguments(9, 1, 16)
    energy, state = np.array(flows[1]), np.array(flows[2])
    energy[1], energy[2], state[0, 3, 5] = np.nan, np.inf, np.nan
    flows[1], flows[2] = mx.array(energy), mx.array(state)
    flows[3] = mx.ones((9,), dtype=mx.bool_)
    position, *_, hidden = parity(where, flows, weights, mx.float32, features_bound=10.0, bound=10.0)
    assert mx.all(mx.abs(position) <= 1).item() and mx.all(mx.isfinite(hidden)).item()


@pytest.mark.parametrize(("rows", "group", "parts"), [(16, 64, 1), (48, 64, 1), (32, 128, 2), (48, 96, 3)])
def test_tiles_of_other_sizes_and_any_order_of_threads_give_the_same_bits(
    rows: int, group: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows, weights = arguments(50, 2, 32, 8, 20)
    wanted = parity(HARNESS, flows, weights, mx.bfloat16, **BOUNDS)
    monkeypatch.setitem(op.ROWS, "metal", (rows,))
    monkeypatch.setitem(op.GROUP, "metal", group)
    monkeypatch.setitem(op.PARTS, "metal", parts)
    for seed in (1, 2):
        actual = parity(HARNESS, flows, weights, mx.bfloat16, seed, **BOUNDS)
        # A head's sum is made of one sum a SIMD-group, so that its last bits depend on their number; hidden states do not.
        assert mx.array_equal(actual[-1], wanted[-1])
        if seed == 1:
            first = actual
    assert all(mx.array_equal(a, b) for a, b in zip(first, actual, strict=True))


@backends
@pytest.mark.parametrize(("dtype", "shortest"), [(mx.float32, 0.3), (mx.bfloat16, None)])
def test_a_life_is_its_steps(where: str, dtype: mx.Dtype, shortest: float | None) -> None:
    """Bit for bit; and its first tile, whose flows have all ended, stops early."""
    flows, weights = in_dtype(*arguments(75, 2, 16), dtype)
    flows[2], active = mx.zeros_like(flows[2]), np.array(flows[3])
    active[:32] = False
    flows[3] = mx.array(active)
    flows[5] = mx.array([0.3])
    position, energy, hidden, active, age, scale = flows
    kernel = StepKernel(2, 16, 8, 4, 3, **BOUNDS, dtype=dtype)
    with kernels_on(where):
        packed = kernel.packed(test_neuron.pack(weights.neuron), weights.layers, weights.heads)
        life = kernel.life(packed, position, energy, active, age, scale, 3, shortest)
        state, arrived, dropped = kernel.padded(hidden), mx.zeros_like(active), mx.zeros_like(active)
        for _ in range(3):
            move, state = kernel(packed, position, energy, state, active, age, scale)
            short = move.moving & (move.length < (0.0 if shortest is None else shortest))
            position, energy, age = move.position, move.energy, move.age
            active, arrived, dropped = move.moving & ~short, arrived | move.terminated, dropped | short
        mx.eval(life, position, energy, active, age, arrived, dropped)
    assert all(mx.array_equal(a, w) for a, w in zip(life, (position, energy, active, age, arrived, dropped), strict=True))
    counts = [int(mx.sum(x).item()) for x in (active, arrived, dropped)]
    assert counts[0] > 0 and counts[1] > 0 and (counts[2] > 0) == (shortest is not None)
    if dtype == mx.float32:
        with mx.stream(mx.cpu):
            wanted = flow_life_reference(*flows, weights, steps=3, shortest=shortest, **BOUNDS)
            mx.eval(wanted)
        for a, w in zip(life, wanted, strict=True):
            same(a, w, 1e-4 if mx.issubdtype(a.dtype, mx.floating) else 0.0)


def test_sizes_that_do_not_suit() -> None:
    kernel = StepKernel(2, 32, 8, 8, 20, None, None, False, mx.bfloat16)
    assert kernel.unsuited() == "" and kernel.rows() == 32
    assert "carrier_hidden_size=24" in kernel._replace(size=24).unsuited()
    assert "displacement head's 12" in kernel._replace(inner=12).unsuited()
    assert "neuron_hidden_dim=6" in kernel._replace(hidden=6).unsuited()
    assert kernel._replace(features=500).rows() == 16  # threadgroup memory takes fewer rows
    assert "neuron_output_dim=2000" in kernel._replace(features=2000).unsuited()
    flows, weights = arguments(3, 1, 8)
    with pytest.raises(ValueError, match="carrier_hidden_size=8 is no multiple of 16"):
        flow_step(*flows, weights, kernels=True)


def test_a_gradient_is_refused() -> None:
    flows, weights = arguments(3, 1, 16)

    def loss(energy: mx.array) -> mx.array:
        return mx.sum(flow_step(flows[0], energy, *flows[2:], weights, kernels=True)[0].energy)

    with kernels_on(HARNESS), pytest.raises(NotImplementedError, match="auto,-flow_step"):
        mx.eval(mx.grad(loss)(flows[1]))


def test_broken_kernels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(op.GROUP, "metal", 64)  # two SIMD-groups, so that each has flows and columns twice

    def check() -> None:
        flows, weights = arguments(41, 2, 32, 4, 14)
        (wanted, hidden), (move, own) = (
            function(*flows, weights, **BOUNDS, **forced) for function, forced in ((flow_step_reference, {}), (flow_step, {"kernels": True}))
        )
        mx.eval(move, own)
        for a, w in zip((*move, own), (*wanted, hidden), strict=True):
            same(a, w, 2e-5)

    def check_life() -> None:
        flows, weights = arguments(41, 1, 16)
        flows[2], flows[5] = mx.zeros_like(flows[2]), mx.array([0.5])
        kernel = StepKernel(1, 16, 8, 4, 3, **BOUNDS, dtype=mx.float32)
        packed = kernel.packed(test_neuron.pack(weights.neuron), weights.layers, weights.heads)
        position, energy, _, active, age, scale = flows
        life = kernel.life(packed, position, energy, active, age, scale, 3, 0.1)
        mx.eval(life)
        for a, w in zip(life, flow_life_reference(*flows, weights, steps=3, shortest=0.1, **BOUNDS), strict=True):
            same(a, w, 1e-4 if mx.issubdtype(a.dtype, mx.floating) else 0.0)

    of_life = [
        ("threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);  // flows as they start", ""),
        ("threadgroup_barrier(mem_flags::mem_threadgroup);  // moves", ""),
        ("if (left == 0) break;", "if (left < 32) break;"),
    ]
    assert not survivors(check_life, of_life, caches=[build])

    barrier = "threadgroup_barrier(mem_flags::mem_"
    edits = [
        (barrier + "threadgroup);  // features", ""),
        (barrier + "device);  // the first layer's hidden states", ""),
        (barrier + "threadgroup);  // sums of each SIMD-group", ""),
        ("simdgroup_barrier(mem_flags::mem_threadgroup);  // before the next flows' inputs and activations", ""),
        ("if (i >= flows) continue;\n        float place", "float place"),
        ("% TURNS * AT_ONCE", "* AT_ONCE"),
        ("done + AHEAD + a, STEPS - 1)", "done + a, STEPS - 1)"),
        ("return x + simd_shuffle_xor(x, 8);", "return x + simd_shuffle_xor(x, 2);"),
        ("tile + 8 * j, 16, 0, true);", "tile + 8 * j, 16, 0, false);"),
        ("return 16 * row + column;", "return row + 16 * column;"),
        ("row / 16 * 16 * columns + column / 16 * 256", "column / 16 * 16 * columns + row / 16 * 256"),
    ]
    assert not survivors(check, edits, caches=[build])
