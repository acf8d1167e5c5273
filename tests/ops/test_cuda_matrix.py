"""The CUDA half of kernels/matrix.h gives products: its lanes run as C++, and mma.sync does what PTX's documentation says. No GPU is needed."""

import ctypes
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import compile as harness

from energy_flow_mlx.ops import kernel
from energy_flow_mlx.ops.flow_step import _blocks, _rows

# bfloat cuts off where a GPU rounds. Of each instruction the lanes' registers are kept; `settle` runs it once all lanes have come by.
PRELUDE = """
#define FUNCTION inline
typedef unsigned int uint;
typedef _Float16 half;
struct uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
template <typename To, typename From> To bits(From x) { return __builtin_bit_cast(To, x); }
struct bfloat {
    unsigned short upper;
    bfloat() = default;
    explicit bfloat(float x) : upper(bits<uint>(x) >> 16) {}
    explicit operator float() const { return bits<float>(uint(upper) << 16); }
};
#define __uint_as_float(x) bits<float>(x)
uint to_tf32(float x) { return (bits<uint>(x) + 0x1000u) & 0xFFFFE000u; }  // to nearest, ties away from zero
template <typename T> T simd_shuffle_xor(T x, int) { return x; }
template <int V> void load_packed(const float* array, uint i, float (&value)[V]) { for (int k = 0; k < V; ++k) value[k] = array[V * i + k]; }

struct Call { float* sum[4]; uint a[4], b[2]; };
Call calls[32][8];
int lane_now, count[32];
void mma(float& c0, float& c1, float& c2, float& c3, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
    calls[lane_now][count[lane_now]++] = {{&c0, &c1, &c2, &c3}, {a0, a1, a2, a3}, {b0, b1}};
}
template <typename T> float half_of(uint word, int k) { return float(bits<T>((unsigned short)(word >> 16 * k))); }

// The elements of A [16, K] and B [K, 8] that a lane has, by PTX's "Matrix Fragments for mma.m16n8k16" and "… mma.m16n8k8".
template <typename T> void settle(int number) {
    constexpr int K = sizeof(T) == 2 ? 16 : 8;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        int group = lane / 4, thread = lane % 4;
        const Call& own = calls[lane][number];
        for (int r = 0; r < 4; ++r) {
            int row = group + 8 * (r % 2);
            if constexpr (sizeof(T) == 2) for (int k = 0; k < 2; ++k) a[row][2 * thread + k + 8 * (r / 2)] = half_of<T>(own.a[r], k);
            else a[row][thread + 4 * (r / 2)] = bits<float>(own.a[r]);
        }
        for (int r = 0; r < 2; ++r) {
            if constexpr (sizeof(T) == 2) for (int k = 0; k < 2; ++k) b[2 * thread + k + 8 * r][group] = half_of<T>(own.b[r], k);
            else b[thread + 4 * r][group] = bits<float>(own.b[r]);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        for (int c = 0; c < 4; ++c) {
            for (int k = 0; k < K; ++k) *calls[lane][number].sum[c] += a[lane / 4 + 8 * (c / 2)][k] * b[k][lane % 4 * 2 + c % 2];
        }
    }
}
"""
RUN = """
// y [16, 8] = 1 + x [32, 48][16:, 16:32] w [8, 16]^T, x in blocks
template <typename T> void product(const float* x, const float* w, float* y) {
    alignas(16) T rows[32 * 48], tile[128];
    for (int i = 0; i < 32 * 48; ++i) rows[i] = T(x[i]);
    for (int i = 0; i < 128; ++i) tile[i] = T(w[i]);
    Sum sums[32];
    for (lane_now = 0; lane_now < 32; ++lane_now) {
        Left<T> left;
        Right<T> right;
        count[lane_now] = 0;
        for (int e = 0; e < 4; ++e) set_number(sums[lane_now], e, 1.0f);
        load_left(left, rows + in_blocks(16, 16, 48), lane_now);
        load_right(right, tile, lane_now);
        multiply(sums[lane_now], left, right);
    }
    for (int number = 0; number < count[0]; ++number) settle<T>(number);
    for (int lane = 0; lane < 32; ++lane) {
        for (int e = 0; e < 4; ++e) y[8 * (own_row(lane) + 8 * (e / 2)) + own_column(lane) + e % 2] = number(sums[lane], e);
    }
}
extern "C" __attribute__((visibility("default"))) void of_float(const float* x, const float* w, float* y) { product<float>(x, w, y); }
extern "C" __attribute__((visibility("default"))) void of_half(const float* x, const float* w, float* y) { product<half>(x, w, y); }
extern "C" __attribute__((visibility("default"))) void of_bfloat(const float* x, const float* w, float* y) { product<bfloat>(x, w, y); }
extern "C" __attribute__((visibility("default"))) uint place(uint row, uint column, uint columns) { return in_blocks(row, column, columns); }
"""
MMA = re.compile(r'asm\("mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(\w+)\.\2\.f32 [^"]*"(.*?)\);', re.DOTALL)
OPERAND = re.compile(r'"\+?[fr]"\(([^()]*)\)')
CONVERSION = re.compile(r'asm\("cvt\.rna\.tf32\.f32 %0, %1;" : "=r"\((\w+)\) : "f"\((.*?)\)\);')


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    text, rest = kernel.source_file("matrix.h").split("#ifdef __CUDACC__\n")[1].split("\n#else\n")
    text += rest.split("\n#endif\n")[1]
    text, products = MMA.subn(lambda found: f"mma({', '.join(OPERAND.findall(found[3]))});", text)
    text, conversions = CONVERSION.subn(r"\1 = to_tf32(\2);", text)
    assert (products, conversions) == (3, 2) and "asm" not in text
    folder: Path = tmp_path_factory.mktemp("matrix")
    source, built = folder / "matrix.cpp", folder / "matrix.so"
    source.write_text(PRELUDE + text + RUN, encoding="utf-8")
    flags = [*harness.COMMON_FLAGS, *harness._machine_flags(), *harness._link_flags(), "-O1", "-shared", "-o", str(built)]
    report = harness._clang([*flags, str(source)])
    assert built.exists(), report
    return ctypes.CDLL(str(built))


@pytest.mark.parametrize(("name", "tolerance"), [("float", 1e-5), ("half", 1e-2), ("bfloat", 0.15)])
def test_lanes_together_make_a_product(name: str, tolerance: float, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "backend", lambda: "cuda")
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((32, 48), (8, 16)))
    y, blocks = np.zeros((16, 8), np.float32), np.array(_blocks(mx.array(x[None])))
    getattr(library, f"of_{name}")(*(array.ctypes.data_as(ctypes.c_void_p) for array in (blocks, w, y)))
    np.testing.assert_allclose(y, 1 + x[16:, 16:32] @ w.T, rtol=0, atol=tolerance)


def test_hidden_states_lie_where_the_kernel_looks(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "backend", lambda: "cuda")
    rows = mx.arange(2 * 32 * 48).reshape(2, 32, 48)
    blocks = _blocks(rows)
    places = np.array([[library.place(row, column, 48) for column in range(48)] for row in range(32)])
    np.testing.assert_array_equal(np.array(blocks).reshape(2, -1)[:, places], np.array(rows))
    assert mx.array_equal(_rows(blocks), rows)
    # The gates load and store two columns at a time.
    assert not (places[:, ::2] % 2).any() and (places[:, 1::2] == places[:, ::2] + 1).all()


def test_lanes_that_are_added_up_have_the_same_rows(library: ctypes.CDLL) -> None:
    """over_columns goes to the lanes 1 and 2 apart: lane 4 r + q has row r."""
    masks = re.findall(r"simd_shuffle_xor\(x, (\d+)\)", kernel.source_file("matrix.h").split("\n#else\n")[0])
    assert masks == ["1", "2"]
