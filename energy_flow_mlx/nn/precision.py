"""Mixed precision: master weights stay float32, a module computes with copies in another dtype."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..config import ModelConfig as EnergyConfig
from ..ops.kernel import as_type

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def flow_dtype(config: EnergyConfig) -> mx.Dtype:
    """Of what moves the flows: products and hidden state of the GRU, features, heads."""
    return mx.float32 if config.gru_force_fp32 else DTYPES[config.compute_dtype]


@contextmanager
def weights_in(module: nn.Module, dtype: mx.Dtype, wanted: Callable[[str], Any] = lambda name: True) -> Iterator[None]:
    """Inside, the parameters of `module` whose names are `wanted` are copies in `dtype`; afterwards its own arrays are back.

    Gradients pass through the copies to the arrays that the module has outside: those of products in `dtype`. Within another such
    block nothing is copied again.
    """
    if dtype == mx.float32:  # which weights have
        yield
        return
    own = module.parameters()
    module.update(
        tree_map_with_path(
            lambda name, weight: weight_in(weight, dtype, module.training) if wanted(name) else weight, own
        )
    )
    try:
        yield
    finally:
        module.update(own)


def weight_in(weight: mx.array, dtype: mx.Dtype, training: bool) -> mx.array:
    """A copy of `weight` in `dtype`; itself if it has it. In training the gradient of the weight is that of the copy as it comes:
    widened, it would be the same numbers in twice the memory."""
    if weight.dtype == dtype or not training:
        return as_type(weight, dtype)
    copy: mx.array = _copy_in(dtype)(weight)
    return copy


@functools.cache
def _copy_in(dtype: mx.Dtype) -> Any:
    """`astype` whose vjp passes the gradient on as it comes."""

    @mx.custom_function
    def copy(weight: mx.array) -> mx.array:
        return weight.astype(dtype)

    @copy.vjp
    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent

    return copy
