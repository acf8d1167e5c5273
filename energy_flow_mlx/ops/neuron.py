"""SimpleNeuron as one function of its arrays."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .differentiable import Differentiable
from .kernel import as_type, call, setting, suited, use_kernel, whole
from .norm_gelu import norm_gelu, norm_gelu_reference
from .numerics import sanitise, sanitise_in_one_look

THREADGROUP_BYTES = 32 * 1024  # of memory; what every Apple GPU gives a threadgroup
SIMD_FLOWS = 8  # of a SIMD-group of 32 threads: the kernels are written for it
FORWARD_THREADS = (128, 64, 32)  # of a threadgroup: the first that its memory takes; 128 threads have a tile of 32 flows
BACKWARD_THREADS = (128, 64, 32)
# Of backward: each leaves a row of gradients; beyond this many, groups take several tiles. The registers of an H100's 132
# multiprocessors take three groups each; of an Apple GPU that is four for each of 40 cores, and MLX does not tell how many there are.
MOST_GROUPS = {"metal": 160, "cuda": 396}
# Whether a backward thread computes some of the forward pass twice, rather than keep it: beside its sums it has no room on Metal.
SPARING = {"metal": True, "cuda": False}


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
    """Features [N, padded] of flows at their position and energy.

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
        if kernels is not None:
            return neuron_reference(position, energy, weights, padded=padded, bound=bound, dtype=dtype)
        x = neuron_reference(position, energy, weights, padded=padded, norm_gelu=norm_gelu)
        return as_type(x if bound is None else sanitise_in_one_look(x, bound), dtype)
    kernel = NeuronKernel(hidden, features, padded or features, bound, dtype)
    return run_packed(kernel, position, energy, pack(weights))


def wanted(hidden: int, features: int, kernels: bool | None = None) -> bool:
    """Whether a neuron of this size runs as a kernel: if kernels are picked, and it fits or `kernels` insists."""
    return use_kernel("neuron", kernels) and (bool(kernels) or fits(hidden, features))


def pack(weights: Sequence[mx.array]) -> mx.array:
    """The parameters as the kernel reads them: one float32 vector."""
    return mx.concatenate([weight.reshape(-1).astype(mx.float32) for weight in weights])


def neuron_reference(
    position: mx.array,
    energy: mx.array,
    weights: Sequence[mx.array],
    *,
    padded: int | None = None,
    bound: float | None = None,
    dtype: mx.Dtype = mx.float32,
    norm_gelu: Callable[..., mx.array] = norm_gelu_reference,
) -> mx.array:
    """`neuron` in plain MLX: the specification. `norm_gelu`: how LayerNorm and GELU are computed."""
    coord, coord_bias, first, first_bias, gamma, beta, second, second_bias, gamma2, beta2, last, last_bias = weights
    x = mx.concatenate([mx.addmm(coord_bias, position, coord.T), energy], axis=1)
    x = norm_gelu(mx.addmm(first_bias, x, first.T), gamma, beta)
    x = norm_gelu(mx.addmm(second_bias, x, second.T), gamma2, beta2)
    x = mx.addmm(last_bias, x, last.T)
    features = last.shape[0]
    if padded is not None and padded > features:
        x = mx.concatenate([x, energy, mx.zeros((x.shape[0], padded - features - 1))], axis=1)
    if bound is not None:
        x = sanitise(x, bound)
    return x.astype(dtype)


def fits(hidden: int, features: int) -> bool:
    """Whether the kernels' arrays fit into threadgroup memory; wider neurons run as a plain graph."""
    return _backward_threads(hidden, features) > 0


def _forward_threads(hidden: int, features: int) -> int:
    """Threads of a forward threadgroup, 0 if none fits: a flow has four inputs and a layer of activations there."""
    return _threads(FORWARD_THREADS, hidden, features, 4 + hidden)


def _backward_threads(hidden: int, features: int) -> int:
    """The same of backward, where a flow has inputs, two layers of activations and gradients of the widest layer."""
    return _threads(BACKWARD_THREADS, hidden, features, 4 + 2 * hidden + max(features, hidden))


def _threads(choice: Sequence[int], hidden: int, features: int, of_a_flow: int) -> int:
    room = THREADGROUP_BYTES // 4 - _weights_size(hidden, features)
    return next((threads for threads in choice if _tile(threads) * of_a_flow <= room), 0)


def _tile(threads: int) -> int:
    """Flows of a threadgroup."""
    return threads // 32 * SIMD_FLOWS


def _weights_size(hidden: int, features: int) -> int:
    """Floats of the weights in threadgroup memory: `Layout::size` of the kernel."""
    fours = -(-hidden // 4)
    row = 4 * (fours + 1 - fours % 2)
    second = -(-(12 + 7 * hidden) // 4) * 4
    last = -(-(second + hidden * row + 3 * hidden) // 4) * 4
    return last + features * row + features


class NeuronKernel(NamedTuple):
    """The kernels for one size of neuron: h, F, the width of a row of features, the bound on them (or None), and their dtype."""

    hidden: int
    features: int
    padded: int
    bound: float | None
    dtype: mx.Dtype

    def forward(self, position: mx.array, energy: mx.array, weights: mx.array) -> mx.array:
        """Features [N, padded] of flows; `weights` as `pack` gives them.

        Raises:
            ValueError: the neuron is too wide for threadgroup memory.
        """
        if not fits(self.hidden, self.features):
            raise ValueError(
                f"neuron: hidden_dim={self.hidden} with output_dim={self.features} needs more than {THREADGROUP_BYTES} bytes of "
                "threadgroup memory; accepted is kernels=False or a narrower neuron"
            )
        flows, group = position.shape[0], _forward_threads(self.hidden, self.features)
        inputs = {"position": position, "energy": energy, "weights": weights, "settings": setting(self.bound or 0.0)}
        outputs = {"features": ((flows, self.padded), self.dtype)}
        threads = group * -(-flows // _tile(group))
        return call("neuron", "forward", inputs, outputs, threads=threads, group=group, template=self._template(group))[0]

    def backward(
        self,
        cotangent: mx.array,
        position: mx.array,
        energy: mx.array,
        weights: mx.array,
        running: mx.array | None = None,
    ) -> list[mx.array]:
        """The gradients of position and energy, and sums [groups, P] of those of the weights, added to `running`."""
        flows, group = position.shape[0], _backward_threads(self.hidden, self.features)
        tiles = -(-flows // (_tile(group) * suited(MOST_GROUPS)))
        groups = -(-flows // (_tile(group) * tiles))
        inputs = {
            "position": position,
            "energy": energy,
            "weights": weights,
            "cotangent": as_type(cotangent, self.dtype),
            "settings": setting(self.bound or 0.0),
            "tiles": whole(tiles),
            "running": weights if running is None else running,
        }
        outputs = {
            "d_position": (position.shape, mx.float32),
            "d_energy": (energy.shape, mx.float32),
            "d_weights": ((groups, weights.size), mx.float32),
        }
        template = {**self._template(group), "RUNNING": running is not None, "SPARING": bool(suited(SPARING))}
        return call("neuron", "backward", inputs, outputs, threads=group * groups, group=group, template=template)

    def _template(self, group: int) -> dict[str, Any]:
        return {
            "T": self.dtype, "HIDDEN": self.hidden, "F": self.features, "PADDED": self.padded,
            "BOUNDED": self.bound is not None, "GROUP": group,
        }  # fmt: skip


def run_packed(kernel: NeuronKernel, position: mx.array, energy: mx.array, packed: mx.array) -> mx.array:
    """The features of flows, differentiable, from weights that `pack` packed once for many calls."""
    result: mx.array = _with_vjp(kernel)(position, energy, packed)
    return result


@functools.cache
def _with_vjp(kernel: NeuronKernel) -> Any:
    """The kernel as a differentiable function of position, energy and the packed weights."""

    @Differentiable
    def run(position: mx.array, energy: mx.array, weights: mx.array) -> mx.array:
        return kernel.forward(position, energy, weights)

    @run.vjp
    def gradients(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        d_position, d_energy, sums = kernel.backward(cotangent, *primals)
        return d_position, d_energy, mx.sum(sums, axis=0)

    return run
