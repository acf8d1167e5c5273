"""adamw: kernel against reference; torch's AdamW is compared in tests/train/test_optimiser.py."""

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import metal_on_cpu, survivors

from energy_flow_mlx.ops.adamw import AdamStep, AdamTensor, Stepped, adamw, adamw_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import backends, kernels_on, same

# One launch takes three tensors; sizes under 8 and over a threadgroup's 256 are other cases for Metal.
SHAPES = [[(1,)], [(7,), (300, 2)], [(3, 5), (1,), (8,)], [(3,), (257,), (2, 2, 2), (256,)], [(40,)] * 7]


def arguments(shapes: list[tuple[int, ...]], go: bool = True) -> list[mx.array]:
    """The four arrays of a step, with another factor and rate for each tensor; then parameter, gradient and both moments of each."""
    rng = np.random.default_rng(0)
    settings = np.array([1e-2, 0.1, 0.9, 0.999, 1e-8, 0.1, 0.001])
    arrays = [settings, rng.random(len(shapes)) + 0.1, rng.random(len(shapes)) + 0.5]
    for shape in shapes:
        arrays += [
            rng.standard_normal(shape),
            rng.standard_normal(shape),
            rng.standard_normal(shape),
            rng.random(shape),
        ]
    given = [mx.array(x.astype(np.float32)) for x in arrays]
    return [*given[:2], mx.array([go]), *given[2:]]


def tensors(given: list[mx.array]) -> list[AdamTensor]:
    return [AdamTensor(*given[start : start + 4]) for start in range(4, len(given), 4)]


def kernel(*given: mx.array) -> list[mx.array]:
    new = adamw(tensors(list(given)), AdamStep(*given[:4]), kernels=True)
    return [array for tensor in new for array in tensor]


def reference(*given: mx.array) -> list[mx.array]:
    new = [adamw_reference(tensor, AdamStep(*given[:4]), index) for index, tensor in enumerate(tensors(list(given)))]
    return [array for tensor in new for array in tensor]


@backends
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("go", [True, False])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, shapes: list[tuple[int, ...]], go: bool, dtype: mx.Dtype) -> None:
    given = arguments(shapes, go)
    given[5] = given[5].astype(dtype)  # the first gradient; others beside it stay float32
    with kernels_on(where):
        new = kernel(*given)
        mx.eval(new)
    for a, w in zip(new, reference(*given), strict=True):
        same(a, w, 1e-6)
    before = [array for t in tensors(given) for array in Stepped(t.parameter, t.first, t.second)]
    assert go or all(mx.array_equal(a, b) for a, b in zip(new, before, strict=True))


def test_one_launch_takes_three_tensors() -> None:
    for count, launches in ((1, 1), (3, 1), (4, 2), (7, 3)):
        with metal_on_cpu(caches=[build]) as session:
            mx.eval(kernel(*arguments([(2,)] * count)))
        assert len(session.launches) == launches


@pytest.mark.parametrize("kernels", [True, False])
def test_a_factor_for_each_tensor(kernels: bool) -> None:
    given = arguments([(2,), (3,)])
    step = AdamStep(given[0], mx.ones((3,)), given[2], given[3])
    with pytest.raises(ValueError, match=r"factors: shape \(3,\) came with 2 tensors"):
        adamw(tensors(given), step, kernels=kernels)


def test_broken_kernels_are_noticed() -> None:
    given = arguments([(100,), (5,), (151,), (30,)])  # the first three leave no thread of their launch idle

    def check() -> None:
        new = kernel(*given)
        mx.eval(new)
        for a, w in zip(new, reference(*given), strict=True):
            same(a, w, 1e-6)

    edits = [
        ("if (i < uint(sizes[k]))", "if (i <= uint(sizes[k]))"),
        ("i -= uint(sizes[k]);", "i -= uint(sizes[0]);"),
        ("factors[index[k]]", "factors[k]"),
        ("rates[index[k]]", "rates[k]"),
        ("if (go[0])", "if (!go[0])"),
        ("metal::sqrt(v / settings[6])", "metal::sqrt(v)"),
        ("    TENSOR(2)\n", ""),
    ]
    assert not survivors(check, edits, caches=[build])
