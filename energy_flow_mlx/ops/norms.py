"""The L2 norms of many tensors."""

from collections.abc import Sequence

import mlx.core as mx

from .kernel import call, filler, suited, use_kernel, whole

TENSORS = 28  # in one launch: with sizes and sums 30 buffers, and a Metal kernel has at most 31
GROUPS = {"metal": 32, "cuda": 128}  # threadgroups for each tensor: enough to keep a GPU's memory busy with a large one


def l2_norms(tensors: Sequence[mx.array], *, kernels: bool | None = None) -> mx.array:
    """The L2 norm of each of P tensors, in float32 [P].

    Args:
        tensors: of any shapes and floating-point dtypes; at least one.
        kernels: True or False forces the kernel or the plain graph.
    """
    if not use_kernel("norms", kernels):
        return l2_norms_reference(tensors)
    sums = [_sums(tensors[start : start + TENSORS]) for start in range(0, len(tensors), TENSORS)]
    return mx.sqrt(mx.sum(mx.concatenate(sums)[: len(tensors)], axis=1))


def l2_norms_reference(tensors: Sequence[mx.array]) -> mx.array:
    """`l2_norms` in plain MLX: the specification."""
    return mx.stack([mx.sqrt(_sum_of_squares(tensor.astype(mx.float32))) for tensor in tensors])


def _sum_of_squares(x: mx.array) -> mx.array:
    """Rows first: on a CPU MLX adds one number after another, which for the three million of a weight matrix is off by 0.3 %."""
    rows = mx.sum(mx.square(x), axis=-1) if x.ndim else mx.square(x)
    return mx.sum(rows)


def _sums(tensors: Sequence[mx.array]) -> mx.array:
    """Partial sums of squares [TENSORS, groups] of up to TENSORS tensors."""
    missing = TENSORS - len(tensors)
    given = [*tensors, *[filler()] * missing]
    inputs = {f"x{position}": tensor for position, tensor in enumerate(given)}
    inputs["sizes"] = whole(*(tensor.size for tensor in tensors), *[0] * missing)
    groups = suited(GROUPS)
    (sums,) = call(
        "norms",
        "squares",
        inputs,
        {"sums": ((TENSORS, groups), mx.float32)},
        threads=TENSORS * groups * 256,
        template={"GROUPS": groups},
    )
    return sums
