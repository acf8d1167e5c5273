"""neuron: kernel against reference, against float64 differences, and mutants."""

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import metal_on_cpu, survivors

from energy_flow_mlx.ops.kernel import build
from energy_flow_mlx.ops.neuron import MOST_GROUPS, SPARING, NeuronKernel, fits, neuron, neuron_reference, pack

from .kernel_parity import HARNESS, backends, compare, kernels_on, same

Weights = list[mx.array]


def arguments(flows: int, hidden: int, features: int, seed: int = 0) -> Weights:
    """position, energy and the twelve weights."""
    rng = np.random.default_rng(seed)
    h, f = hidden, features
    shapes = [(3, 3), (3,), (h, 4), (h,), (h,), (h,), (h, h), (h,), (h,), (h,), (f, h), (f,)]
    weights = [rng.standard_normal(shape) / max(shape[-1], 1) ** (0.5 if len(shape) > 1 else 0) for shape in shapes]
    inputs = [rng.uniform(-1, 1, (flows, 3)), rng.uniform(-1, 1, (flows, 1))]
    return [mx.array(x.astype(np.float32)) for x in (*inputs, *weights)]


def of_arrays(function: object, **options: object) -> object:
    return lambda position, energy, *weights: function(position, energy, weights, **options)


@backends
@pytest.mark.parametrize(
    ("flows", "hidden", "features"),
    # The last three: just within threadgroup memory, and tiles of 16 and of 8 flows.
    [(1, 4, 3), (7, 2, 5), (9, 1, 2), (33, 6, 34), (70, 33, 9), (40, 32, 64), (34, 33, 64), (18, 40, 64), (11, 48, 70)],
)
def test_kernel_equals_reference(where: str, flows: int, hidden: int, features: int) -> None:
    given = arguments(flows, hidden, features)
    compare(where, of_arrays(neuron, kernels=True), of_arrays(neuron_reference), given, tolerance=5e-5)


@backends
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bound", [None, 0.7])
def test_padded_bounded_and_in_half(where: str, dtype: mx.Dtype, bound: float | None) -> None:
    given = arguments(37, 8, 34)
    tolerance = {mx.float32: 5e-5, mx.float16: 3e-3, mx.bfloat16: 2e-2}[dtype]
    options = {"padded": 40, "bound": bound}
    kernel = of_arrays(neuron, kernels=True, dtype=dtype, **options)
    compare(where, kernel, of_arrays(neuron_reference, **options), given, tolerance=tolerance)


@backends
def test_several_tiles_a_group(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energy_flow_mlx.ops.neuron.MOST_GROUPS", {"metal": 2, "cuda": 2})
    compare(where, of_arrays(neuron, kernels=True), of_arrays(neuron_reference), arguments(150, 4, 3), tolerance=5e-5)


@pytest.mark.parametrize(("flows", "hidden", "features"), [(33, 6, 34), (40, 32, 64), (11, 48, 70)])
def test_what_is_kept_is_what_is_computed_twice(
    flows: int, hidden: int, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's way gives Metal's bits."""
    given = arguments(flows, hidden, features)
    results = []
    for sparing in (True, False):
        monkeypatch.setitem(SPARING, "metal", sparing)
        with kernels_on(HARNESS):
            _, gradients = mx.vjp(
                lambda *a: [of_arrays(neuron, kernels=True, bound=0.7)(*a)], given, [mx.ones((flows, features))]
            )
            mx.eval(gradients)
        results.append(gradients)
    assert all(mx.array_equal(a, b) for a, b in zip(*results, strict=True))
    assert any(mx.any(a != 0) for a in results[0])


@backends
@pytest.mark.parametrize(("hidden", "features"), [(5, 6), (8, 12), (20, 150)])
def test_sums_of_weights_are_added_to_running_ones(where: str, hidden: int, features: int) -> None:
    position, energy, *weights = arguments(50, hidden, features)
    kernel = NeuronKernel(hidden, features, features, None, mx.float32)
    with kernels_on(where):
        given = mx.ones((50, features)), position, energy, pack(weights)
        alone = kernel.backward(*given)
        before = mx.array(np.random.default_rng(2).standard_normal(alone[2].shape).astype(np.float32))
        more = kernel.backward(*given, running=before)
        mx.eval(alone, more)
    same(more[2], alone[2] + before, 2e-6)
    for a, w in zip(more[:2], alone[:2], strict=True):
        same(a, w, 0.0)


def test_gradient_equals_float64_differences() -> None:
    given = arguments(3, 4, 3)
    cotangent = mx.array(np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32))
    from metal_cpu import finite_difference_vjp

    wanted = finite_difference_vjp(_formula, given, cotangent)
    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(lambda *a: [of_arrays(neuron, kernels=True)(*a)], given, [cotangent])
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 5e-5)


def _formula(position: np.ndarray, energy: np.ndarray, *weights: np.ndarray) -> np.ndarray:
    from math import erf

    def normal(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * gamma + beta
        return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))

    coord, b0, w1, b1, g1, e1, w2, b2, g2, e2, w3, b3 = weights
    x = np.concatenate([position @ coord.T + b0, energy], axis=1)
    x = normal(x @ w1.T + b1, g1, e1)
    return normal(x @ w2.T + b2, g2, e2) @ w3.T + b3


def test_broken_kernels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST_GROUPS, "metal", 1)  # two tiles a group

    def check() -> None:
        given = arguments(45, 5, 6)
        options = {"padded": 8, "bound": 3.0}
        (y,), wanted = mx.vjp(lambda *a: [of_arrays(neuron_reference, **options)(*a)], given, [mx.ones((45, 8))])
        (x,), d = mx.vjp(lambda *a: [of_arrays(neuron, kernels=True, **options)(*a)], given, [mx.ones((45, 8))])
        mx.eval(x, d)
        for a, w in zip((x, *d), (y, *wanted), strict=True):
            same(a, w, 5e-5)

    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);  // "
    of_simdgroup = "simdgroup_barrier(mem_flags::mem_threadgroup);  // "
    edits = [
        (barrier + "weights", ""),
        (barrier + "gradients of features and second activations of all flows", ""),
        (barrier + "before other gradients take their places", ""),
        (barrier + "gradients of both Linears of all flows", ""),
        (barrier + "before the next tile overwrites", ""),
        (barrier + "sums of each SIMD-group", ""),
        (of_simdgroup + "inputs", ""),
        (of_simdgroup + "first activations", ""),
        (of_simdgroup + "before the second activations take their place", ""),
        (of_simdgroup + "second activations", ""),
        (of_simdgroup + "gradients of the second Linear", ""),
        ("uint i = metal::min(flow, flows - 1);", "uint i = flow;"),
        ("if (own < flows && i < F)", "if (i < F)"),
        ("c[o][f] = own < flows ? ", "c[o][f] = true ? "),
        ("if (k == m && flow < flows)", "if (k == m)"),
        ("metal::min(block::column(b, c), uint(B - 1));", "block::column(b, c);"),
        ("2 * (s / 2 * A_ROWS + row[r])", "2 * (s / 2 * A + row[r])"),
        ("if (b >= block::count) return;", ""),
        ("if (!owned<HIDDEN>(lane, o)) continue;\n        float g", "float g"),
        ("normalise<HIDDEN>(normal_one, lane, scale_one);\n            slopes", "slopes"),
        ("&w[at::second_bias + 2 * HIDDEN], lane, slope_two);\n        activate_back", "&w[at::second_bias], lane, slope_two);\n        activate_back"),
        ("sums[1][o] += of_beta * normal[o][f];", "sums[1][o] += of_beta;"),
        ("of_coord[m + 1] += d_input * p[m];", "of_coord[m + 1] += d_input * p[0];"),
    ]
    assert not survivors(check, edits, caches=[build])


def test_wide_neurons_are_refused_by_the_kernel() -> None:
    assert [fits(hidden, 64) for hidden in (1, 32, 40, 80)] == [True, True, True, False]
    given = arguments(2, 80, 64)
    with pytest.raises(ValueError, match="hidden_dim=80"):
        neuron(given[0], given[1], given[2:], kernels=True)
    assert pack(given[2:]).size == sum(weight.size for weight in given[2:])
