"""Ops by NumPy on a CPU: against their plain graphs, the approximations against float64, and where they are not taken."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from energy_flow_mlx.ops import adamw, gelu, gru_gates, heads, host, neuron, norm_gelu, numerics
from energy_flow_mlx.ops.failures import VARIABLE

from .kernel_parity import GPU, compare, same

NATIVE = GPU  # of `compare`: nothing stands in for a GPU


@pytest.fixture(autouse=True)
def _on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the default is on a Linux CPU, wherever the tests run; with blocks so small that every array has several."""
    monkeypatch.setattr(host.sys, "platform", "linux")
    monkeypatch.setattr(host, "on_gpu", lambda: False)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(host, "BLOCK", 64)
    monkeypatch.setattr(host, "LEAST", 0)
    monkeypatch.setattr(host, "_cores", lambda: 2)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each array that went through NumPy in blocks."""
    seen: list[int] = []
    in_blocks = host.in_blocks

    def counted(function: Callable[[slice], Any], rows: int, columns: int) -> list[Any]:
        seen.append(rows)
        return in_blocks(function, rows, columns)

    monkeypatch.setattr(host, "in_blocks", counted)
    return seen


def normal(*shapes: tuple[int, ...], seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    return [mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def of_gates(rows: int = 33, size: int = 5) -> list[mx.array]:
    floats = normal((rows, 3 * size), (rows, 3 * size), (3 * size,), (size,), (rows, size))
    return [*floats, mx.array(np.random.default_rng(1).random(rows) < 0.7)]


def of_neuron(rows: int = 33) -> list[mx.array]:
    shapes = [(3, 3), (3,), (8, 4), (8,), (8,), (8,), (8, 8), (8,), (8,), (8,), (6, 8), (6,)]
    return normal((rows, 3), (rows, 1), *shapes)


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[mx.array]]] = {
    "gates": (gru_gates.gru_gates, gru_gates.gru_gates_reference, of_gates()),
    "gates, all move": (gru_gates.gru_gates, gru_gates.gru_gates_reference, of_gates()[:5]),
    "gates, all bound": (partial(gru_gates.gru_gates, bound=10.0), partial(gru_gates.gru_gates_reference, bound=10.0), of_gates()),
    "gates, some beyond": (partial(gru_gates.gru_gates, bound=0.5), partial(gru_gates.gru_gates_reference, bound=0.5), of_gates()),
    "gelu": (gelu.gelu, gelu.gelu_reference, normal((3, 11, 7))),
    "gelu of a sum": (gelu.gelu, gelu.gelu_reference, normal((33, 7), (7,))),
    "norm_gelu": (norm_gelu.norm_gelu, norm_gelu.norm_gelu_reference, normal((33, 8), (8,), (8,))),
    "heads": (
        lambda *a: heads.heads(*a, mx.array([0.3])), lambda *a: heads.heads_reference(*a, mx.array([0.3])),
        normal((33, 12), (12,), (8,), (3, 4), (4,)),
    ),
    "neuron": (
        lambda p, e, *w: neuron.neuron(p, e, w, padded=8, bound=10.0),
        lambda p, e, *w: neuron.neuron_reference(p, e, w, padded=8, bound=10.0),
        of_neuron(),
    ),
}  # fmt: skip


# The neuron's inputs and weights are always float32.
@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n in CASES for d in (mx.float32, mx.float16, mx.bfloat16) if n != "neuron" or d == mx.float32])
def test_results_and_gradients_equal_the_reference(name: str, dtype: mx.Dtype, blocks: list[int]) -> None:
    by_numpy, reference, arguments = CASES[name]
    compare(NATIVE, by_numpy, reference, arguments, dtype=dtype)
    assert blocks and set(blocks) == {33}


def test_results_have_the_dtype_that_the_plain_graph_gives() -> None:
    for by_numpy, reference, arguments in CASES.values():
        given = [x.astype(mx.bfloat16) if x.dtype == mx.float32 else x for x in arguments]
        dtypes = [[y.dtype for y in (out if isinstance(out, tuple) else [out])] for out in (by_numpy(*given), reference(*given))]
        assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("bound", [10.0, 0.5])
def test_non_finite_gates_are_sanitised(bound: float) -> None:
    arguments = of_gates(12, 4)
    bad, hidden = np.array(arguments[0]), np.array(arguments[4])
    bad[0, 0], bad[1, 9], bad[2, 5], hidden[3, 1], hidden[4, 2] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    arguments[0], arguments[4] = mx.array(bad), mx.array(hidden)
    new = gru_gates.gru_gates(*arguments, bound=bound)
    same(new, gru_gates.gru_gates_reference(*arguments, bound=bound), 1e-6)


def test_features_with_bad_numbers_are_sanitised() -> None:
    position, energy, *weights = of_neuron()
    energy[3] = math.nan
    x = neuron.neuron(position, energy, weights, padded=8, bound=1.0)
    same(x, neuron.neuron_reference(position, energy, weights, padded=8, bound=1.0), 1e-5)
    assert float(mx.max(mx.abs(x))) == 1.0 and x[3].tolist() == [0.0] * 8


def test_a_clean_array_is_not_copied_by_sanitising_and_a_bad_one_has_its_gradient_stopped() -> None:
    clean, bad = mx.array([0.5, -1.0, 1.0]), mx.array([math.nan, 2.0, -math.inf, 0.5, -1.0])
    assert numerics.sanitise_in_one_look(clean, 1.0).tolist() == clean.tolist()
    assert numerics.sanitise_in_one_look(bad, 1.0).tolist() == numerics.sanitise(bad, 1.0).tolist() == [0.0, 1.0, -1.0, 0.5, -1.0]
    for x in (clean, bad):
        def loss(x: mx.array, function: Callable[..., mx.array]) -> mx.array:
            return mx.sum(function(x, 1.0) * mx.arange(1.0, x.size + 1))

        gradients = [mx.grad(loss)(x, function) for function in (numerics.sanitise_in_one_look, numerics.sanitise)]
        assert gradients[0].tolist() == gradients[1].tolist()


def test_adamw_equals_the_reference(monkeypatch: pytest.MonkeyPatch, blocks: list[int]) -> None:
    monkeypatch.setattr(adamw, "SMALL", 100)
    shapes = [(20, 30), (5,), (333,)]
    tensors = [adamw.AdamTensor(*(normal(shape, shape, shape, seed=seed)), mx.abs(normal(shape)[0])) for seed, shape in enumerate(shapes)]
    shared = [mx.array([1e-2, 0.1, 0.9, 0.99, 1e-8, 0.1, 0.01]), mx.array([0.5, 1.0, 2.0])]
    for go in (True, False):
        step = adamw.AdamStep(*shared, mx.array([go]), mx.array([1.0, 1.0, 0.1]))
        for index, new in enumerate(adamw.adamw(tensors, step)):
            for ours, wanted in zip(new, adamw.adamw_reference(tensors[index], step, index), strict=True):
                same(ours, wanted, 1e-6)
    assert blocks == [600, 333]


def grid() -> np.ndarray:
    """Every size of float32: the line where functions bend, both tails, powers of ten from denormals to the largest."""
    tens = np.array([10.0**power for power in range(-45, 39)])
    return np.concatenate([np.linspace(-40, 40, 4001), tens, -tens, [0.0, -0.0]]).astype(np.float32)


def test_the_normal_integral_and_the_slope_of_gelu_over_the_whole_range() -> None:
    x = grid()
    with np.errstate(all="ignore"):
        phi = host.normal_integral(x)
        slope = host.gelu_slope(x, phi)
    exact = np.array([0.5 * math.erfc(-float(value) / math.sqrt(2)) for value in x])
    density = np.array([math.exp(-min(float(value) ** 2, 1e4) / 2) / math.sqrt(2 * math.pi) for value in x])
    np.testing.assert_allclose(phi, exact, rtol=0, atol=2e-7)
    np.testing.assert_allclose(slope, exact + x.astype(np.float64) * density, rtol=0, atol=4e-7)


def test_the_sigmoid_over_the_whole_range() -> None:
    x = np.concatenate([grid(), [np.inf, -np.inf]]).astype(np.float32)
    exact = 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -700, 700)))
    host.sigmoid(x)
    np.testing.assert_allclose(x, exact, rtol=0, atol=2e-7)


def test_infinities_and_nan_come_out_as_from_the_plain_graph() -> None:
    x = mx.array([[math.inf, -math.inf, math.nan, 1e30, -1e30, 1e-45]])
    ours, wanted = (np.array(function(x)) for function in (gelu.gelu, gelu.gelu_reference))
    np.testing.assert_array_equal(ours, wanted)


def test_sums_have_the_same_bits_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, found = of_gates(), []
    for cores in (1, 2, 5):
        monkeypatch.setattr(host, "_cores", lambda cores=cores: cores)
        new, gates = gru_gates.host_forward(*arguments, bound=10.0)
        found.append([np.array(d).tobytes() for d in gru_gates.host_backward(new, *arguments, gates=gates, bound=10.0)])
    assert found[0] == found[1] == found[2]


def test_the_backward_pass_of_the_gates_does_not_compute_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    computed = gru_gates._gates
    monkeypatch.setattr(gru_gates, "_gates", lambda *a, **k: (rows.append(len(a[0])), computed(*a, **k))[1])
    *floats, active = of_gates()
    gradient = mx.grad(lambda *a: mx.sum(gru_gates.gru_gates(*a, active)), argnums=range(5))(*floats)
    mx.eval(gradient)
    assert sum(rows) == 33


def test_an_error_in_a_block_comes_out() -> None:
    def broken(rows: slice) -> None:
        if rows.start == 8:
            raise ZeroDivisionError("of this block")

    with pytest.raises(ZeroDivisionError, match="of this block"):
        host.in_blocks(broken, 16, 64 // 4)


def test_traced_functions_take_the_plain_graph(tmp_path: Path, blocks: list[int]) -> None:
    x = normal((4, 6))[0]
    wanted = gelu.gelu_reference(x)
    same(mx.compile(gelu.gelu)(x), wanted, 1e-6)
    same(mx.vmap(gelu.gelu)(x), wanted, 1e-6)
    mx.export_function(str(tmp_path / "gelu.mlxfn"), gelu.gelu, x)
    same(mx.import_function(str(tmp_path / "gelu.mlxfn"))(x)[0], wanted, 1e-6)
    assert blocks == []


@pytest.mark.parametrize("setting", ["off", "off,+heads", "auto,-gru_gates"])
def test_the_variable_of_the_kernels_takes_the_plain_graph(setting: str, monkeypatch: pytest.MonkeyPatch, blocks: list[int]) -> None:
    monkeypatch.setenv(VARIABLE, setting)
    mx.eval(gru_gates.gru_gates(*of_gates()))
    assert blocks == []


@pytest.mark.parametrize("why", ["a GPU", "a Mac", "kernels=False", "few numbers"])
def test_elsewhere_the_plain_graph_is_taken(why: str, monkeypatch: pytest.MonkeyPatch, blocks: list[int]) -> None:
    if why == "a Mac":
        monkeypatch.setattr(host.sys, "platform", "darwin")
    if why == "a GPU":
        monkeypatch.setattr(host, "on_gpu", lambda: True)
    if why == "few numbers":
        monkeypatch.setattr(host, "LEAST", 33 * 15 + 1)
    mx.eval(gru_gates.gru_gates(*of_gates(), kernels=False if why == "kernels=False" else None))
    assert blocks == []


def test_further_derivatives_are_refused_instead_of_being_zero() -> None:
    x = normal((2, 3))[0]

    def slope(x: mx.array) -> mx.array:
        return mx.sum(mx.grad(lambda x: mx.sum(gelu.gelu(x)))(x))

    with pytest.raises(NotImplementedError, match="ENERGY_FLOW_KERNELS=off"):
        mx.grad(slope)(x)
    with pytest.raises(NotImplementedError, match="ENERGY_FLOW_KERNELS=off"):
        mx.jvp(lambda x: [gelu.gelu(x)], [x], [x])
