"""SimpleNeuron as one function of its arrays."""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kernel import call, setting, use_kernel
from .numerics import sanitise

THREADGROUP_BYTES = 32 * 1024  # of memory; what every Apple GPU gives a threadgroup
TILE = 32  # flows a threadgroup of the backward kernel has at a time
MOST_GROUPS = 2048  # each leaves a row of gradients; beyond this many, groups take several tiles


def neuron(
    position: mx.array,
    energy: mx.array,
    weights: Sequence[mx.array],
    *,
    padded: int | None = None,
    bound: float | None = None,
    dtype: mx.Dtype = mx.float32,
    kernels: bool | None = None,
) -> mx.array:
    """Features of flows (pytorch_energy_flow, section 2).

        Linear(3, 3)(position), energy -> Linear(4, h) LN GELU -> Linear(h, h) LN GELU -> Linear(h, F)

    Args:
        position: [N, 3].
        energy: [N, 1].
        weights: the twelve parameters in order, each layer's weight before its bias: coord_encoder [3, 3], [3]; [h, 4], [h]; LayerNorm
            [h], [h]; [h, h], [h]; LayerNorm [h], [h]; [F, h], [F].
        padded: width of the result, at least F: column F then holds the energy and the others 0. None: F.
        bound: sanitise the result: NaN -> 0, +-inf -> +-10, clip to +-bound; None: leave it.
        dtype: of the result; the arithmetic is float32.
        kernels: True or False forces the kernel or the plain graph.

    Returns:
        [N, padded].
    """
    hidden, features = weights[2].shape[0], weights[-1].shape[0]
    if not wanted(hidden, features, kernels):
        return neuron_reference(position, energy, weights, padded=padded, bound=bound, dtype=dtype)
    return run_packed(pack(weights), position, energy, hidden, features, padded, bound, dtype)


def wanted(hidden: int, features: int, kernels: bool | None = None) -> bool:
    """Whether a neuron of this size runs as a kernel: if kernels are picked, and it fits or `kernels` insists."""
    return use_kernel("neuron", kernels) and (bool(kernels) or fits(hidden, features))


def pack(weights: Sequence[mx.array]) -> mx.array:
    """The parameters as the kernel reads them: one float32 vector."""
    return mx.concatenate([weight.reshape(-1).astype(mx.float32) for weight in weights])


def run_packed(
    packed: mx.array,
    position: mx.array,
    energy: mx.array,
    hidden: int,
    features: int,
    padded: int | None = None,
    bound: float | None = None,
    dtype: mx.Dtype = mx.float32,
) -> mx.array:
    """The kernel on parameters that `pack` has packed, once for many steps; other arguments as `neuron`."""
    result: mx.array = _with_vjp(hidden, features, padded or features, bound, dtype)(position, energy, packed)
    return result


def neuron_reference(
    position: mx.array,
    energy: mx.array,
    weights: Sequence[mx.array],
    *,
    padded: int | None = None,
    bound: float | None = None,
    dtype: mx.Dtype = mx.float32,
) -> mx.array:
    """`neuron` in plain MLX: the specification."""
    coord, coord_bias, first, first_bias, gamma, beta, second, second_bias, gamma2, beta2, last, last_bias = weights
    x = mx.concatenate([mx.addmm(coord_bias, position, coord.T), energy], axis=1)
    x = nn.gelu(mx.fast.layer_norm(mx.addmm(first_bias, x, first.T), gamma, beta, 1e-5))
    x = nn.gelu(mx.fast.layer_norm(mx.addmm(second_bias, x, second.T), gamma2, beta2, 1e-5))
    x = mx.addmm(last_bias, x, last.T)
    features = last.shape[0]
    if padded is not None and padded > features:
        x = mx.concatenate([x, energy, mx.zeros((x.shape[0], padded - features - 1))], axis=1)
    if bound is not None:
        x = sanitise(x, bound)
    return x.astype(dtype)


def fits(hidden: int, features: int) -> bool:
    """Whether the kernels' arrays fit into threadgroup memory; wider neurons run as a plain graph."""
    words = -(-features // 32) * 32
    backward = 4 * (_count(hidden, features) + 4 * max(hidden, 4) * 33 + words)
    return backward <= THREADGROUP_BYTES and _group(hidden, features) > 0


def _count(hidden: int, features: int) -> int:
    return 12 + 4 * hidden + 3 * hidden + hidden * hidden + 3 * hidden + features * hidden + features


def _group(hidden: int, features: int) -> int:
    """Threads of a forward threadgroup: as many as its memory takes, 0 if none."""
    room = THREADGROUP_BYTES // 4 - _count(hidden, features)
    return max((group for group in (32, 64, 128) if 2 * hidden * group <= room), default=0)


@functools.cache
def _with_vjp(hidden: int, features: int, padded: int, bound: float | None, dtype: mx.Dtype) -> Any:
    """The kernel as a differentiable function of position, energy and the packed weights."""
    if not fits(hidden, features):
        raise ValueError(
            f"neuron: hidden_dim={hidden} with output_dim={features} needs more than {THREADGROUP_BYTES} bytes of threadgroup "
            "memory; accepted is kernels=False or a narrower neuron"
        )
    bounded = bound is not None
    template = {"T": dtype, "HIDDEN": hidden, "F": features, "PADDED": padded, "BOUNDED": bounded}

    @mx.custom_function
    def run(position: mx.array, energy: mx.array, weights: mx.array) -> mx.array:
        flows, group = position.shape[0], _group(hidden, features)
        inputs = {"position": position, "energy": energy, "weights": weights, "settings": setting(bound or 0.0)}
        outputs = {"features": ((flows, padded), dtype)}
        sizes = {**template, "GROUP": group}
        return call("neuron", "forward", inputs, outputs, threads=flows, group=group, template=sizes)[0]

    @run.vjp
    def gradients(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        position, energy, weights = primals
        flows = position.shape[0]
        tiles = -(-flows // (TILE * MOST_GROUPS))
        groups = -(-flows // (TILE * tiles))
        inputs = {
            "position": position,
            "energy": energy,
            "weights": weights,
            "cotangent": cotangent.astype(dtype),
            "settings": setting(bound or 0.0),
            "tiles": _whole(tiles),
        }
        outputs = {
            "d_position": (position.shape, mx.float32),
            "d_energy": (energy.shape, mx.float32),
            "d_weights": ((groups, weights.size), mx.float32),
        }
        d_position, d_energy, sums = call(
            "neuron", "backward", inputs, outputs, threads=TILE * groups, group=TILE, template=template
        )
        return d_position, d_energy, mx.sum(sums, axis=0)

    return run


@functools.cache
def _whole(number: int) -> mx.array:
    return mx.array([number], dtype=mx.int32)
