"""The harness runs what MLX generates, and a Launch says all that Metal would be told."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from . import KernelCompileError, KernelError, capture, examples, metal_on_cpu, run

INDEX = "uint i = thread_position_in_grid.x;\n"


def test_a_launch_holds_the_generated_source_and_the_dispatch() -> None:
    def fn(x: mx.array, few: mx.array, scale: mx.array) -> list[mx.array]:
        body = INDEX + "y[i] = T(x[i * x_strides[0]] * few[COUNT] * scale) + T(x_ndim);"
        return examples.call(
            body,
            {"x": x, "few": few, "scale": scale},
            {"y": ((40,), mx.float16)},
            (40, 1, 1),
            (256, 1, 1),
            template=[("T", mx.float16), ("COUNT", 2)],
            init_value=3,
            header="inline int unused() { return 1; }\n",
            ensure_row_contiguous=False,
        )

    (launch,) = capture(fn, mx.ones((40,)), mx.ones((7,)), mx.array(2.0))
    assert launch.name.startswith("custom_kernel_example")
    assert launch.source.startswith("inline int unused()") and "[[kernel]] void custom_kernel_example" in launch.source
    assert launch.entry == f"{launch.name}<float16_t, 2>"
    assert launch.grid == (40, 1, 1) and launch.threadgroup == (40, 1, 1)  # MLX caps the threadgroup by the grid
    described = [(a.name, a.role, a.address_space, a.type, a.by_reference) for a in launch.arguments]
    assert described == [
        ("x", "input", "device", "float", False),
        ("x_strides", "strides", "constant", "int64_t", False),
        ("x_ndim", "ndim", "constant", "int", True),
        ("few", "input", "constant", "float", False),  # under 8 elements
        ("scale", "input", "constant", "float", True),
        ("y", "output", "device", "float16_t", False),
    ]
    assert launch.attributes == (("uint3", "thread_position_in_grid"),)
    assert launch.template == (("T", mx.float16), ("COUNT", 2))
    assert (launch.input_shapes, launch.output_shapes) == (((40,), (7,), ()), ((40,),))
    assert launch.output_dtypes == (mx.float16,) and launch.init_value == 3 and not launch.ensure_row_contiguous


@pytest.mark.parametrize("size", [1, 7, 8])
def test_inputs_under_8_elements_are_constant(size: int) -> None:
    (launch,) = capture(examples.affine, mx.ones((size,)))
    assert launch.arguments[0].address_space == ("constant" if size < 8 else "device")


def test_a_captured_launch_runs_on_other_inputs() -> None:
    (launch,) = capture(examples.affine, mx.zeros((50,)))
    x = np.linspace(-1, 1, 50, dtype=np.float32)
    np.testing.assert_allclose(np.array(run(launch, [x])[0]), 1.5 * x + 0.25, rtol=1e-6)
    with pytest.raises(ValueError, match="captured for inputs"):
        run(launch, [x[:49]])


def test_the_generated_source_is_what_runs() -> None:
    # Change text that only MLX writes, not the body: the result must follow.
    def body_of_mlx(x: mx.array) -> mx.array:
        return examples.affine(x)

    x = mx.ones((64,))
    with metal_on_cpu(edit=("[[thread_position_in_grid]]", "[[thread_position_in_threadgroup]]")):
        y = body_of_mlx(x)
    assert mx.allclose(y, mx.full((64,), 1.75))
    (launch,) = capture(body_of_mlx, x)
    assert examples.AFFINE.strip() in launch.source
    with (
        metal_on_cpu(edit=("const device float* x [[buffer(0)]]", "const device int* x [[buffer(0)]]")),
        pytest.raises(KernelCompileError),
    ):
        body_of_mlx(x)


def test_forward_and_backward_kernels_are_both_captured() -> None:
    def gradients(x: mx.array, g: mx.array) -> Any:
        return mx.vjp(examples.gated, [x, g], [x])

    forward, backward = capture(gradients, mx.ones((9,)), mx.ones((9,)))
    assert [a.name for a in forward.arguments if a.role == "output"] == ["y"]
    assert [a.name for a in backward.arguments if a.role == "output"] == ["dx", "dg"]


def test_mlx_breaks_the_signature_of_some_kernels_without_thread_attributes() -> None:
    with metal_on_cpu(), pytest.raises(KernelError, match="1 of 2 outputs"):
        examples.call(
            "y[0] = x_shape[0]; z[0] = 2;",
            {"x": mx.ones((8,), mx.int32)},
            {"y": ((1,), mx.int32), "z": ((1,), mx.int32)},
            (1, 1, 1),
        )


def test_an_edit_must_name_one_place() -> None:
    x = mx.ones((8,))
    with pytest.raises(ValueError, match="no kernel that ran holds 'nowhere'"), metal_on_cpu(edit=("nowhere", "")):
        examples.affine(x)
    with pytest.raises(ValueError, match="occurs 2 times"), metal_on_cpu(edit=("[i]", "[0]")):
        examples.affine(x)


def test_kernels_of_a_cached_factory() -> None:
    @functools.cache
    def factory() -> Any:
        return mx.fast.metal_kernel(
            name="cached", input_names=["x"], output_names=["y"], source=INDEX + "y[i] = x[i] + 1;"
        )

    def op(x: mx.array) -> mx.array:
        return factory()(
            inputs=[x], grid=(x.size, 1, 1), threadgroup=(32, 1, 1), output_shapes=[x.shape], output_dtypes=[x.dtype]
        )[0]

    factory()  # MLX's own object, as when another test ran first
    with metal_on_cpu(caches=[factory]):
        assert mx.array_equal(op(mx.zeros((9,))), mx.ones((9,)))
    assert not isinstance(mx.fast.metal_kernel, type)
    if not mx.metal.is_available():
        with pytest.raises((RuntimeError, ValueError), match="metal_kernel"):
            mx.eval(op(mx.zeros((9,))))


def test_inside_a_trace_the_harness_says_so() -> None:
    with metal_on_cpu(), pytest.raises(RuntimeError, match="outside mx.compile"):
        mx.compile(examples.affine)(mx.ones((8,)))
