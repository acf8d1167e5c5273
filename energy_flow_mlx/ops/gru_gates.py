"""The gates of a GRU step, after the two matrix products."""

import mlx.core as mx


def gru_gates(
    input_gates: mx.array,
    hidden_gates: mx.array,
    hidden_bias: mx.array,
    hidden: mx.array,
    active: mx.array | None = None,
) -> mx.array:
    """The new hidden state of a GRU, gate order r, z, n as in torch.

        r = sigmoid(i_r + h_r)    z = sigmoid(i_z + h_z)    n = tanh(i_n + r * (h_n + hidden_bias))
        h' = (1 - z) * n + z * hidden

    Args:
        input_gates: [N, 3 Hd], the product of the input with its weights, all biases but `hidden_bias` added.
        hidden_gates: [N, 3 Hd], the product of the hidden state with its weights.
        hidden_bias: [Hd], the bias inside the reset product (`bhn`, torch's b_hn).
        hidden: [N, Hd].
        active: [N] bool, or None for all; where False the hidden state stays.

    Returns:
        [N, Hd].
    """
    size = hidden.shape[-1]
    gates = input_gates[:, : 2 * size] + hidden_gates[:, : 2 * size]
    reset, update = mx.sigmoid(gates[:, :size]), mx.sigmoid(gates[:, size:])
    candidate = mx.tanh(input_gates[:, 2 * size :] + reset * (hidden_gates[:, 2 * size :] + hidden_bias))
    new = candidate + update * (hidden - candidate)
    return new if active is None else mx.where(active[:, None], new, hidden)
