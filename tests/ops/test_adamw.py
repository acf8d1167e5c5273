"""adamw: kernel against reference; torch's AdamW is compared in tests/training/test_optimiser.py."""

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import survivors

from energy_flow_mlx.ops.adamw import AdamStep, adamw, adamw_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import backends, kernels_on, same


def arguments(shape: tuple[int, ...], go: bool = True) -> list[mx.array]:
    """parameter, gradient, both moments, and the three arrays of a step; the third of three factors is used."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape), rng.random(shape),
              np.array([1e-2, 0.1, 0.9, 0.999, 1e-8, 0.1, 0.001]), np.array([9.0, 9.0, 0.5])]  # fmt: skip
    return [*(mx.array(x.astype(np.float32)) for x in arrays), mx.array([go])]


def kernel(*given: mx.array) -> tuple[mx.array, ...]:
    return adamw(*given[:4], AdamStep(*given[4:]), 2, kernels=True)


@backends
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (300, 2)])
@pytest.mark.parametrize("go", [True, False])
def test_kernel_equals_reference(where: str, shape: tuple[int, ...], go: bool) -> None:
    given = arguments(shape, go)
    wanted = adamw_reference(*given[:4], AdamStep(*given[4:]), 2)
    with kernels_on(where):
        new = kernel(*given)
        mx.eval(new)
    for a, w in zip(new, wanted, strict=True):
        same(a, w, 1e-6)
    assert go or all(mx.array_equal(a, b) for a, b in zip(new, (given[0], given[2], given[3]), strict=True))


def test_broken_kernels_are_noticed() -> None:
    def check() -> None:
        given = arguments((70,))
        new = kernel(*given)
        mx.eval(new)
        for a, w in zip(new, adamw_reference(*given[:4], AdamStep(*given[4:]), 2), strict=True):
            same(a, w, 1e-6)

    edits = [
        ("if (i >= uint(size[0])) return;", ""),
        ("factors[index[0]]", "factors[0]"),
        ("metal::sqrt(v / settings[6])", "metal::sqrt(v)"),
    ]
    assert not survivors(check, edits, caches=[build])
