"""What a GPU leaves undefined must be reported, with buffer, element and thread; what it allows must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import pytest

from . import KernelError, KernelFault, examples, metal_on_cpu

FLOATS = {"y": ((64,), mx.float32)}


def run(
    body: str,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, examples.Output] | None = None,
    **options: Any,
) -> list[mx.array]:
    options = {"grid": (64, 1, 1), "threadgroup": (64, 1, 1), **options}
    with metal_on_cpu():
        return examples.call(body, inputs or {}, outputs or FLOATS, **options)


def fault(body: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(KernelFault) as caught:
        run(body, *arguments, **options)
    return str(caught.value)


INDEX = "uint i = thread_position_in_grid.x;\n"


@pytest.mark.parametrize(
    ("index", "element", "thread"),
    [("i + 1", "64", "63"), ("int(i) - 1", "-1", "0"), ("i - 1", "4294967295", "0"), ("i * 1000000u", "1000000", "1")],
)
@pytest.mark.parametrize("access", ["read", "written"])
def test_out_of_bounds(index: str, element: str, thread: str, access: str) -> None:
    body = f"y[i] = x[{index}];" if access == "read" else f"z[{index}] = x[i]; y[i] = 0;"
    message = fault(INDEX + body, {"x": mx.ones((64,))}, {**FLOATS, "z": ((64,), mx.float32)}, init_value=0)
    assert f"element {element} of '{'x' if access == 'read' else 'z'}' is {access}" in message
    assert f"thread ({thread}, 0, 0) of the grid" in message and "64 elements" in message


def test_out_of_bounds_of_small_inputs_and_of_what_mlx_adds() -> None:
    assert "element 3 of 'x' is read" in fault(INDEX + "y[i] = x[i];", {"x": mx.ones((3,))})
    assert "element 2 of 'x_shape' is read" in fault(INDEX + "y[i] = x_shape[2];", {"x": mx.ones((3, 3))})


def test_out_of_bounds_of_a_vector_access() -> None:
    body = INDEX + "float4 v = *(const device float4*)(x + 2 * i - 2 * (i % 2)); y[i] = v.x + v.y + v.z + v.w;"
    message = fault(body, {"x": mx.ones((64,))})
    assert "element 64 of 'x' is read (16 bytes)" in message


def test_out_of_bounds_of_threadgroup_and_private_arrays() -> None:
    body = "threadgroup float tile[32]; uint t = thread_position_in_threadgroup.x; threadgroup float* p = tile; p[t] = 1; y[t] = 0;"
    assert "element 32 of 'tile' is written" in fault(body)
    assert "index outside the array" in fault(
        INDEX + "float own[4] = {1, 2, 3, 4}; y[i] = own[int(x[i])];", {"x": mx.full((64,), 5.0)}
    )


def test_missing_bound_test() -> None:
    assert "element 64 of 'y' is written" in fault(INDEX + "y[i] = 1;", grid=(70, 1, 1))


def test_race_between_threads_of_a_group() -> None:
    tile = "threadgroup float tile[64]; uint t = thread_position_in_threadgroup.x; tile[t] = t; {barrier} y[t] = tile[63 - t];"
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    assert run(tile.format(barrier=barrier))[0].tolist() == list(range(63, -1, -1))
    # read before it was written, in this order of threads; the reverse order meets the race itself
    assert "'tile' is read before anything was written" in fault(tile.format(barrier=""))
    assert "race on element 0 of 'tile'" in fault(
        "threadgroup float tile[1]; uint t = thread_position_in_threadgroup.x; tile[0] = t; y[t] = tile[0];"
    )


def test_a_barrier_orders_the_memory_it_names() -> None:
    body = (
        "uint t = thread_position_in_threadgroup.x; y[t] = t; threadgroup_barrier(mem_flags::{flag}); z[t] = y[63 - t];"
    )
    outputs = {**FLOATS, "z": ((64,), mx.float32)}
    assert run(body.format(flag="mem_device"), {}, outputs)[1][0].item() == 63
    assert "race on element 63 of 'y'" in fault(body.format(flag="mem_threadgroup"), {}, outputs)
    assert "race on element 63 of 'y'" in fault(body.format(flag="mem_none"), {}, outputs)


def test_a_simdgroup_barrier_orders_one_simdgroup_only() -> None:
    body = """
        threadgroup float tile[64];
        uint t = thread_position_in_threadgroup.x;
        tile[t] = t;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        y[t] = tile[t ^ %d];
    """
    assert run(body % 31)[0][0].item() == 31
    assert "of 'tile'" in fault(body % 63)


def test_write_after_read_needs_a_barrier() -> None:
    body = """
        threadgroup float tile[64];
        uint t = thread_position_in_threadgroup.x;
        tile[t] = t;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float next = tile[(t + 1) % 64];
        {barrier}
        tile[t] = next;
        threadgroup_barrier(mem_flags::mem_threadgroup); // the end
        y[t] = tile[t];
    """
    assert run(body.format(barrier="threadgroup_barrier(mem_flags::mem_threadgroup);"))[0][63].item() == 0
    assert "race on element 1 of 'tile': read by thread (0, 0, 0)" in fault(body.format(barrier=""))


def test_race_between_threadgroups() -> None:
    options: dict[str, Any] = {"threadgroup": (16, 1, 1), "init_value": 0}
    assert "race on element 0 of 'y': written by thread (0, 0, 0) of the grid" in fault(
        INDEX + "y[i % 16] = i;", **options
    )
    barrier = "threadgroup_barrier(mem_flags::mem_device);"  # orders its own threadgroup only
    assert "race on element" in fault(
        INDEX + f"y[i] = i; {barrier} float v = y[63 - i]; if (v < 0) y[i] = v;", **options
    )
    assert "race on element 3 of 'y'" in fault(INDEX + "y[3] = 1;", **options)  # the same value, still a race
    run(INDEX + "if (i % 16 == 0) y[i / 16] = i;", **options)


def test_atomic_and_plain_access_race() -> None:
    body = INDEX + "atomic_fetch_add_explicit((device atomic<float>*)&y[0], 1.0f, memory_order_relaxed); {after}"
    assert run(body.format(after=""), init_value=0)[0][0].item() == 64
    assert "race on element 0 of 'y': changed atomically" in fault(
        body.format(after="if (i == 5) y[0] = 2;"), init_value=0
    )
    assert "race on element 0 of 'y': changed atomically" in fault(
        body.format(after="if (i == 5 && y[0] > 100) y[1] = 2;"), init_value=0
    )


def test_unwritten_memory() -> None:
    assert "element 0 of 'y' is read before anything was written" in fault(INDEX + "y[i] += 1;")
    assert run(INDEX + "y[i] += 1;", init_value=2)[0].tolist() == [3.0] * 64
    assert "1 of 64 elements of 'y' were never written" in fault(INDEX + "if (i != 9) y[i] = 1;")


def test_threadgroup_memory_does_not_survive_its_group() -> None:
    body = "threadgroup float tile[1]; uint t = thread_position_in_threadgroup.x; if (threadgroup_position_in_grid.x == 0) tile[0] = 5; y[thread_position_in_grid.x] = tile[0];"
    message = fault(body, grid=(2, 1, 1), threadgroup=(1, 1, 1), outputs={"y": ((2,), mx.float32)})
    assert "'tile' is read before anything was written" in message and "threadgroup (1, 0, 0)" in message


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("if (t < 60) threadgroup_barrier(mem_flags::mem_none);", "waits at line"),
        (
            "if (t >= 60) { y[t] = 0; return; } threadgroup_barrier(mem_flags::mem_none);",
            "has returned (60 of 64 wait)",
        ),
        (
            "if (t < 32) {\n threadgroup_barrier(mem_flags::mem_none);\n} else {\n threadgroup_barrier(mem_flags::mem_none);\n}",
            "waits at line 5 and thread 32 at line 7",
        ),
        (
            "if (t < 9) simdgroup_barrier(mem_flags::mem_none); threadgroup_barrier(mem_flags::mem_none);",
            "simdgroup_barrier divergence",
        ),
        (
            "float s;\nif (t < 9) s = simd_sum(1.0f);\nelse s = simd_max(2.0f);\ny[t] = s;",
            "divergence inside a SIMD-group",
        ),
    ],
)
def test_divergence_is_an_error_and_not_a_hang(body: str, what: str) -> None:
    message = fault("uint t = thread_position_in_threadgroup.x; " + body + " y[t] = 1;")
    assert what in message and "divergence" in message


def test_matrix_functions_take_a_whole_simd_group() -> None:
    body = "simdgroup_matrix<float, 8, 8> a; simdgroup_load(a, x{place}); simdgroup_store(a, y);"
    x = {"x": mx.ones((128,))}
    assert "31 of 32 threads" in fault(INDEX + "if (i == 3) { y[i] = 0; return; } " + body.format(place=""), x)
    assert "different places" in fault(INDEX + body.format(place=" + i"), x)


def test_numbers_that_metal_leaves_undefined() -> None:
    x = {"x": mx.array([float("nan")] * 64)}
    assert "that the integer type cannot hold" in fault(INDEX + "y[i] = int(x[i]);", x)
    assert "division by zero" in fault(INDEX + "y[i] = 7 / int(i);")
    assert "shift by as many bits" in fault(INDEX + "y[i] = 1 << int(i);")
    assert "misaligned access" in fault(
        INDEX + "float2 v = *(const device float2*)(x + i); y[i] = v.x;", {"x": mx.ones((80,))}
    )


def test_an_endless_loop_ends() -> None:
    assert "a loop that does not end" in fault(
        INDEX + "float v = x[0]; while (v > 0) { v = v * 0.5f + 1; } y[i] = v;", {"x": mx.ones((64,))}
    )


def test_limits_of_apple_gpus() -> None:
    assert "threadgroup memory: 36864 bytes" in fault(
        "threadgroup float a[4096], b[5120]; a[0] = b[0] = 1; y[thread_position_in_grid.x] = 1;"
    )
    with pytest.raises(KernelError, match="at most 1024"):
        run(INDEX + "y[i] = 1;", threadgroup=(2048, 1, 1))


def test_a_fault_leaves_the_harness_usable() -> None:
    for _ in range(3):
        fault("threadgroup_barrier(mem_flags::mem_none); y[thread_position_in_grid.x + 1] = 0;")
        assert run(INDEX + "y[i] = i;")[0].tolist() == list(range(64))
