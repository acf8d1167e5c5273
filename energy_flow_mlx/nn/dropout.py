"""Dropout that does not depend on how many processes share a batch."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..place import own_rows


class Dropout(nn.Dropout):
    """`mlx.nn.Dropout`, whose mask is that of the whole batch at the rows [B, …] of this process; see `place`."""

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, …], and in training mode with zeros at random."""
        if self._p_1 == 1 or not self.training:
            return x
        mask = own_rows(partial(mx.random.bernoulli, self._p_1), x.shape)
        return (mask * x) * (1 / self._p_1)
