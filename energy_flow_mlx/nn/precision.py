"""Mixed precision: weights stay float32, and a layer computes with a copy of them in the dtype of its input."""

import functools
from typing import Any

import mlx.core as mx

from ..config import ModelConfig
from ..ops.kernel import as_type

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def flow_dtype(config: ModelConfig) -> mx.Dtype:
    """Of what moves the flows: products and hidden state of the GRU, features, heads."""
    return mx.float32 if config.gru_force_fp32 else DTYPES[config.compute_dtype]


def weight_in(weight: mx.array, dtype: mx.Dtype, training: bool) -> mx.array:
    """A copy of `weight` in `dtype`; the weight itself if it has that dtype. In training the gradient of the weight keeps the dtype
    of the copy: widened to float32 it would be the same numbers in twice the memory."""
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
