"""norms: kernel against reference, determinism, and mutants."""

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import metal_on_cpu, survivors

from energy_flow_mlx.ops.kernel import build
from energy_flow_mlx.ops.norms import TENSORS, l2_norms, l2_norms_reference

from .kernel_parity import HARNESS, backends, kernels_on, same

# Sizes under 8, of a threadgroup, and of more than all the threads that a tensor has.
SHAPES = [[(1,)], [(7,), (8,), (3, 5)], [(256,), (257,), (129, 256), (2, 3, 4)], [(k + 1,) for k in range(TENSORS + 2)]]


def arguments(shapes: list[tuple[int, ...]]) -> list[mx.array]:
    rng = np.random.default_rng(len(shapes))
    return [mx.array((rng.standard_normal(shape) * (k + 1)).astype(np.float32)) for k, shape in enumerate(shapes)]


def kernel(*tensors: mx.array) -> mx.array:
    return l2_norms(tensors, kernels=True)


@backends
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, shapes: list[tuple[int, ...]], dtype: mx.Dtype) -> None:
    tensors = [tensor.astype(dtype) for tensor in arguments(shapes)]
    with kernels_on(where):
        norms = kernel(*tensors)
        mx.eval(norms)
    assert norms.dtype == mx.float32
    same(norms, l2_norms_reference(tensors), 2e-5)
    exact = [np.linalg.norm(np.array(tensor.astype(mx.float32)).astype(np.float64)) for tensor in tensors]
    np.testing.assert_allclose(np.array(norms), exact, rtol=1e-6)


def test_reference_is_numpys_norm() -> None:
    tensors = arguments([(3, 5), (1,), (40,)])
    wanted = [np.linalg.norm(np.array(tensor).astype(np.float64)) for tensor in tensors]
    np.testing.assert_allclose(np.array(l2_norms_reference(tensors)), wanted, rtol=1e-6)


@backends
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_own_norm_alone(where: str, value: float) -> None:
    tensors = [mx.ones((4,)), mx.array([0.0] * 300 + [value]), mx.ones((9,))]
    with kernels_on(where):
        norms = kernel(*tensors)
        mx.eval(norms)
    assert mx.isfinite(norms).tolist() == [True, False, True]


def test_one_launch_takes_many_tensors() -> None:
    for count, launches in ((1, 1), (TENSORS, 1), (TENSORS + 1, 2)):
        with metal_on_cpu(caches=[build]) as session:
            mx.eval(kernel(*arguments([(2,)] * count)))
        assert len(session.launches) == launches


def test_the_same_bits_in_any_order_of_threads() -> None:
    results = []
    for seed in (0, 1, 2):
        with kernels_on(HARNESS, seed):
            results.append(kernel(*arguments([(5000,), (33,)])))
            mx.eval(results[-1])
    assert mx.array_equal(results[0], results[1]) and mx.array_equal(results[0], results[2])


def test_broken_kernels_are_noticed() -> None:
    tensors = arguments([(70,), (129, 256), (9,)])

    def check() -> None:
        norms = kernel(*tensors)
        mx.eval(norms)
        same(norms, l2_norms_reference(tensors), 2e-5)

    edits = [
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
        ("i < size;", "i <= size;"),
        ("i += stride", "i += 2 * stride"),
        ("float(x[i]) * float(x[i])", "float(x[i])"),
        ("GROUPS * 256)", "GROUPS * 128)"),
        ("% GROUPS * 256", "% GROUPS * 255"),
        ("sizes[tensor]", "sizes[0]"),
        ("part < 8", "part < 7"),
        ("TENSOR(2) ", ""),
    ]
    assert not survivors(check, edits, caches=[build])


def test_the_plain_graph_is_accurate_for_large_matrices() -> None:
    x = np.random.default_rng(0).standard_normal((3072, 1024)).astype(np.float32)
    with mx.stream(mx.cpu):
        norm = l2_norms([mx.array(x)], kernels=False).item()
    assert norm == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-5)
