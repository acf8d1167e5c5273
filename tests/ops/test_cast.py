"""cast: kernel against reference, forward and backward, and mutants."""

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import metal_on_cpu, survivors

from energy_flow_mlx.ops.cast import TENSORS, cast
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import backends, kernels_on

# Sizes under 4 and 8, no multiple of 4, of more than a threadgroup, and more tensors than one launch takes.
SHAPES = [[(1,)], [(7,), (8,), (3, 5)], [(1030,), (2, 3, 4)], [(k + 1,) for k in range(TENSORS + 2)]]
DTYPES = [mx.float32, mx.float16, mx.bfloat16]


def arguments(shapes: list[tuple[int, ...]]) -> list[mx.array]:
    rng = np.random.default_rng(len(shapes))
    return [mx.array((rng.standard_normal(shape) * (k + 1)).astype(np.float32)) for k, shape in enumerate(shapes)]


def kernel(*tensors: mx.array) -> list[mx.array]:
    return cast(tensors, mx.bfloat16, kernels=True)


def same_bits(actual: list[mx.array], wanted: list[mx.array]) -> None:
    assert [array.dtype for array in actual] == [array.dtype for array in wanted]
    for one, other in zip(actual, wanted, strict=True):
        assert mx.array_equal(one, other), (one.shape, one.dtype)


@backends
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("own", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_gives_the_bits_of_astype(where: str, shapes: list, own: mx.Dtype, dtype: mx.Dtype) -> None:
    tensors = [tensor.astype(own) for tensor in arguments(shapes)]
    cotangents = [(3 * tensor + 1).astype(dtype) for tensor in tensors]
    with kernels_on(where):
        outputs, gradients = mx.vjp(lambda *given: cast(given, dtype, kernels=True), tensors, cotangents)
        mx.eval(outputs, gradients)
    same_bits(outputs, [tensor.astype(dtype) for tensor in tensors])
    same_bits(gradients, [cotangent.astype(own) for cotangent in cotangents])


@backends
def test_what_is_not_finite_stays_so(where: str) -> None:
    x = mx.array([float("nan"), float("inf"), -float("inf"), 1e30, 1e-40])
    with kernels_on(where):
        (half,) = cast([x], mx.float16, kernels=True)
        (bfloat,) = kernel(x)
        mx.eval(half, bfloat)
    assert mx.array_equal(half, x.astype(mx.float16), equal_nan=True)
    assert mx.array_equal(bfloat[:4], x[:4].astype(mx.bfloat16), equal_nan=True)


@backends
def test_mixed_dtypes_and_transposed_tensors(where: str) -> None:
    tensors = [mx.arange(6.0).reshape(2, 3).T, mx.arange(5.0).astype(mx.bfloat16), mx.array([[0.1]])]
    with kernels_on(where):
        new = kernel(*tensors)
        mx.eval(new)
    same_bits(new, [tensor.astype(mx.bfloat16) for tensor in tensors])


def test_one_launch_takes_many_tensors() -> None:
    for count, launches in ((1, 1), (TENSORS, 1), (TENSORS + 1, 2)):
        with metal_on_cpu(caches=[build]) as session:
            mx.eval(kernel(*arguments([(2,)] * count)))
        assert len(session.launches) == launches


def test_nothing_is_launched_for_tensors_that_have_the_dtype() -> None:
    x = mx.ones((3,))
    with metal_on_cpu(caches=[build]) as session:
        assert cast([x], mx.float32, kernels=True)[0] is x
    assert not session.launches


def test_broken_kernels_are_noticed() -> None:
    tensors = arguments([(70,), (130,), (9,)])

    def check() -> None:
        same_bits(kernel(*tensors), [tensor.astype(mx.bfloat16) for tensor in tensors])

    edits = [
        ("4 * i + 4 <= size", "4 * i <= size"),
        ("k < size;", "k + 1 < size;"),
        ("store4(y, i, value);", "store4(y, 0, value);"),
        ("load4(x, i, value);", "load4(x, i + 1, value);"),
        ("i -= (uint(sizes[k]) + 3) / 4;", ""),
        ("i -= (uint(sizes[k]) + 3) / 4;", "i -= uint(sizes[k]) / 4;"),
        ("if (i < (uint(sizes[k]) + 3) / 4)", "if (i < uint(sizes[k]) / 4)"),
        ("TENSOR(2) ", ""),
    ]
    assert not survivors(check, edits, caches=[build])
