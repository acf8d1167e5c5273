"""One time step of a GRU layer: two products and the gates, differentiated as one function."""

import functools
from typing import Any

import mlx.core as mx

from . import gru_gates as gates
from .kernel import use_kernel


def gru_layer(
    x: mx.array,
    hidden: mx.array,
    input_weight: mx.array,
    hidden_weight: mx.array,
    bias: mx.array,
    hidden_bias: mx.array,
    active: mx.array | None = None,
    *,
    bound: float | None = None,
    kernels: bool | None = None,
) -> mx.array:
    """The new hidden state: `gru_gates` of x @ input_weight.T and hidden @ hidden_weight.T.

    With the kernel, the backward pass adds the direct gradient of `hidden` inside the product that makes the rest of it:
    left to the graph, that sum reads and writes [N, Hd] once more in every layer and step.

    Args:
        x: [N, D].
        hidden: [N, Hd].
        input_weight: [3 Hd, D].
        hidden_weight: [3 Hd, Hd].
        bias, hidden_bias, active, bound, kernels: see `gru_gates`.

    Returns:
        [N, Hd].
    """
    if not use_kernel("gru_gates", kernels):
        input_gates, hidden_gates = x @ input_weight.T, hidden @ hidden_weight.T
        return gates.gru_gates_reference(input_gates, hidden_gates, bias, hidden_bias, hidden, active, bound=bound)
    masked = active is not None
    mask = active if active is not None else mx.ones((1,), dtype=mx.bool_)
    floats = (bias.astype(mx.float32), hidden_bias.astype(mx.float32))
    new: mx.array = _with_vjp(masked, bound)(x, hidden, input_weight, hidden_weight, *floats, mask)[0]
    return new


@functools.cache
def _with_vjp(masked: bool, bound: float | None) -> Any:
    @mx.custom_function
    def layer(
        x: mx.array,
        hidden: mx.array,
        input_weight: mx.array,
        hidden_weight: mx.array,
        bias: mx.array,
        hidden_bias: mx.array,
        active: mx.array,
    ) -> list[mx.array]:
        products = x @ input_weight.T, hidden @ hidden_weight.T
        new = gates.forward(*products, bias, hidden_bias, hidden, active, masked=masked, bound=bound)
        return [new, *products]  # the products are results, so that the backward pass has them

    @layer.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        x, hidden, input_weight, hidden_weight, bias, hidden_bias, active = primals
        d_input, d_hidden_gates, d_bias, d_hidden_bias, direct = gates.backward(
            cotangents[0], outputs[1], outputs[2], bias, hidden_bias, hidden, active, masked=masked, bound=bound
        )
        return (
            d_input @ input_weight,
            mx.addmm(direct, d_hidden_gates, hidden_weight),
            d_input.T @ x,
            d_hidden_gates.T @ hidden,
            d_bias,
            d_hidden_bias,
            mx.zeros_like(active),
        )

    return layer
