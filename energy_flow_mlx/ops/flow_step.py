"""A whole step of flows as one kernel, or all steps of their lives, for evaluation. Neither has a gradient."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .advance import Move, advance_reference
from .gru_gates import gru_gates_reference
from .heads import heads_reference
from .kernel import as_type, call, setting, suited, use_kernel, whole
from .neuron import neuron_reference, pack

# Flows of a threadgroup: the first that threadgroup memory takes. More share each weight that is read, and take more registers.
ROWS = {"metal": (32, 16), "cuda": (96, 64, 32)}
GROUP = {"metal": 128, "cuda": 512}  # threads of it
PARTS = {"metal": 1, "cuda": 2}  # into which its rows are cut, each with SIMD-groups of its own: fewer registers a thread, more threads
THREADGROUP_BYTES = {"metal": 32 * 1024, "cuda": 48 * 1024}
# `in_block` of kernels/matrix.h: the order in which a block's axes, those of [L, N / 16, 2, 8, Hd / 16, 8, 2], lie in memory.
BLOCK = {"metal": (0, 1, 4, 2, 3, 5, 6), "cuda": (0, 1, 4, 3, 5, 2, 6)}


Layer = tuple[mx.array, mx.array, mx.array, mx.array]  # input [3 Hd, D], hidden [3 Hd, Hd], bias [3 Hd], hidden_bias [Hd]
# inner [A + M, Hd], its bias [A + M], energy_weight [A], displacement_weight [3, M] and out_bias [4]; A = Hd / 2
Heads = tuple[mx.array, mx.array, mx.array, mx.array, mx.array]


class Weights(NamedTuple):
    """What a step reads; the matrices of layers and heads in the dtype of the products.

    neuron: its twelve parameters, as `ops.neuron` takes them. layers: the first takes D >= F + 1 columns: features, the energy, zeros.
    """

    neuron: Sequence[mx.array]
    layers: Sequence[Layer]
    heads: Heads


class Packed(NamedTuple):
    """The weights as the kernel reads them: neuron and vectors float32, matrices in tiles and in the dtype of the products."""

    neuron: mx.array
    matrices: mx.array
    vectors: mx.array


class Life(NamedTuple):
    """Flows after all their steps. position [N, 3]; energy [N, 1]; active, arrived and dropped [N] bool: those that still move, that
    reached an output plane, and whose move was too short; age [N] int32."""

    position: mx.array
    energy: mx.array
    active: mx.array
    age: mx.array
    arrived: mx.array
    dropped: mx.array


def flow_step(
    position: mx.array,
    energy: mx.array,
    hidden: mx.array,
    active: mx.array,
    age: mx.array,
    scale: mx.array,
    weights: Weights,
    *,
    features_bound: float | None = None,
    bound: float | None = None,
    reflection: bool = False,
    kernels: bool | None = None,
) -> tuple[Move, mx.array]:
    """The flows after one step without noise; those that are not active stay as they are.

    Args:
        position: [N, 3] in [-1, 1].
        energy: [N, 1].
        hidden: [L, N, Hd], in the dtype of the products.
        active: [N] bool.
        age: [N] int32.
        scale: [1], factor on displacements.
        weights: of neuron, GRU and heads.
        features_bound, bound: to which features and new hidden states are sanitised; None: they are not.
        reflection: mirror x and y at the side walls instead of stopping there.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Returns:
        The move, and the new hidden states [L, N, Hd].

    Raises:
        ValueError: the kernel is forced and does not take these sizes.
    """
    options: Any = {"features_bound": features_bound, "bound": bound, "reflection": reflection}
    hidden_dim, features = weights.neuron[2].shape[0], weights.neuron[-1].shape[0]
    inner = weights.heads[3].shape[1]
    kernel = StepKernel(hidden.shape[0], hidden.shape[2], inner, hidden_dim, features, features_bound, bound, reflection, hidden.dtype)
    if not use_kernel("flow_step", kernels) or (kernels is None and kernel.unsuited()):
        return flow_step_reference(position, energy, hidden, active, age, scale, weights, **options)
    packed = kernel.packed(pack(weights.neuron), weights.layers, weights.heads)
    move, after = kernel(packed, position, energy, kernel.padded(hidden), active, age, scale)
    return move, kernel.unpadded(after, position.shape[0])


def flow_step_reference(
    position: mx.array,
    energy: mx.array,
    hidden: mx.array,
    active: mx.array,
    age: mx.array,
    scale: mx.array,
    weights: Weights,
    *,
    features_bound: float | None = None,
    bound: float | None = None,
    reflection: bool = False,
) -> tuple[Move, mx.array]:
    """`flow_step` in plain MLX: the specification."""
    columns = weights.layers[0][0].shape[1]
    x = neuron_reference(position, energy, weights.neuron, padded=columns, bound=features_bound, dtype=hidden.dtype)
    states = []
    for (of_input, of_hidden, bias, hidden_bias), state in zip(weights.layers, hidden, strict=True):
        x = gru_gates_reference(x @ of_input.T, state @ of_hidden.T, bias, hidden_bias, state, active, bound=bound)
        states.append(x)
    inner, inner_bias, energy_weight, displacement_weight, out_bias = weights.heads
    new_energy, displacement = heads_reference(x @ inner.T, inner_bias, energy_weight, displacement_weight, out_bias, scale)
    return advance_reference(displacement, new_energy, position, energy, None, active, age, reflection=reflection), mx.stack(states)


def flow_life_reference(
    position: mx.array,
    energy: mx.array,
    hidden: mx.array,
    active: mx.array,
    age: mx.array,
    scale: mx.array,
    weights: Weights,
    *,
    steps: int,
    shortest: float | None = None,
    **options: Any,
) -> Life:
    """`steps` steps of `flow_step_reference`, whose arguments it takes. Flows whose move is shorter than `shortest` and does not end on a
    plane are dropped."""
    arrived = dropped = mx.zeros_like(active)
    for _ in range(steps):
        move, hidden = flow_step_reference(position, energy, hidden, active, age, scale, weights, **options)
        short = move.moving & (move.length < shortest) if shortest is not None else mx.zeros_like(active)
        position, energy, active, age = move.position, move.energy, move.moving & ~short, move.age
        arrived, dropped = arrived | move.terminated, dropped | short
    return Life(position, energy, active, age, arrived, dropped)


class StepKernel(NamedTuple):
    """The kernel for one size of model: L, Hd, M, the neuron's h and F, both bounds, reflection, and the dtype of the products."""

    layers: int
    size: int
    inner: int
    hidden: int
    features: int
    features_bound: float | None
    bound: float | None
    reflection: bool
    dtype: mx.Dtype

    def unsuited(self) -> str:
        """Why the kernel does not take this size; "" where it does."""
        if self.size % 16:
            return f"carrier_hidden_size={self.size} is no multiple of 16, the inputs of a matrix unit's product"
        if self.inner % 8:
            return f"the displacement head's {self.inner} columns are no multiple of 8, the outputs of a matrix unit's product"
        if self.hidden % 4:
            return f"neuron_hidden_dim={self.hidden} is no multiple of 4, the numbers of one load"
        if not self.rows():
            return f"neuron_hidden_dim={self.hidden} and neuron_output_dim={self.features} need more threadgroup memory than there is"
        return ""

    def rows(self) -> int:
        """Flows of a threadgroup; 0 if none fit."""
        simds, parts, room = suited(GROUP) // 32, suited(PARTS), suited(THREADGROUP_BYTES)
        width = -(-(self.features + 1) // 16) * 16

        def needed(rows: int) -> int:
            of_a_flow = width * self.dtype.size + 4 * (simds // parts * 4 + 7)  # 7: its state in a life
            return rows * of_a_flow + 4 * min(simds, rows // 8) * (32 + 8 * self.hidden)

        return next((rows for rows in suited(ROWS) if needed(rows) <= room), 0)

    def padded(self, hidden: mx.array) -> mx.array:
        """Hidden states [L, N, Hd] as the kernel has them: with rows up to whole tiles, and in blocks, an order that it alone reads."""
        return _blocks(mx.pad(hidden, [(0, 0), (0, -hidden.shape[1] % self.rows()), (0, 0)]))

    def unpadded(self, hidden: mx.array, flows: int) -> mx.array:
        """[L, N, Hd] of so many flows, from hidden states as the kernel has them."""
        return _rows(hidden)[:, :flows]

    def packed(self, neuron: mx.array, layers: Sequence[Layer], heads: Heads) -> Packed:
        """The weights for `__call__`, packed once for many steps; `neuron` as `ops.neuron.pack` gives it.

        Raises:
            ValueError: the kernel does not take this size.
        """
        if reason := self.unsuited():
            raise ValueError(f"flow_step: {reason}; accepted is kernels=False or another size")
        matrices = [matrix for layer in layers for matrix in layer[:2]]
        vectors = [vector for layer in layers for vector in layer[2:]]
        return Packed(
            neuron,
            mx.concatenate([_tiles(as_type(matrix, self.dtype)) for matrix in (*matrices, heads[0])]),
            mx.concatenate([as_type(vector, mx.float32).reshape(-1) for vector in (*vectors, *heads[1:])]),
        )

    def __call__(
        self,
        packed: Packed,
        position: mx.array,
        energy: mx.array,
        hidden: mx.array,
        active: mx.array,
        age: mx.array,
        scale: mx.array,
    ) -> tuple[Move, mx.array]:
        """The flows after a step, and their hidden states; `hidden` as `padded` gives it, and so are the new ones: `unpadded` reads them.

        Raises:
            NotImplementedError: when a gradient is asked for.
        """
        *move, after = _without_gradient(self, "forward", 1, None)(*packed, position, energy, active, age, scale, hidden)
        return Move(*move), after

    def life(
        self,
        packed: Packed,
        position: mx.array,
        energy: mx.array,
        active: mx.array,
        age: mx.array,
        scale: mx.array,
        steps: int,
        shortest: float | None = None,
    ) -> Life:
        """The flows after so many steps, from hidden states of 0: `flow_life_reference` in one launch.

        Raises:
            NotImplementedError: when a gradient is asked for.
        """
        return Life(*_without_gradient(self, "life", steps, shortest)(*packed, position, energy, active, age, scale)[:6])

    def launch(self, body: str, steps: int, shortest: float | None, arrays: Sequence[mx.array]) -> list[mx.array]:
        """The kernel, on Packed, position, energy, active, age, scale and, for a step, hidden."""
        names = ("neuron", "matrices", "vectors", "position", "energy", "active", "age", "scale", "hidden")
        inputs = dict(zip(names, arrays, strict=False))
        flows, rows, group = inputs["position"].shape[0], self.rows(), suited(GROUP)
        groups = -(-flows // rows)
        inputs["settings"] = setting(self.features_bound or 0.0, self.bound or 0.0, shortest or 0.0)
        states = ((self.layers, groups * rows, self.size), self.dtype)
        template = {
            "T": self.dtype, "L": self.layers, "HD": self.size, "M": self.inner, "HIDDEN": self.hidden, "F": self.features,
            "ROWS": rows, "GROUP": group, "PARTS": suited(PARTS), "FEATURES_BOUNDED": self.features_bound is not None,
            "BOUNDED": self.bound is not None, "REFLECT": self.reflection,
        }  # fmt: skip
        outputs: dict[str, tuple[Sequence[int], mx.Dtype]] = {
            "next_position": ((flows, 3), mx.float32),
            "next_energy": ((flows, 1), mx.float32),
        }
        boolean, whole_number = ((flows,), mx.bool_), ((flows,), mx.int32)
        if body == "forward":
            outputs |= {"terminated": boolean, "moving": boolean, "next_age": whole_number, "length": ((flows,), mx.float32)}
            outputs |= {"next_hidden": states}
        else:
            inputs["steps"], template["FILTERED"] = whole(steps), shortest is not None
            outputs |= {"moving": boolean, "next_age": whole_number, "arrived": boolean, "dropped": boolean}
            outputs |= {"even_hidden": states, "odd_hidden": states}
        return call("flow_step", body, inputs, outputs, threads=groups * group, group=group, template=template)


def _tiles(matrix: mx.array) -> mx.array:
    """[outputs, inputs] as tiles of 8 outputs by 16 inputs, for each 8 outputs all inputs, with zeros up to a multiple of 16."""
    matrix = mx.pad(matrix, [(0, 0), (0, -matrix.shape[1] % 16)])
    outputs, inputs = matrix.shape
    return matrix.reshape(outputs // 8, 8, inputs // 16, 16).swapaxes(1, 2).reshape(-1)


def _blocks(rows: mx.array) -> mx.array:
    """[L, N, Hd], N and Hd multiples of 16, in blocks of 16 rows by 16 columns, for each 16 rows all columns."""
    layers, flows, size = rows.shape
    return rows.reshape(layers, flows // 16, 2, 8, size // 16, 8, 2).transpose(suited(BLOCK)).reshape(rows.shape)


def _rows(blocks: mx.array) -> mx.array:
    """The rows that `_blocks` was given."""
    (layers, flows, size), order = blocks.shape, suited(BLOCK)
    axes = (layers, flows // 16, 2, 8, size // 16, 8, 2)
    return blocks.reshape([axes[axis] for axis in order]).transpose([order.index(axis) for axis in range(7)]).reshape(blocks.shape)


@functools.cache
def _without_gradient(kernel: StepKernel, body: str, steps: int, shortest: float | None) -> Any:
    """The kernel as a function that says so where it is differentiated."""

    @mx.custom_function
    def run(*arrays: mx.array) -> list[mx.array]:
        return kernel.launch(body, steps, shortest, arrays)

    @run.vjp
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(
            "whole steps as one kernel (flow_step) have no gradient; ENERGY_FLOW_KERNELS=auto,-flow_step takes the steps apart"
        )

    return run
