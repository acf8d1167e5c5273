"""The GRU that drives the flows, in its matrix form."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.gru_gates import gru_gates
from .precision import weight_in
from .quantised import QuantisedMatrix, quantised_matrix


class GRUWeights(NamedTuple):
    """One layer: input [3 Hd, D] and hidden [3 Hd, Hd] in the dtype of the products; bias [3 Hd] and hidden_bias [Hd] float32."""

    input: mx.array
    hidden: mx.array
    bias: mx.array
    hidden_bias: mx.array


class GRUCell(nn.Module):
    """One time step of a GRU layer: one product for all gates of the input, one for those of the hidden state.

    Parameters have the names and layout of `mlx.nn.GRU`, so the two exchange weights: Wx [3 Hd, D], Wh [3 Hd, Hd],
    b [3 Hd] (the sum of torch's two biases for r and z, its b_in for n) and bhn [Hd] (torch's b_hn). Gate order r, z, n.

    Args:
        input_size: D.
        hidden_size: Hd.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.Wx = mx.zeros((3 * hidden_size, input_size))
        self.Wh = mx.zeros((3 * hidden_size, hidden_size))
        self.b = mx.zeros((3 * hidden_size,))
        self.bhn = mx.zeros((hidden_size,))
        initialise_gru(self)

    def __call__(
        self, x: mx.array, hidden: mx.array, active: mx.array | None = None, *, bound: float | None = None
    ) -> mx.array:
        """x [N, D], hidden [N, Hd] -> new hidden [N, Hd]; rows where `active` [N] is False keep their hidden state.

        With `bound` the result is sanitised (NaN -> 0, +-inf -> +-10) and clipped to +-bound.
        """
        return gru_step(self.weights(x.dtype), x, hidden, active, bound=bound)[0]

    def weights(self, dtype: mx.Dtype) -> GRUWeights:
        """The parameters, those of the products in `dtype`; in training their gradients too."""
        input, hidden = (weight_in(weight, dtype, self.training) for weight in (self.Wx, self.Wh))
        return GRUWeights(input, hidden, self.b, self.bhn)

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", quantize_input: bool = False
    ) -> "GRUCell":
        """The cell with quantised weights; itself where they are too narrow to gain. See `quantised_matrix`."""
        input, hidden = (quantised_matrix(weight, bits, group_size, mode, quantize_input) for weight in (self.Wx, self.Wh))
        return self if input is None or hidden is None else QuantisedGRUCell(input, hidden, self.b, self.bhn)


class QuantisedGRUCell(GRUCell):
    """`GRUCell` with quantised weights, for inference.

    They are made dense once for all steps of a life: its products are over thousands of flows, for which reading the weights is the
    lesser part.
    """

    Wx: Any  # QuantisedMatrix
    Wh: Any

    def __init__(self, input: QuantisedMatrix, hidden: QuantisedMatrix, bias: mx.array, hidden_bias: mx.array) -> None:
        nn.Module.__init__(self)
        self.Wx, self.Wh, self.b, self.bhn = input, hidden, bias, hidden_bias
        self.freeze()

    def weights(self, dtype: mx.Dtype) -> GRUWeights:
        """The parameters, those of the products dense and in `dtype`."""
        return GRUWeights(self.Wx.dense(dtype), self.Wh.dense(dtype), self.b, self.bhn)


def gru_step(
    weights: GRUWeights, x: mx.array, hidden: mx.array, active: mx.array | None = None, *, bound: float | None = None
) -> tuple[mx.array, tuple[mx.array, mx.array]]:
    """One time step of a layer; see `GRUCell.__call__` for the arguments.

    Returns:
        The new hidden state [N, Hd], and what its gradient is computed from: the products of input and hidden state with their
        weights, [N, 3 Hd] each.
    """
    products = x @ weights.input.T, hidden @ weights.hidden.T
    return gru_gates(*products, weights.bias, weights.hidden_bias, hidden, active, bound=bound), products


def initialise_gru(layer: nn.Module) -> None:
    """The reference's initial weights, for a GRUCell or an nn.GRU.

    weight_ih Xavier uniform, weight_hh orthogonal, biases 0 except the update gate's third, which is 1 in both of torch's
    biases and so 2 in their sum.
    """
    rows, inputs = layer.Wx.shape
    size = rows // 3
    bound = math.sqrt(6.0 / (rows + inputs))
    layer.Wx = mx.random.uniform(-bound, bound, layer.Wx.shape)
    layer.Wh = orthogonal(rows, size)
    layer.b = mx.concatenate([mx.zeros((size,)), mx.full((size,), 2.0), mx.zeros((size,))])
    layer.bhn = mx.zeros((size,))


_BLANK = ContextVar("blank", default=False)


@contextmanager
def blank_weights() -> Iterator[None]:
    """Layers that are made within have zeros for the initial weights that would take time, for a model that gets its weights from a file."""
    token = _BLANK.set(True)
    try:
        yield
    finally:
        _BLANK.reset(token)


def orthogonal(rows: int, columns: int) -> mx.array:
    """A random matrix [rows, columns] float32 with orthonormal columns, uniformly distributed; rows >= columns.

    The Q of a Gaussian matrix, signs chosen so that R has a positive diagonal (Mezzadri 2007, How to generate random matrices from
    the classical compact groups). The numbers come from `mx.random`, so its seed decides; NumPy decomposes: MLX has QR on the CPU
    alone, through a LAPACK that is slow with many threads, and its `mx.nn.init.orthogonal` decomposes a square of the longer side and
    then reads the diagonal with a gather, which CUDA first has to compile.
    """
    if _BLANK.get():
        return mx.zeros((rows, columns))
    q, r = np.linalg.qr(np.array(mx.random.normal((rows, columns))))
    return mx.array(q * np.where(np.diagonal(r) < 0, -1.0, 1.0).astype(q.dtype))
