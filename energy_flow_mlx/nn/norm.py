"""The norms of the models, which compute in the dtype of their input."""

import mlx.core as mx
import mlx.nn as nn

from ..ops.kernel import as_type


class LayerNorm(nn.LayerNorm):
    """`mlx.nn.LayerNorm` that computes in the dtype of its input."""

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., d] -> [..., d], of the dtype of x."""
        weight, bias = (as_type(self[name], x.dtype) if name in self else None for name in ("weight", "bias"))
        return mx.fast.layer_norm(x, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """`mlx.nn.RMSNorm` that computes in the dtype of its input."""

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., d] -> [..., d], of the dtype of x."""
        return mx.fast.rms_norm(x, as_type(self.weight, x.dtype), self.eps)
