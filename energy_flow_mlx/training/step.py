"""One optimiser step."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..config import EnergyConfig
from ..data.source import EpochOrder, PairBatch, PairDataset
from ..models.energy_flow import EnergyFlow
from .loss_scale import LossScale
from .losses import LossParts, energy_flow_loss, number
from .optimiser import AdamW, clip_factors, gradient_norms


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient became NaN or infinite. The model and the optimiser are as they were before the step."""

    def __init__(self, step: int, loss: float, indices: Sequence[int], parameter: str, norm: float) -> None:
        self.step, self.indices, self.parameter = step, list(indices), parameter
        super().__init__(
            f"step {step}: the loss is {loss}, and the largest gradient, that of {parameter}, has norm {norm}. "
            f"The batch holds the training pairs {self.indices}"
        )


class StepMetrics(NamedTuple):
    """Scalars of one step, lazy; means over its micro-batches, except that flows are summed."""

    loss: mx.array
    parts: LossParts
    gradient_norm: mx.array  # before clipping
    skipped: mx.array  # 1 if float16 gradients overflowed and the step was left out
    loss_scale: mx.array


class Launched(NamedTuple):
    """A step that the device works on: its metrics, and what an error message would name."""

    step: int
    metrics: StepMetrics
    norms: mx.array  # [P]
    names: list[str]
    batches: Sequence[PairBatch]


def step_keys(seed: int, step: int, micro_batch: int) -> tuple[int, mx.array]:
    """A seed for `mx.random`'s own state (dropout) and a key for the noise, made afresh: a resumed run draws alike."""
    dropout, noise = np.random.SeedSequence([seed, step, micro_batch]).generate_state(2, np.uint64)
    return int(dropout), mx.random.key(int(noise))


def micro_batches(data: PairDataset, order: EpochOrder, step: int, count: int) -> list[PairBatch]:
    """The `count` batches of optimiser step `step`."""
    return [data.batch(order.indices(step * count + micro_batch)) for micro_batch in range(count)]


class TrainStep:
    """Forward, backward, clip, update. Only the trainable parameters of the model take part.

    A step whose loss or gradient is not finite changes nothing, and neither does any step after it: that is decided on the device,
    so that the next step can be prepared before the last one's numbers are read. With float16 gradients that overflow are expected:
    they halve the loss scale and the run goes on.

    Args:
        model: in training mode.
        optimiser: its learning rate is set anew by each call.
        config: of the run.
        loss_scale: where a resumed run's float16 scaling stood.
    """

    def __init__(
        self, model: EnergyFlow, optimiser: AdamW, config: EnergyConfig, loss_scale: LossScale | None = None
    ) -> None:
        self.model, self.optimiser, self.config = model, optimiser, config
        self.scaled = config.compute_dtype == "float16"
        self.loss_scale = loss_scale or LossScale.start(config.gradient_scale_init if self.scaled else 1.0)
        self._alive = mx.array(True)

        def loss(
            model: EnergyFlow, batch: PairBatch, key: mx.array, step: int, scale: mx.array | float
        ) -> tuple[mx.array, tuple[mx.array, LossParts]]:
            value, parts = energy_flow_loss(model, config, batch, key=key, training_step=step)
            return value * scale, (value, parts)

        self._loss_and_gradients = nn.value_and_grad(model, loss)

    def __call__(self, step: int, batches: Sequence[PairBatch], learning_rate: float) -> StepMetrics:
        """Do step `step`, counted from 0, with the mean gradient of `batches`, which are of one size, and wait for it.

        Raises:
            NonFiniteLoss: the loss or a gradient is not finite; nothing was updated.
        """
        return self.settle(self.launch(step, batches, learning_rate))

    def launch(self, step: int, batches: Sequence[PairBatch], learning_rate: float) -> Launched:
        """Start step `step` on the device and return at once; `settle` what comes back."""
        metrics, gradients = self.gradients(step, batches)
        # Those of a Linear's weights come transposed: copied here, once, and not by every kernel.
        gradients = tree_map(mx.contiguous, gradients)
        names, norms = gradient_norms(gradients)
        scale = self.loss_scale.scale
        norms = norms / scale if self.scaled else norms
        total = mx.linalg.norm(norms)
        finite = total < math.inf  # NaN is not
        alive = self._alive & (mx.abs(metrics.loss) < math.inf)
        go = alive & finite
        self._alive = alive if self.scaled else go
        factors = clip_factors(norms, self.config.gradient_clip_per_tensor, self.config.gradient_clip)
        metrics = metrics._replace(gradient_norm=total, skipped=(~finite).astype(mx.int32), loss_scale=scale)
        self.optimiser.learning_rate = learning_rate
        trainable = self.model.trainable_parameters()
        factors = factors / scale if self.scaled else factors
        self.model.update(self.optimiser.apply_gradients(gradients, trainable, factors, go.reshape(1)))
        if self.scaled:
            self.loss_scale = self.loss_scale.after(finite)
        self.model.trained_steps = step + 1
        mx.async_eval(metrics, norms, self.model.parameters(), self.optimiser.state, self.loss_scale, self._alive)
        return Launched(step, metrics, norms, names, batches)

    def settle(self, launched: Launched) -> StepMetrics:
        """Wait for a step and look at its numbers.

        Raises:
            NonFiniteLoss: see `__call__`; or the float16 loss scale fell under 1.
        """
        metrics = launched.metrics
        loss, norm = number(metrics.loss), number(metrics.gradient_norm)
        tolerated = self.scaled and number(metrics.loss_scale) > 1.0
        if not math.isfinite(loss) or not (math.isfinite(norm) or tolerated):
            self.model.trained_steps = launched.step
            raise _non_finite(launched, loss)
        return metrics

    def gradients(self, step: int, batches: Sequence[PairBatch]) -> tuple[StepMetrics, Any]:
        """The metrics (loss and parts alone) and the mean gradient over the micro-batches, times the loss scale; lazy."""
        share = 1 / len(batches)
        scale = self.loss_scale.scale * share if self.scaled else share
        sums: Any = None  # loss, parts, gradients
        for micro_batch, batch in enumerate(batches):
            dropout_seed, key = step_keys(self.config.seed, step, micro_batch)
            mx.random.seed(dropout_seed)
            (_, (value, parts)), gradients = self._loss_and_gradients(self.model, batch, key, step, scale)
            new = (value, parts, gradients)
            sums = new if sums is None else tree_map(mx.add, sums, new)
            # Start now, without waiting: the activations of one micro-batch are freed before the next one's are made.
            mx.async_eval(sums)
        loss, parts, gradients = sums
        if len(batches) > 1:
            loss = loss * share
            parts = LossParts(*(part * share for part in parts[:4]), *parts[4:])
        nothing = mx.array(0.0)
        return StepMetrics(loss, parts, nothing, nothing, nothing), gradients


def _non_finite(launched: Launched, loss: float) -> NonFiniteLoss:
    norms = np.array(launched.norms)
    largest = int(np.argmax(np.where(np.isnan(norms), np.inf, norms)))  # NaN counts as the largest
    indices = [int(index) for batch in launched.batches for index in batch.indices]
    return NonFiniteLoss(launched.step, loss, indices, launched.names[largest], float(norms[largest]))
