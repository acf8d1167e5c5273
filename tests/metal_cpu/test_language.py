"""Vectors, address spaces and mathematics of MSL, as kernels write them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from . import examples, metal_on_cpu

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_vectors_and_swizzles() -> None:
    body = """
        uint i = thread_position_in_grid.x;
        float3 p = float3(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
        float4 q = float4(p.zyx, 1.0);
        q.xy = clamp(q.xy, -0.5, 0.5);
        vec<float, 2> r = vec<float, 2>(q.x, q.w) * 2;
        bool outside = any(abs(p) > float3(1.0));
        ((device float4*)y)[i] = select(float4(dot(q, q), r, length(p)), float4(-1.0f), bool4(outside));
    """
    x = normal(20, 3)
    with metal_on_cpu():
        (y,) = examples.call(body, {"x": mx.array(x)}, {"y": ((20, 4), mx.float32)}, (20, 1, 1))
    clipped = np.clip(x[:, [2, 1]], -0.5, 0.5)
    dot = (clipped**2).sum(1) + x[:, 0] ** 2 + 1
    wanted = np.stack([dot, 2 * clipped[:, 0], np.full(20, 2.0), np.linalg.norm(x, axis=1)], 1)
    wanted[(np.abs(x) > 1).any(1)] = -1
    np.testing.assert_allclose(np.array(y), wanted, rtol=1e-6)


def test_helpers_and_tables_in_every_address_space() -> None:
    header = """
        constant float table[3] = {1.0, 2.0, 4.0};
        constexpr constant int OFFSET = 1;
        inline float from_table(constant const float* t, uint i) { return t[i % 3]; }
        inline void add(device float* out, uint i, float v) { out[i] += v; }
        inline float take(threadgroup const float* tile, uint t) { return tile[t]; }
        inline void twice(thread float& v) { v *= 2; }
        template <typename T, int N>
        inline T last(thread const T (&own)[N]) { return own[N - 1]; }
        inline float grid_sum(threadgroup float tile[2][4]) { return tile[0][3] + tile[1][0]; }
    """
    body = """
        uint i = thread_position_in_grid.x;
        threadgroup float tile[8], pairs[2][4];
        tile[i] = from_table(table, i + OFFSET);
        pairs[i / 4][i % 4] = i;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float v = take(tile, 7 - i);
        twice(v);
        float own[3] = {0, 0, v};
        y[i] = 0;
        add(y, i, last(own) + grid_sum(pairs));
    """
    with metal_on_cpu():
        (y,) = examples.call(body, {}, {"y": ((8,), mx.float32)}, (8, 1, 1), header=header)
    i = np.arange(8)
    np.testing.assert_array_equal(np.array(y), 2 * np.array([1, 2, 4])[(7 - i + 1) % 3] + 3 + 4)


def test_vectors_with_scalar_bounds() -> None:
    body = "uint i = thread_position_in_grid.x; ((device float4*)y)[i] = clamp(max(((const device float4*)x)[i], -1.0), -0.5, mix(0.5f, 1.5f, 0.5f));"
    x = normal(8, 4)
    with metal_on_cpu():
        (y,) = examples.call(body, {"x": mx.array(x)}, {"y": ((8, 4), mx.float32)}, (8, 1, 1))
    np.testing.assert_array_equal(np.array(y), np.clip(x, -0.5, 1.0))


def test_packed_vectors_begin_at_any_element() -> None:
    """As vectors of the same size do not: the access would be misaligned."""
    body = """
        uint i = thread_position_in_grid.x;
        T4 all = ((const device T4*)(x + 1))[i], back;
        for (int k = 0; k < 4; ++k) back[k] = all[3 - k];
        ((device T4*)(y + 1))[i] = back;
        if (i == 0) y[0] = 0;
    """
    x = normal(33)
    for name, dtype in (("float", mx.float32), ("half", mx.float16), ("bfloat", mx.bfloat16)):
        given = mx.array(x).astype(dtype)
        with metal_on_cpu():
            (y,) = examples.call(body.replace("T4", f"packed_{name}4"), {"x": given}, {"y": ((33,), dtype)}, (8, 1, 1))
        back = np.array(given.astype(mx.float32))[1:].reshape(8, 4)[:, ::-1]
        np.testing.assert_array_equal(np.array(y.astype(mx.float32))[1:].reshape(8, 4), back)


def test_fast_functions_miss_by_what_the_specification_allows() -> None:
    body = """
        uint i = thread_position_in_grid.x;
        y[i] = metal::fast::exp(x[i]);
        y[64 + i] = metal::fast::divide(1.0f, x[i]);
        y[128 + i] = metal::fast::divide(3.0f, x[i]);
    """
    x = np.random.default_rng(3).uniform(-8, 8, 64).astype(np.float32)
    with metal_on_cpu():
        (y,) = examples.call(body, {"x": mx.array(x)}, {"y": ((3, 64), mx.float32)}, (64, 1, 1))
    exact = x.astype(np.float64)
    # What is allowed, and what rounding adds: of the exact result, and of half units.
    allowed = ((3 + np.floor(2 * np.abs(x)), 1.0), (1, 0.5), (2.5, 1.0))
    for row, wanted, (units, rounding) in zip(np.array(y), (np.exp(exact), 1 / exact, 3 / exact), allowed, strict=True):
        off = (row - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
        assert np.all(np.abs(np.abs(off) - units) <= rounding)
        assert np.any(off < 0) and np.any(off > 0)


def test_math_functions() -> None:
    expressions: dict[str, Any] = {
        "metal::exp(v)": np.exp, "log(v * v + 1)": lambda v: np.log(v * v + 1), "metal::precise::tanh(v)": np.tanh,
        "metal::fast::sin(v)": np.sin, "rsqrt(v * v + 1)": lambda v: 1 / np.sqrt(v * v + 1), "floor(v)": np.floor, "rint(v)": np.rint,
        "pow(fabs(v), 1.5)": lambda v: np.abs(v) ** 1.5, "fma(v, v, 2.0)": lambda v: v * v + 2, "fract(v)": lambda v: v - np.floor(v),
        "max(min(v, 0.5f), -0.5f)": lambda v: np.clip(v, -0.5, 0.5), "sign(v)": np.sign, "isnan(v / 0.0f * 0.0f) ? 1.0f : 0.0f": lambda v: v * 0 + 1,
        "clamp(v, -1.0f, 1.0f)": lambda v: np.clip(v, -1, 1), "log1p(fabs(v))": lambda v: np.log1p(np.abs(v)), "fmod(v, 0.7f)": lambda v: np.fmod(v, np.float32(0.7)),
    }  # fmt: skip
    stores = "\n".join(f"y[{k} * 64 + i] = {text};" for k, text in enumerate(expressions))
    x = normal(64)
    with metal_on_cpu():
        (y,) = examples.call(
            f"uint i = thread_position_in_grid.x; float v = x[i];\n{stores}",
            {"x": mx.array(x)}, {"y": ((len(expressions), 64), mx.float32)}, (64, 1, 1),
        )  # fmt: skip
    for row, (text, function) in zip(np.array(y), expressions.items(), strict=True):
        np.testing.assert_allclose(row, function(x.astype(np.float64)), rtol=2e-6, atol=1e-6, err_msg=text)
