"""One optimiser step."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..config import EnergyConfig
from ..data.source import Order, PairBatch, PairDataset
from ..distributed import ALONE, World
from ..models.energy_flow import EnergyFlow
from ..ops.compilation import compiled, compiles, plan_kernels
from ..ops.kernel import as_type
from ..tensors import listing
from .loss import MEANS, LossParts, energy_flow_loss
from .loss_scale import LossScale
from .optimiser import AdamW, clip_factors, gradient_norms, named_arrays
from .stages import first_not_finite, not_finite


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient became NaN or infinite. The model and the optimiser are as they were before the step.

    where: what was not finite first: data, parameters, the output of a stage, or gradients.
    parameter: the one with the largest gradient.
    """

    def __init__(self, step: int, loss: float, indices: Sequence[int], where: str, parameter: str, norm: float) -> None:
        self.step, self.indices, self.where, self.parameter = step, list(indices), where, parameter
        super().__init__(
            f"step {step}: the loss is {loss}: {where}. The largest gradient, that of {parameter}, has norm {norm}. "
            f"The batch holds the training pairs {self.indices}"
        )


class StepMetrics(NamedTuple):
    """Scalars [] of one step, lazy; means over its micro-batches, except that flows are summed."""

    loss: mx.array
    parts: LossParts
    gradient_norm: mx.array  # before clipping
    skipped: mx.array  # 1 if float16 gradients overflowed and the step was skipped
    loss_scale: mx.array


class Launched(NamedTuple):
    """A step that was launched: its metrics, and what an error message would need."""

    step: int
    metrics: StepMetrics
    checked: mx.array  # [3]: loss, gradient norm, loss scale; in one array, because each transfer from the device waits
    norms: mx.array  # [P]
    names: list[str]
    batches: Sequence[PairBatch]
    learning_rate: float
    stops: mx.array  # []: how many processes were asked to stop before they launched the step


def step_keys(seed: int, step: int, micro_batch: int) -> tuple[int, mx.array]:
    """A seed for `mx.random`'s own state (dropout) and a key for the noise, derived from (seed, step, micro-batch): a resumed run draws the same numbers."""
    dropout, noise = np.random.SeedSequence([seed, step, micro_batch]).generate_state(2, np.uint64)
    return int(dropout), mx.random.key(int(noise))


def micro_batches(data: PairDataset, order: Order, step: int, count: int) -> list[PairBatch]:
    """The `count` batches of optimiser step `step`."""
    return [data.batch(order.indices(step * count + micro_batch)) for micro_batch in range(count)]


class TrainStep:
    """Forward, backward, clip, update. Only the trainable parameters of the model take part.

    A step whose loss or gradient is not finite changes nothing, nor does any step after it. This is decided on the device, so that the
    next step can be launched before the metrics of the last one are read. With float16 gradients that overflow are expected:
    they halve the loss scale and the run goes on.

    Args:
        model: in training mode.
        optimiser: its learning rate is set anew by each call.
        config: of the run.
        loss_scale: where a resumed run's float16 scaling stood.
        world: the processes that share each batch. Their gradients are averaged once a step; then all do the same update.
        stopping: whether this process was asked to stop, which the others learn from the next step's result.
    """

    def __init__(
        self,
        model: EnergyFlow,
        optimiser: AdamW,
        config: EnergyConfig,
        loss_scale: LossScale | None = None,
        world: World = ALONE,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.optimiser, self.config = model, optimiser, config
        self.world, self._stopping = world, stopping
        self.scaled = config.compute_dtype == "float16"
        self.loss_scale = loss_scale or LossScale.start(config.gradient_scale_init if self.scaled else 1.0)
        self._alive = mx.array(True)
        self._kernels_planned = False

        def loss(
            model: EnergyFlow, batch: PairBatch, key: mx.array, step: int, scale: mx.array | float
        ) -> tuple[mx.array, tuple[mx.array, LossParts]]:
            with world.sharing():
                value, parts = energy_flow_loss(model, config, batch, key=key, training_step=step, world=world)
            if world.size > 1:
                scale = scale / world.size  # a pair's gradients are as large as in one process: float16 overflows at the same
            return value * scale, (value, parts)

        self._loss_and_gradients = nn.value_and_grad(model, loss)
        self._micro_batch: Callable[..., Any] = self._sum_micro_batch
        self._update: Callable[..., Any] = self._update_weights
        if compiles(config):
            weights, drawn = model.state, mx.random.state
            self._micro_batch = compiled(self._sum_micro_batch, inputs=[weights, drawn], outputs=[drawn])
            state = [weights, optimiser.state]
            self._update = compiled(self._update_weights, inputs=state, outputs=state)

    def __call__(self, step: int, batches: Sequence[PairBatch], learning_rate: float) -> StepMetrics:
        """Do step `step`, counted from 0, with the mean gradient of `batches`, which are of one size, and wait for it.

        Raises:
            NonFiniteLoss: the loss or a gradient is not finite; nothing was updated.
        """
        return self.settle(self.launch(step, batches, learning_rate))

    def launch(self, step: int, batches: Sequence[PairBatch], learning_rate: float) -> Launched:
        """Launch step `step` on the device and return at once; `settle` waits for the result."""
        loss, parts, gradients = self._sums(step, batches)
        loss, parts, stops = _pooled(loss, parts, self._stopping(), self.world)
        rate = mx.array(learning_rate, dtype=mx.float32)
        norms, total, checked, skipped, self._alive, scaling = self._update(
            gradients, loss, rate, self._alive, self.loss_scale, len(batches)
        )
        metrics = _means(loss, parts, len(batches))
        metrics = metrics._replace(gradient_norm=total, skipped=skipped, loss_scale=self.loss_scale.scale)
        self.loss_scale = LossScale(*scaling)
        self.model.trained_steps = step + 1
        mx.async_eval(metrics, stops, checked, norms, self.model.parameters(), self.optimiser.state, self.loss_scale, self._alive)
        return Launched(step, metrics, checked, norms, list(named_arrays(gradients)), batches, learning_rate, stops)

    def _update_weights(
        self, gradients: Any, loss: mx.array, rate: mx.array, alive: mx.array, scaling: LossScale, count: int
    ) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array, LossScale]:
        """Clip the gradients and update the weights, unless the loss or a gradient is not finite.

        Returns:
            The norms [P] of the mean gradients and the norm of all together, what `settle` checks, whether the step was skipped,
            whether the run goes on, and the loss scaling after the step.
        """
        scaling = LossScale(*scaling)
        # Gradients may be slices of a larger array: copied once here instead of in every kernel that reads them.
        gradients = tree_map(mx.contiguous, self.world.mean(gradients))
        shares = self.world.size
        shrink = shares / (count * scaling.scale) if self.scaled else mx.array(shares / count)
        norms = gradient_norms(gradients)[1] * shrink
        total = mx.linalg.norm(norms)
        finite = total < math.inf  # NaN is not
        checked = mx.stack([loss / count, total, scaling.scale])
        alive = alive & (mx.abs(loss) < math.inf)
        go = alive & finite
        factors = shrink * clip_factors(norms, self.config.gradient_clip_per_tensor, self.config.gradient_clip)
        self.optimiser.learning_rate = rate
        trainable = self.model.trainable_parameters()
        self.model.update(self.optimiser.apply_gradients(gradients, trainable, factors, go.reshape(1)))
        if self.scaled:
            return norms, total, checked, (~finite).astype(mx.int32), alive, scaling.after(finite)
        return norms, total, checked, (~finite).astype(mx.int32), go, scaling

    def settle(self, launched: Launched) -> StepMetrics:
        """Wait for a launched step and check its loss and gradient norm.

        Raises:
            NonFiniteLoss: see `__call__`; or the float16 loss scale fell under 1.
        """
        metrics = launched.metrics
        loss, norm, loss_scale = cast(list[float], launched.checked.tolist())
        tolerated = self.scaled and loss_scale > 1.0
        if not math.isfinite(loss) or not (math.isfinite(norm) or tolerated):
            self.model.trained_steps = launched.step
            raise self._non_finite(launched, loss)
        return metrics

    @property
    def alive(self) -> bool:
        """Whether every step launched so far had a finite loss and gradient, as far as its dtype asks for it; waits for them."""
        return bool(self._alive)

    def gradients(self, step: int, batches: Sequence[PairBatch]) -> tuple[StepMetrics, Any]:
        """The metrics (loss and parts alone) and the mean gradient over the micro-batches, times the loss scale; lazy. Of one
        micro-batch the gradients have the dtypes they come in, of several float32."""
        loss, parts, gradients = self._sums(step, batches)
        if len(batches) > 1:
            gradients = tree_map(lambda g: g / len(batches), gradients)
        return _means(loss, parts, len(batches)), gradients

    def _sums(self, step: int, batches: Sequence[PairBatch]) -> tuple[mx.array, LossParts, Any]:
        """Loss, parts and gradients (times the loss scale), summed over the micro-batches; lazy."""
        sums: tuple[mx.array, LossParts, Any] | None = None
        number_ = mx.array(step, dtype=mx.int32)
        for micro_batch, batch in enumerate(batches):
            dropout_seed, key = step_keys(self.config.seed, step, micro_batch)
            arrays = [mx.array(array) for array in (*batch[:4], batch.target_ids) if array is not None]
            scale = self.loss_scale.scale if self.scaled else 1.0
            if not self._kernels_planned:
                self._kernels_planned = True
                plan_kernels(self._sum_micro_batch, arrays, key, number_, scale, None)
            mx.random.seed(dropout_seed)
            sums = self._micro_batch(arrays, key, number_, scale, sums)
            if len(batches) > 1 and micro_batch == 0:
                # Gradients of 16-bit weights come in 16 bits; their sum is float32.
                loss, parts, gradients = sums
                sums = loss, parts, tree_map(lambda first: as_type(first, mx.float32), gradients)
            # Start now, without waiting: the activations of one micro-batch are freed before the next one's are made.
            mx.async_eval(sums)
        assert sums is not None
        return sums

    def _sum_micro_batch(
        self, arrays: list[mx.array], key: mx.array, step: mx.array, scale: mx.array | float, sums: Any
    ) -> tuple[mx.array, LossParts, Any]:
        """Loss, parts and gradients of one micro-batch, added to those before it."""
        inputs, targets, ids, mask, *target_ids = cast(Any, arrays)
        batch = PairBatch(inputs, targets, ids, mask, np.arange(0), *target_ids)
        own = self.model.parameters()
        (_, (value, parts)), gradients = self._loss_and_gradients(self.model, batch, key, step, scale)
        self.model.update(own)  # nn.value_and_grad leaves the arrays it traced in the model
        new = value, parts, gradients
        return new if sums is None else tree_map(mx.add, sums, new)

    def _non_finite(self, launched: Launched, loss: float) -> NonFiniteLoss:
        norms = np.array(launched.norms)
        largest = int(np.argmax(np.where(np.isnan(norms), np.inf, norms)))  # NaN counts as the largest
        own = [[int(index) for index in batch.indices] for batch in launched.batches]
        found = self.world.exchange([self._where(launched), own])  # all processes are here, as they have the same loss and norms
        indices = [index for of_batch in zip(*(own for _, own in found), strict=True) for share in of_batch for index in share]
        where = next((where for where, _ in found if where), "") or self._beyond(launched)
        return NonFiniteLoss(launched.step, loss, indices, where, launched.names[largest], float(norms[largest]))

    def _where(self, launched: Launched) -> str:
        """What up to the end of the forward pass was not finite first; empty: nothing. The weights are still those before the step: its
        forward pass can be made again."""
        for batch in launched.batches:
            for name in ("input_embedding", "target_embedding"):
                finite = np.isfinite(np.asarray(getattr(batch, name))).all(axis=1)
                if not finite.all():
                    pair = batch.indices[int(np.argmin(finite))]
                    return f"the {name.replace('_', ' ')} of training pair {pair} is not finite"
        if bad := not_finite(self.model.parameters()):
            return f"not finite is the parameter {listing(bad)}"
        for micro_batch, batch in enumerate(launched.batches):
            seed, key = step_keys(self.config.seed, launched.step, micro_batch)
            mx.random.seed(seed)
            forward = partial(energy_flow_loss, self.model, self.config, batch, key=key, training_step=launched.step)
            with self.world.sharing():
                if stage := first_not_finite(forward):
                    return f"the first output that is not finite is that of the stage {stage}"
        return ""

    def _beyond(self, launched: Launched) -> str:
        """What was not finite where the forward pass is."""
        norms = np.array(launched.norms)
        bad = [name for name, norm in zip(launched.names, norms, strict=True) if not np.isfinite(norm)]
        return f"every stage's output is finite, and not the gradient of {listing(bad)}" if bad else "the sum over all gradients is not finite"


def _pooled(loss: mx.array, parts: LossParts, stop: bool, world: World) -> tuple[mx.array, LossParts, mx.array]:
    """Loss and parts of the whole batch from those of the processes' shares, and how many processes were asked to stop; one collective."""
    if world.size == 1:
        return loss, parts, mx.array(float(stop))
    shares = [part / world.size if name in MEANS else part for name, part in parts._asdict().items()]
    mine = mx.stack([mx.array(value, dtype=mx.float32) for value in (loss / world.size, *shares, mx.array(float(stop)))])
    loss, *pooled, stops = world.sum(mine)
    whole = [value.astype(part.dtype) for value, part in zip(pooled, parts, strict=True)]
    return loss, LossParts(*whole), stops


def _means(loss: mx.array, parts: LossParts, count: int) -> StepMetrics:
    """Metrics from sums over `count` micro-batches; counts of flows stay sums."""
    nothing = mx.array(0.0)
    if count == 1:
        return StepMetrics(loss, parts, nothing, nothing, nothing)
    means = parts._replace(**{name: getattr(parts, name) / count for name in MEANS})
    return StepMetrics(loss / count, means, nothing, nothing, nothing)
