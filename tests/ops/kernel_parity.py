"""Compare a kernel with its plain-MLX reference, forward and backward: on this CPU through the Metal harness, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import metal_on_cpu

from energy_flow_mlx.ops.kernel import build

HARNESS, GPU = "metal on cpu", "gpu"
has_gpu = mx.metal.is_available() or mx.cuda.is_available()
# Every parity test runs in the harness, and by itself on the GPU of a machine that has one.
backends = pytest.mark.parametrize(
    "where", [HARNESS, pytest.param(GPU, marks=pytest.mark.skipif(not has_gpu, reason="needs Metal or CUDA"))]
)

# Of the largest element: 16-bit kernels round once where the reference rounds after every operation.
TOLERANCE = {mx.float32: 2e-5, mx.float16: 1e-2, mx.bfloat16: 6e-2}


@contextmanager
def kernels_on(where: str, seed: int = 0, checked: bool = True) -> Iterator[None]:
    """Inside, `kernels=True` works: through the harness, each access watched if `checked`, or natively."""
    if where == GPU:
        yield
        return
    with metal_on_cpu(caches=[build], seed=seed, checked=checked):
        yield


def float64(array: mx.array) -> np.ndarray:
    """For comparison; NumPy has no bfloat16."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


def same(actual: mx.array, wanted: mx.array, tolerance: float) -> None:
    """Equal within `tolerance` of the largest element of `wanted` (or of 1, if that is larger)."""
    assert actual.shape == wanted.shape
    a, w = float64(actual), float64(wanted)
    np.testing.assert_allclose(a, w, rtol=0, atol=tolerance * max(1.0, float(np.max(np.abs(w), initial=0.0))))


def compare(
    where: str,
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Sequence[mx.array],
    *,
    dtype: mx.Dtype = mx.float32,
    tolerance: float | None = None,
    seed: int = 0,
    checked: bool = True,
) -> None:
    """Forward outputs and gradients of all floating-point `arguments` agree.

    The reference runs in float32 on the same (already rounded) numbers; float arguments are converted to `dtype`.
    """
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    arguments = [x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x for x in arguments]
    floats = [index for index, x in enumerate(arguments) if mx.issubdtype(x.dtype, mx.floating)]
    exact = [x.astype(mx.float32) if index in floats else x for index, x in enumerate(arguments)]

    def of_floats(function: Callable[..., Any], all_arguments: Sequence[mx.array]) -> Callable[..., list[mx.array]]:
        def call(*given: mx.array) -> list[mx.array]:
            filled = list(all_arguments)
            for index, value in zip(floats, given, strict=True):
                filled[index] = value
            outputs = function(*filled)
            outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
            return [output for output in outputs if mx.issubdtype(output.dtype, mx.floating)]

        return call

    rng = np.random.default_rng(len(arguments[0].shape) + arguments[0].size)
    with mx.stream(mx.cpu):  # on a GPU too, whose own layer_norm and products are less exact
        wanted = of_floats(reference, exact)(*[exact[i] for i in floats])
        cotangents = [mx.array(rng.standard_normal(output.shape).astype(np.float32)) for output in wanted]
        _, wanted_gradients = mx.vjp(of_floats(reference, exact), [exact[i] for i in floats], cotangents)
        mx.eval(wanted, cotangents, wanted_gradients)
    with kernels_on(where, seed, checked):
        outputs, gradients = mx.vjp(
            of_floats(kernel, arguments), [arguments[i] for i in floats], [c.astype(dtype) for c in cotangents]
        )
        mx.eval(outputs, gradients)
    for actual, want in zip(outputs, wanted, strict=True):
        same(actual, want, allowed)
    for actual, want in zip(gradients, wanted_gradients, strict=True):
        same(actual, want, allowed)
