"""The second front end: what it refuses that the first takes, and what of it is no rule of Metal's."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import pytest

from . import capture, examples
from .capture import Launch
from .front_end import front_end, to_opencl

INDEX = "uint i = thread_position_in_grid.x;\n"


def launch(body: str, dtype: mx.Dtype = mx.float32, **constructor: Any) -> Launch:
    """Of a body that the first front end takes: it runs there."""
    inputs = {"x": mx.ones((64,), dtype)}
    (found,) = capture(
        lambda x: examples.call(INDEX + body, inputs, {"y": ((64,), dtype)}, (64, 1, 1), **constructor), inputs["x"]
    )
    return found


def refusals(body: str, **options: Any) -> list[str]:
    """What is said to a body."""
    plain = launch("y[i] = x[i];", **options)
    (messages,) = front_end([plain.edited("y[i] = x[i];", body)]).values()
    return messages


def test_the_examples_of_the_harness_pass() -> None:
    def everything(x: mx.array, g: mx.array) -> Any:
        cell = mx.zeros(x.shape, mx.int32)
        results = [
            examples.affine(x),
            examples.row_sum(x.reshape(4, 16)),
            examples.tree_sum(x),
            examples.scatter_add(x, cell, 3),
        ]
        return [*results, examples.prefix_sum(cell.astype(mx.uint32)), *mx.vjp(examples.gated, [x, g], [x])[1]]

    launches = [
        dataclasses.replace(
            one, name=f"{one.name}_{number}", source=one.source.replace(one.name, f"{one.name}_{number}")
        )
        for number, one in enumerate(capture(everything, mx.ones((64,)), mx.ones((64,))))
    ]
    assert len(launches) == 7
    assert not any(front_end(launches).values())


def test_each_kernel_has_its_own_report_with_lines_of_its_source() -> None:
    good = launch("y[i] = x[i];")
    line = good.source.split("\n").index("y[i] = x[i];") + 1
    bad = [
        dataclasses.replace(good, name=f"{good.name}{text}", source=good.source.replace("y[i] = x[i];", f"y[i] = {text};").replace(good.name, f"{good.name}{text}"))
        for text in ("first", "second")
    ]  # fmt: skip
    found = front_end([bad[0], good, bad[1]])
    assert found == {
        f"{good.name}first": [f"line {line}: use of undeclared identifier 'first'"],
        good.name: [],
        f"{good.name}second": [f"line {line}: use of undeclared identifier 'second'"],
    }


def test_template_arguments_become_constants_and_lines_stay() -> None:
    template = [("T", mx.float16), ("COUNT", 2), ("DOUBLED", True)]
    own = launch("y[i] = T(x[i] * T(DOUBLED ? 2 * COUNT : COUNT));", dtype=mx.float16, template=template)
    text = to_opencl(own)
    assert "typedef float16_t T; constexpr int COUNT = 2; constexpr bool DOUBLED = 1;" in text
    assert [number for number, line in enumerate(text.split("\n")) if "T(DOUBLED" in line] == [
        number for number, line in enumerate(own.source.split("\n")) if "T(DOUBLED" in line
    ]
    assert front_end([own]) == {own.name: []}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("struct Sizes { static constexpr int one = 1; };", "y[i] = x[i] * Sizes::one;"),
        ("constexpr int ONE = 1;", "y[i] = x[i] * ONE;"),
        ("inline float first(float* own) { return own[0]; }", "float own[2] = {x[i], 0}; y[i] = first(own);"),
        ("inline void keep(float& v) {}", "float v = x[i]; keep(v); y[i] = v;"),
        ("inline float down(float v) { return v > 0 ? down(v - 1) : v; }", "y[i] = down(x[i]);"),
        ("inline float id(float v) { return v; }", "float (*f)(float) = id; y[i] = f(x[i]);"),
        ("", "auto f = [](float v) { return v; }; y[i] = f(x[i]);"),
        ("", "static int calls = 0; y[i] = x[i] + calls;"),
    ],
)
def test_what_only_the_second_refuses(header: str, body: str) -> None:
    """Each runs as C++ through the first."""
    (messages,) = front_end([launch(body, header=header + "\n")]).values()
    assert messages


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("float* p = 0; y[i] = *p;", "no address space: p '__generic float *__private'"),
        ("float v = 1; y[i] = *(float*)&v;", "no address space"),
        ("float v = 1; auto& r = (float&)v; y[i] = r;", "no address space"),
        ("y[i] = ping(x[i]);", "recursion: ping calls itself"),
        ("y[i] = simd_sum(x[i] > 0);", "Metal has no simd_sum of this type"),
        ("y[i] = simd_sum(long(x[i]));", "Metal has no simd_sum of this type"),
        ("threadgroup atomic<float> s[1]; atomic_fetch_add_explicit(&s[0], 1.0f, memory_order_relaxed);", "Metal has no atomic_fetch_add_explicit"),
        ("goto end; end: y[i] = 1;", "poisoned identifier"),
        ("y[i] = any_of<1>(x[i]);", "no address space: p '__generic float *__private' in any_of"),
    ],
)  # fmt: skip
def test_the_reason_is_told(body: str, what: str) -> None:
    header = """
        inline float pong(float v);
        inline float ping(float v) { return pong(v); }
        inline float pong(float v) { return v > 0 ? ping(v - 1) : v; }
        template <int N> inline float down(float v) { return down<N - 1>(v); }
        template <> inline float down<0>(float v) { return v; }
        template <int N, typename T> inline T any_of(T v) { T* p = &v; return *p; }
    """
    if "ping" not in body:  # which is refused wherever it stands
        header = header.replace("ping(v - 1)", "v - 1")
    assert (
        refusals("y[i] = down<3>(x[i]);", header=header.replace("ping(v - 1)", "v - 1")) == []
    )  # templates that end are no recursion
    assert any(what in message for message in refusals(body, header=header))


@pytest.mark.parametrize(
    "body",
    [
        "y[i] = float4(x[i], 0, 0, 0).x;",  # OpenCL writes (float4)(...)
        "if constexpr (T(0) == 1) y[i] = missing; else y[i] = x[i];",  # the body of a template would leave it out
        "y[i] = T(1.0bf);",
    ],
)
def test_what_opencl_alone_refuses(body: str) -> None:
    """Valid in Metal: kernels do without, or this front end has to learn it."""
    template = [("T", mx.float32)]
    plain = launch("y[i] = T(x[i]);", template=template)
    assert any(front_end([plain.edited("y[i] = T(x[i]);", body)]).values())


def test_what_metal_refuses_and_only_the_first_sees() -> None:
    """Rounding to bfloat16 without a cast."""
    assert refusals("float v = x[i]; y[i] = v;", dtype=mx.bfloat16) == []
