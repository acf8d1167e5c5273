"""What the Metal compiler would refuse is refused here, with the line of the generated source."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from . import KernelCompileError, examples, metal_on_cpu
from .rewrite import to_cpp

INDEX = "uint i = thread_position_in_grid.x;\n"
HELPER = "template <typename T> inline float first(const device T* p) { return float(p[0]); }\n"


def compile_error(body: str, size: int = 64, dtype: mx.Dtype = mx.float32, **constructor: Any) -> str:
    with metal_on_cpu(), pytest.raises(KernelCompileError) as caught:
        examples.call(INDEX + body, {"x": mx.ones((size,), dtype)}, {"y": ((64,), dtype)}, (64, 1, 1), **constructor)
    return str(caught.value)


def test_a_compile_error_shows_the_line() -> None:
    message = compile_error("y[i] = x[i];\ny[i] = missing(x[i]);")
    assert "use of undeclared identifier 'missing'" in message
    assert ".metal:7:" in message  # five lines of signature, then the body's first is `uint i`
    assert "y[i] = missing(x[i]);" in message


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("y[i] = erf(x[i]);", "erf"),  # Metal has none
        ("double v = x[i]; y[i] = v;", "double"),
        ("float* p = y; p[i] = x[i];", "__global"),  # no address space
        ("threadgroup float* p = y; p[i] = x[i];", "__local"),
        ("x[i] = 1; y[i] = 1;", "read-only"),
        ("y[i] = max(x[i], 0);", "ambiguous"),
        ("y[i] = float2(x[i]);", "float"),
        ("y[i] = float4(x[i], x[i]).x;", "a vector takes one scalar"),
        (
            "atomic_fetch_add_explicit((device atomic<half>*)y, half(1.0), memory_order_relaxed);",
            "Metal has atomic<int>",
        ),
        (
            "threadgroup atomic<float> s[1]; atomic_fetch_add_explicit(&s[0], 1.0f, memory_order_relaxed);",
            "does not exist for this type",
        ),
        ("y[i] = simdgroup_multiply(x[i]);", "simdgroup_multiply"),
    ],
)
def test_what_metal_lacks_does_not_compile(body: str, what: str) -> None:
    assert what in compile_error(body)


def test_rounding_to_bfloat16_must_be_spelled_out() -> None:
    assert "__bf16" in compile_error("float v = x[i]; y[i] = v;", dtype=mx.bfloat16)
    with metal_on_cpu():
        examples.call(
            INDEX + "float v = x[i]; y[i] = bfloat16_t(v);",
            {"x": mx.ones((64,), mx.bfloat16)},
            {"y": ((64,), mx.bfloat16)},
            (64, 1, 1),
        )


def test_a_device_helper_refuses_a_small_input() -> None:
    # MLX passes inputs under 8 elements in `constant`: the trap is visible only at that size.
    with metal_on_cpu():
        examples.call(
            INDEX + "y[i] = first(x);", {"x": mx.ones((8,))}, {"y": ((64,), mx.float32)}, (64, 1, 1), header=HELPER
        )
    assert "first" in compile_error("y[i] = first(x);", size=7, header=HELPER)


def test_names_of_mlx_prelude_are_taken() -> None:
    assert "redefinition" in compile_error("y[i] = log1p(x[i]);", header="inline float log1p(float x) { return x; }\n")


def test_rewrite_keeps_lines_and_touches_only_what_it_must() -> None:
    source = "float a = 1.0 + 2.5e-3 + .5 + 1.0f + v1.x + 3.0h; // 1.0\nthreadgroup float s[4][5],\n  t;\nx[y[0]] = vec<T, 4>(1, 2.);\nthreadgroup float* p = t;"
    cpp = to_cpp(source)
    assert cpp.count("\n") == source.count("\n")
    first, *_, fourth, fifth = cpp.split("\n")
    assert first.rstrip() == "float a = 1.0f + 2.5e-3f + .5f + 1.0f + v1.x + ((half)3.0f);"
    assert (
        "typedef float s_storage[4][5]; threadgroup s_storage& s" in cpp
        and 'threadgroup_memory<t_storage>(1, "t")' in cpp
    )
    assert fourth == "x[y[0]] = make_vector<vec<T, 4>>(1, 2.f);" and fifth == "threadgroup float* p = t;"
    assert to_cpp("void f(constant const int64_t strides[2], threadgroup float tile[4][5]) {}") == (
        "void f(constant const int64_t* strides, threadgroup float (*tile)[5]) {}"
    )
