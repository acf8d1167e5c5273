"""The gates of a GRU step, after the two matrix products."""

import functools
from typing import Any

import mlx.core as mx

from .differentiable import Differentiable
from .kernel import as_type, call, columns_of_a_thread, setting, suited, use_kernel
from .numerics import sanitise

ROWS = 16  # rows a thread of the backward kernel walks, and sums the biases' gradients over
# Columns of a thread of the backward kernel, at most: of each it keeps 21 numbers.
BACKWARD_COLUMNS = {"metal": 2, "cuda": 4}


def gru_gates(
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array | None = None,
    *,
    bound: float | None = None,
    kernels: bool | None = None,
) -> mx.array:
    """The new hidden state of a GRU, gate order r, z, n as in torch.

        r = sigmoid(i_r + h_r + b_r)    z = sigmoid(i_z + h_z + b_z)    n = tanh(i_n + b_n + r * (h_n + hidden_bias))
        h' = (1 - z) * n + z * hidden

    Args:
        input_gates: [N, 3 Hd], the product of the input with its weights.
        hidden_gates: [N, 3 Hd], the product of the hidden state with its weights.
        bias: [3 Hd], all biases but `hidden_bias`.
        hidden_bias: [Hd], the bias inside the reset product (`bhn`, torch's b_hn).
        hidden: [N, Hd].
        active: [N] bool, or None for all; where False the hidden state stays.
        bound: sanitise the result: NaN -> 0, +-inf -> +-10, clip to +-bound; None: leave it.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Returns:
        [N, Hd], of the dtype of `hidden`.
    """
    if not use_kernel("gru_gates", kernels):
        return gru_gates_reference(input_gates, hidden_gates, bias, hidden_bias, hidden, active, bound=bound)
    masked = active is not None
    # Biases stay float32: they are small, and their gradients are sums over all rows.
    floats = (bias.astype(mx.float32), hidden_bias.astype(mx.float32))
    mask = active if active is not None else mx.ones((1,), dtype=mx.bool_)
    return _with_vjp(masked, bound)(input_gates, hidden_gates, *floats, hidden, mask)


def gru_gates_reference(
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array | None = None,
    *,
    bound: float | None = None,
) -> mx.array:
    """`gru_gates` in plain MLX: the specification."""
    size = hidden.shape[-1]
    bias, hidden_bias = bias.astype(hidden.dtype), hidden_bias.astype(hidden.dtype)
    inputs = input_gates + bias
    gates = inputs[:, : 2 * size] + hidden_gates[:, : 2 * size]
    reset, update = mx.sigmoid(gates[:, :size]), mx.sigmoid(gates[:, size:])
    candidate = mx.tanh(inputs[:, 2 * size :] + reset * (hidden_gates[:, 2 * size :] + hidden_bias))
    new = candidate + update * (hidden - candidate)
    if active is not None:
        new = mx.where(active[:, None], new, hidden)
    return new if bound is None else sanitise(new, bound)


@functools.cache
def _with_vjp(masked: bool, bound: float | None) -> Any:
    """The kernel as a differentiable function of its arrays."""

    @Differentiable
    def gates(*arrays: mx.array) -> mx.array:
        return forward(*arrays, masked=masked, bound=bound)

    @gates.vjp
    def gradients(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        d_input, d_hidden_gates, d_hidden, sums = backward(cotangent, *primals, masked=masked, bound=bound)
        total, own = mx.sum(sums, axis=0), primals[2].size
        return d_input, d_hidden_gates, total[:own], total[own:], d_hidden, mx.zeros_like(primals[5])

    return gates


def forward(
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array,
    *,
    masked: bool,
    bound: float | None,
) -> mx.array:
    """The forward kernel."""
    rows = hidden.shape[0]
    template, columns = _template(hidden, masked, bound)
    inputs = _inputs(input_gates, hidden_gates, bias, hidden_bias, hidden, active, bound)
    outputs = {"new_hidden": (hidden.shape, hidden.dtype)}
    return call("gru_gates", "forward", inputs, outputs, threads=rows * columns, template=template)[0]


def backward(
    cotangent: mx.array,
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array,
    *,
    masked: bool,
    bound: float | None,
    above: mx.array | None = None,
    running: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The gradients of input_gates, hidden_gates and hidden, and sums [blocks, 4 Hd] of those of r, z, n and n's hidden part.

    The gates are computed anew.

    Args:
        cotangent: [N, Hd]; `above`, if given, is added to it.
        running: sums of other steps to add to, or None.
    """
    rows, size = hidden.shape
    template, columns = _template(hidden, masked, bound, suited(BACKWARD_COLUMNS))
    blocks = -(-rows // ROWS)
    inputs = _inputs(input_gates, hidden_gates, bias, hidden_bias, hidden, active, bound)
    inputs["cotangent"] = as_type(cotangent, hidden.dtype)
    inputs["above"] = inputs["cotangent"] if above is None else as_type(above, hidden.dtype)
    inputs["running"] = bias if running is None else running
    outputs = {
        "d_input_gates": (input_gates.shape, hidden.dtype),
        "d_hidden_gates": (input_gates.shape, hidden.dtype),
        "d_hidden": (hidden.shape, hidden.dtype),
        "d_bias": ((blocks, 4 * size), mx.float32),
    }
    template |= {"ROWS": ROWS, "TWO": above is not None, "RUNNING": running is not None}
    d_input, d_hidden_gates, d_hidden, sums = call(
        "gru_gates", "backward", inputs, outputs, threads=blocks * columns, group=128, template=template
    )
    return d_input, d_hidden_gates, d_hidden, sums


def _template(hidden: mx.array, masked: bool, bound: float | None, most: int = 4) -> tuple[dict[str, Any], int]:
    """The template arguments, and the threads of a row, which have up to `most` columns."""
    size = hidden.shape[1]
    width = columns_of_a_thread(size, most)
    template = {"T": hidden.dtype, "HD": size, "V": width, "MASKED": masked, "BOUNDED": bound is not None}
    return template, size // width


def _inputs(
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array,
    bound: float | None,
) -> dict[str, mx.array]:
    return {
        "input_gates": as_type(input_gates, hidden.dtype),
        "hidden_gates": as_type(hidden_gates, hidden.dtype),
        "bias": bias,
        "hidden_bias": hidden_bias,
        "hidden": hidden,
        "active": active,
        "settings": setting(bound or 0.0),
    }
