"""Kernels on the CPU against NumPy and against MLX's own operations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from . import examples, metal_on_cpu

RNG = np.random.default_rng(7)
SIZES = [1, 5, 7, 8, 31, 33, 255, 256, 257, 1000]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_one_thread_an_element(size: int) -> None:
    x = normal(size)
    with metal_on_cpu():
        y = np.array(examples.affine(mx.array(x)))
    np.testing.assert_array_equal(y, x * np.float32(1.5) + np.float32(0.25))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_16_bit_values_round_as_astype_does(dtype: mx.Dtype) -> None:
    # Every finite bit pattern of the type, and what lies between neighbours through the affine map.
    patterns = mx.arange(65536).astype(mx.uint16).view(dtype)
    finite = np.isfinite(np.array(patterns.astype(mx.float32)))
    x = mx.array(np.arange(65536, dtype=np.uint16)[finite]).view(dtype)
    with metal_on_cpu(checked=False):
        y = examples.affine(x)
    wanted = (x.astype(mx.float32) * 1.5 + 0.25).astype(dtype)
    assert y.dtype == dtype
    assert mx.array_equal(y.view(mx.uint16), wanted.view(mx.uint16))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_16_bit_arithmetic_rounds_after_each_operation(dtype: mx.Dtype) -> None:
    a, b, c = (mx.array(normal(512)).astype(dtype) for _ in range(3))
    body = "uint i = thread_position_in_grid.x; y[i] = a[i] * b[i] + c[i];"
    with metal_on_cpu():
        (y,) = examples.call(body, {"a": a, "b": b, "c": c}, {"y": ((512,), dtype)}, (512, 1, 1))
    assert mx.array_equal(y, a * b + c)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8, mx.int64, mx.bool_, mx.float32])
def test_input_and_output_types(dtype: mx.Dtype) -> None:
    x = mx.array(RNG.integers(0, 2, 40)).astype(dtype)
    body = "uint i = thread_position_in_grid.x; y[i] = x[i]; z[i] = x[i] ? 3 : -4;"
    with metal_on_cpu():
        y, z = examples.call(body, {"x": x}, {"y": ((40,), dtype), "z": ((40,), mx.int32)}, (40, 1, 1))
    assert y.dtype == dtype and mx.array_equal(y, x)
    assert mx.array_equal(z, mx.where(x.astype(mx.bool_), 3, -4))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 128), (2, 1000)])
@pytest.mark.parametrize("group", [32, 128])
def test_simd_and_threadgroup_reduction(shape: tuple[int, int], group: int) -> None:
    x = normal(*shape)
    with metal_on_cpu():
        y = np.array(examples.row_sum(mx.array(x), group))
    np.testing.assert_allclose(y, x.astype(np.float64).sum(1), atol=2e-4)


@pytest.mark.parametrize("size", [1, 63, 64, 300])
def test_barriers_in_a_loop(size: int) -> None:
    x = normal(size)
    with metal_on_cpu():
        y = np.array(examples.tree_sum(mx.array(x)))
    padded = np.pad(x.astype(np.float64), (0, -size % 64)).reshape(-1, 64)
    np.testing.assert_allclose(y, padded.sum(1), atol=1e-4)


@pytest.mark.parametrize("size", [1, 33, 500, 1024])
def test_prefix_sum(size: int) -> None:
    x = RNG.integers(0, 9, size).astype(np.uint32)
    with metal_on_cpu():
        y = np.array(examples.prefix_sum(mx.array(x)))
    np.testing.assert_array_equal(y, np.cumsum(x) - x)


def test_atomic_scatter_add() -> None:
    value, cell = normal(500), RNG.integers(0, 11, 500).astype(np.int32)
    with metal_on_cpu():
        sums = np.array(examples.scatter_add(mx.array(value), mx.array(cell), 11))
    np.testing.assert_allclose(sums, np.bincount(cell, value, minlength=11), atol=1e-4)


def test_integer_atomics_and_compare_exchange() -> None:
    body = """
        uint i = thread_position_in_grid.x;
        atomic_fetch_max_explicit(&y[0], x[i], memory_order_relaxed);
        atomic_fetch_min_explicit(&y[1], x[i], memory_order_relaxed);
        atomic_fetch_or_explicit(&y[2], x[i], memory_order_relaxed);
        int seen = atomic_load_explicit(&y[3], memory_order_relaxed);
        while (!atomic_compare_exchange_weak_explicit(&y[3], &seen, seen + 2, memory_order_relaxed, memory_order_relaxed)) {}
    """
    x = RNG.integers(0, 1000, 100).astype(np.int32)
    with metal_on_cpu():
        (y,) = examples.call(
            body, {"x": mx.array(x)}, {"y": ((4,), mx.int32)}, (100, 1, 1), init_value=7, atomic_outputs=True
        )
    assert y.tolist() == [max(x.max(), 7), min(x.min(), 7), int(np.bitwise_or.reduce(x)) | 7, 207]


def test_threadgroup_atomics_make_a_histogram() -> None:
    body = """
        threadgroup atomic<uint> counts[8];
        uint t = thread_position_in_threadgroup.x;
        if (t < 8) atomic_store_explicit(&counts[t], 0u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        atomic_fetch_add_explicit(&counts[x[thread_position_in_grid.x]], 1u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t < 8) y[threadgroup_position_in_grid.x * 8 + t] = atomic_load_explicit(&counts[t], memory_order_relaxed);
    """
    x = RNG.integers(0, 8, 150).astype(np.uint32)
    with metal_on_cpu():
        (y,) = examples.call(body, {"x": mx.array(x)}, {"y": ((3, 8), mx.uint32)}, (150, 1, 1), (64, 1, 1))
    wanted = [np.bincount(part, minlength=8) for part in (x[:64], x[64:128], x[128:])]
    np.testing.assert_array_equal(np.array(y), wanted)


def test_shuffles_and_votes() -> None:
    body = """
        uint i = thread_position_in_grid.x;
        uint lane = thread_index_in_simdgroup;
        down[i] = simd_shuffle_down(x[i], 3);
        up[i] = simd_shuffle_up(x[i], 3);
        swapped[i] = simd_shuffle_xor(x[i], 1);
        ninth[i] = simd_broadcast(x[i], 9);
        votes[i] = uint(simd_vote::vote_t(simd_ballot(x[i] > 15)));
        filled[i] = simd_shuffle_and_fill_down(x[i], -x[i], 3);
        most[i] = simd_max(x[i]) * 100 + simd_min(x[i]) + (simd_all(lane < 32) ? 1000000 : 0);
    """
    x = RNG.permutation(32).astype(np.int32)
    outputs = {name: ((32,), mx.int32) for name in ("down", "up", "swapped", "ninth", "votes", "filled", "most")}
    outputs["votes"] = ((32,), mx.uint32)
    with metal_on_cpu():
        down, up, swapped, ninth, votes, filled, most = map(
            np.array, examples.call(body, {"x": mx.array(x)}, outputs, (32, 1, 1))
        )
    np.testing.assert_array_equal(down, np.concatenate([x[3:], x[-3:]]))
    np.testing.assert_array_equal(up, np.concatenate([x[:3], x[:-3]]))
    np.testing.assert_array_equal(swapped, x.reshape(-1, 2)[:, ::-1].ravel())
    np.testing.assert_array_equal(filled, np.concatenate([x[3:], -x[:3]]))
    assert set(ninth) == {x[9]} and set(votes) == {int(np.sum((x > 15) << np.arange(32)))}
    assert set(most) == {31 * 100 + 1000000}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_matrices_of_a_simd_group(dtype: mx.Dtype) -> None:
    """y = x[:, 8:16] w.T + 2 for 8 rows of x in device memory, and of w through threadgroup memory."""
    body = """
        uint lane = thread_index_in_simdgroup;
        threadgroup T own[128];
        for (uint i = lane; i < 128; i += 32) own[i] = w[i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_matrix<T, 8, 8> a, b;
        simdgroup_matrix<float, 8, 8> sum;
        sum.thread_elements()[0] = sum.thread_elements()[1] = 2;
        simdgroup_load(a, x + 8, 24);
        simdgroup_load(b, &own[8], 16, 0, true);
        simdgroup_multiply_accumulate(sum, a, b, sum);
        simdgroup_store(sum, y, 8);
    """
    x, w = (mx.array(RNG.standard_normal(shape)).astype(dtype) for shape in ((8, 24), (8, 16)))
    with metal_on_cpu():
        (y,) = examples.call(body, {"x": x, "w": w}, {"y": ((8, 8), mx.float32)}, (32, 1, 1), template=[("T", dtype)])
    a, b = (np.array(part.astype(mx.float32)) for part in (x[:, 8:16], w[:, 8:]))
    np.testing.assert_allclose(np.array(y), a @ b.T + 2, rtol=1e-5, atol=1e-5)


def test_a_shuffle_from_a_lane_outside_the_grid_is_not_a_number() -> None:
    body = "uint i = thread_position_in_grid.x; y[i] = simd_shuffle_down(x[i], 16);"
    with metal_on_cpu():
        (y,) = examples.call(body, {"x": mx.ones((20,))}, {"y": ((20,), mx.float32)}, (20, 1, 1))
    wanted = [1.0] * 4 + [float("nan")] * 12 + [1.0] * 4  # lanes 4 to 15 read lanes 20 to 31, which do not exist
    np.testing.assert_array_equal(np.array(y), wanted)


def test_only_active_lanes_take_part() -> None:
    body = "uint i = thread_position_in_grid.x; if (i % 3 == 0) { y[i] = -1; return; } y[i] = simd_sum(1);"
    with metal_on_cpu():
        (y,) = examples.call(body, {}, {"y": ((40,), mx.int32)}, (40, 1, 1))
    active = np.arange(40) % 3 != 0
    wanted = np.where(active, np.repeat([active[:32].sum(), active[32:].sum()], [32, 8]), -1)
    np.testing.assert_array_equal(np.array(y), wanted)


@pytest.mark.parametrize("view", ["transposed", "sliced", "reversed", "broadcast"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_strided_inputs(view: str, dtype: mx.Dtype) -> None:
    base = mx.array(normal(6, 10)).astype(dtype)
    mx.eval(base)
    x = {
        "transposed": base.T,
        "sliced": base[1::2, 2:9:3],
        "reversed": base[::-1],
        "broadcast": mx.broadcast_to(base[2:3], (4, 10)),
    }[view]
    body = """
        uint i = thread_position_in_grid.x;
        if (i == 0) { steps[0] = int(x_strides[0]); steps[1] = int(x_strides[1]); }
        y[i] = x[elem_to_loc(int64_t(i), x_shape, x_strides, x_ndim)];
    """
    outputs = {"y": (x.shape, dtype), "steps": ((2,), mx.int32)}
    with metal_on_cpu():
        y, steps = examples.call(body, {"x": x}, outputs, (x.size, 1, 1), ensure_row_contiguous=False)
        again, row_major = examples.call(body, {"x": x}, outputs, (x.size, 1, 1))
    assert mx.array_equal(y, x) and mx.array_equal(again, x)
    assert row_major.tolist() == [x.shape[1], 1]
    assert steps.tolist() == {"transposed": [1, 10], "sliced": [20, 3], "reversed": [-10, 1], "broadcast": [0, 1]}[view]


def test_template_arguments() -> None:
    body = "uint i = thread_position_in_grid.x; if (FLIP) y[i] = T(COUNT) - T(x[i]); else y[i] = T(x[i]);"
    x = mx.arange(9).astype(mx.float32)
    with metal_on_cpu():
        for flip in (True, False):
            template = [("T", mx.float16), ("COUNT", 12), ("FLIP", flip)]
            (y,) = examples.call(body, {"x": x}, {"y": ((9,), mx.float16)}, (9, 1, 1), template=template)
            assert mx.array_equal(y, (12 - x if flip else x).astype(mx.float16))


def test_scalar_inputs_and_init_value() -> None:
    body = "uint i = thread_position_in_grid.x; if (i % 2) y[i] = bfloat16_t(scale * i);"
    with metal_on_cpu():
        (y,) = examples.call(body, {"scale": 2.5}, {"y": ((6,), mx.bfloat16)}, (6, 1, 1), init_value=-1.5)
    assert y.tolist() == [-1.5, 2.5, -1.5, 7.5, -1.5, 12.5]


def test_grids_of_three_dimensions() -> None:
    body = """
        uint3 p = thread_position_in_grid;
        uint3 size = threads_per_grid;
        uint at = (p.z * size.y + p.y) * size.x + p.x;
        y[at] = p.x + 10 * p.y + 100 * p.z;
        uint3 local = thread_position_in_threadgroup, group = threads_per_threadgroup;
        bool same = thread_index_in_threadgroup == (local.z * group.y + local.y) * group.x + local.x
            && all(threadgroup_position_in_grid * dispatch_threads_per_threadgroup + local == p)
            && thread_index_in_threadgroup == simdgroup_index_in_threadgroup * threads_per_simdgroup + thread_index_in_simdgroup;
        ok[at] = same;
    """
    with metal_on_cpu():  # no dimension is a multiple of the threadgroup
        y, ok = examples.call(
            body, {}, {"y": ((4, 6, 9), mx.uint32), "ok": ((4, 6, 9), mx.bool_)}, (9, 6, 4), (4, 4, 3)
        )
    z, yy, x = np.meshgrid(np.arange(4), np.arange(6), np.arange(9), indexing="ij")
    np.testing.assert_array_equal(np.array(y), x + 10 * yy + 100 * z)
    assert bool(ok.all())


def test_any_order_of_threads_gives_the_same_result() -> None:
    x = mx.array(normal(300))
    results = []
    for seed in (0, 1, 2):
        with metal_on_cpu(seed=seed):
            results.append(examples.tree_sum(x))
    assert mx.array_equal(results[0], results[1]) and mx.array_equal(results[0], results[2])


def test_float_atomics_depend_on_the_order() -> None:
    # The seed must really change the order: a sum of mixed magnitudes then rounds differently.
    value = mx.array(normal(400) * 10.0 ** RNG.integers(-3, 4, 400), mx.float32)
    sums = set()
    for seed in range(6):
        with metal_on_cpu(seed=seed):
            sums.add(examples.scatter_add(value, mx.zeros((400,), mx.int32), 1).item())
    assert len(sums) > 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_correct_kernels_are_not_accused_in_any_order(seed: int) -> None:
    x = mx.array(normal(300))
    counts = mx.array(RNG.integers(0, 5, 700).astype(np.uint32))
    with metal_on_cpu(seed=seed):
        mx.eval(examples.affine(x), examples.tree_sum(x), examples.row_sum(x.reshape(3, 100)))
        mx.eval(examples.scatter_add(x, mx.zeros((300,), mx.int32), 1), examples.gated(x, x))
        assert mx.array_equal(examples.prefix_sum(counts), mx.cumsum(counts, inclusive=False))
