"""The gates of a GRU step, after the two matrix products."""

import functools
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from . import host
from .differentiable import Differentiable, by_numpy
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
        arrays = (input_gates, hidden_gates, bias, hidden_bias, hidden, *(() if active is None else (active,)))
        if host.use_host("gru_gates", kernels, *arrays):
            result: mx.array = _on_host(bound)(*arrays)
            return result
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


class HostGates(NamedTuple):
    """What the backward pass reads again, NumPy's. reset, update, candidate [N, Hd]; beyond: whether a result was not within the bound."""

    reset: host.Rows
    update: host.Rows
    candidate: host.Rows
    beyond: bool


def _on_host(bound: float | None) -> Any:
    """The gates by NumPy, as a function of its arrays for one call: between its two passes it keeps the gates."""
    kept: list[HostGates] = []

    def forward(*arrays: mx.array) -> mx.array:
        result, gates = host_forward(*arrays, bound=bound)
        kept.append(gates)
        return result

    def backward(cotangent: mx.array, *arrays: mx.array) -> list[mx.array]:
        return host_backward(cotangent, *arrays, gates=kept.pop(), bound=bound)  # popped, so that they are free once it is done

    return by_numpy(forward, backward)


def host_forward(
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array | None = None,
    *,
    bound: float | None,
) -> tuple[mx.array, HostGates]:
    """`gru_gates` by NumPy, and what `host_backward` reads."""
    result, new = host.new(hidden.shape)
    of_input, of_hidden, own, own_hidden, before = map(host.read, (input_gates, hidden_gates, bias, hidden_bias, hidden))
    moving = None if active is None else host.read(active, mx.bool_)
    gates = np.empty((3, *hidden.shape), dtype=np.float32)

    def block(rows: slice) -> bool:
        _, update, candidate = _gates(of_input[rows], of_hidden[rows], own, own_hidden, out=gates[:, rows])
        _blend(update, candidate, before[rows], out=new[rows])
        if moving is not None and not moving[rows].all():
            np.copyto(new[rows], before[rows], where=~moving[rows, None])
        beyond = bound is not None and not host.within(new[rows], bound)
        if bound is not None and beyond:
            _sanitise(new[rows], bound)
        return beyond

    beyond = any(host.in_blocks(block, *hidden.shape))
    return as_type(result, hidden.dtype), HostGates(gates[0], gates[1], gates[2], beyond)


def host_backward(
    cotangent: mx.array,
    input_gates: mx.array,
    hidden_gates: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array | None = None,
    *,
    gates: HostGates,
    bound: float | None,
) -> list[mx.array]:
    """The gradients of `gru_gates` by NumPy, in the order of its arrays."""
    size = hidden.shape[1]
    (d_input, of_gates), (d_hidden_gates, of_products), (d_hidden, of_before) = (
        host.new(array.shape) for array in (input_gates, hidden_gates, hidden)
    )
    arrays = (input_gates, hidden_gates, bias, hidden_bias, hidden)
    above, of_hidden, own_hidden, before = map(host.read, (cotangent, hidden_gates, hidden_bias, hidden))
    moving = None if active is None else host.read(active, mx.bool_)

    def block(rows: slice) -> host.Rows:
        reset, update, candidate = gates.reset[rows], gates.update[rows], gates.candidate[rows]
        d, kept = above[rows], None
        if bound is not None and gates.beyond:
            new = _blend(update, candidate, before[rows])
            if moving is not None:
                np.copyto(new, before[rows], where=~moving[rows, None])
            d = np.where(np.abs(new) <= bound, d, np.float32(0))  # NaN is not
        if moving is not None and not moving[rows].all():
            kept = d * ~moving[rows, None]
            d = d * moving[rows, None]
        # In arrays of their own until they are done: columns of the result are slower to go through.
        rest = 1 - update
        d_before = np.multiply(d, update, out=of_before[rows])
        of_update = before[rows] - candidate
        of_update *= d_before
        of_update *= rest
        of_candidate = np.multiply(d, rest, out=rest)
        slope = candidate * candidate
        of_candidate *= np.subtract(1, slope, out=slope)
        of_product = np.multiply(of_candidate, reset, out=slope)
        of_reset = of_hidden[rows, 2 * size :] + own_hidden
        of_reset *= of_product
        of_reset *= 1 - reset
        if kept is not None:
            d_before += kept
        for at, gate in enumerate((of_reset, of_update, of_candidate)):
            of_gates[rows, at * size : (at + 1) * size] = gate
            of_products[rows, at * size : (at + 1) * size] = gate if at < 2 else of_product
        return np.concatenate([gate.sum(axis=0) for gate in (of_reset, of_update, of_candidate, of_product)])

    of_bias, of_hidden_bias = mx.split(host.total(host.in_blocks(block, *hidden.shape), mx.float32), [3 * size])
    gradients = [d_input, d_hidden_gates, of_bias, of_hidden_bias, d_hidden]
    gradients = [as_type(d, array.dtype) for d, array in zip(gradients, arrays, strict=True)]
    return gradients if active is None else [*gradients, mx.zeros_like(active)]


def _gates(of_input: host.Rows, of_hidden: host.Rows, bias: host.Rows, hidden_bias: host.Rows, out: host.Rows) -> host.Rows:
    """r, z and n, [3, rows, Hd], in `out`."""
    size = hidden_bias.shape[0]
    reset, update, candidate = (slice(at * size, (at + 1) * size) for at in range(3))
    r, z, n = out
    for x, gate in ((r, reset), (z, update)):
        np.add(of_input[:, gate], of_hidden[:, gate], out=x)
        x += bias[gate]
        host.sigmoid(x)
    np.add(of_hidden[:, candidate], hidden_bias, out=n)
    n *= r
    n += of_input[:, candidate]
    n += bias[candidate]
    np.tanh(n, out=n)
    return out


def _blend(update: host.Rows, candidate: host.Rows, hidden: host.Rows, out: host.Rows | None = None) -> host.Rows:
    """n + z (h - n)."""
    new: host.Rows = np.subtract(hidden, candidate, out=out)
    new *= update
    new += candidate
    return new


def _sanitise(x: host.Rows, bound: float) -> None:
    """`numerics.sanitise`, in place."""
    np.nan_to_num(x, copy=False, nan=0.0, posinf=10.0, neginf=-10.0)
    np.clip(x, -bound, bound, out=x)


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
