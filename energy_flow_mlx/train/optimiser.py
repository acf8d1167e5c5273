"""AdamW, its learning rate, and gradient clipping."""

import math
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from ..config import RunConfig
from ..models.energy_flow import EnergyFlow
from ..ops.adamw import AdamStep, AdamTensor, adamw
from ..ops.kernel import setting
from ..ops.norms import l2_norms

FLOWS = ("neuron.", "carrier.")  # what all flows share
COSINE_FLOOR = 0.1  # share of the peak rate that the cosine ends on


class AdamW(optim.AdamW):
    """MLX's AdamW with its state and names, whose step clips, can be skipped on the device, and has a flow rate.

    flow_rate: what the rate of neuron and carrier is multiplied by.
    """

    flow_rate: float = 1.0

    def apply_gradients(
        self, gradients: Any, parameters: Any, factors: mx.array | None = None, go: mx.array | None = None
    ) -> Any:
        """The parameters after one step.

        Args:
            gradients: a tree of P arrays, of any floating-point dtypes.
            parameters: a tree that holds at least the same.
            factors: [P], what each gradient is multiplied by, in the order of `named_arrays`; None: 1.
            go: [1] bool; False leaves parameters and state as they are. None: True.
        """
        if not self._initialized:
            self.init(tree_map(lambda _, parameter: parameter, gradients, parameters))
        go = mx.array([True]) if go is None else go
        factors = mx.ones((len(named_arrays(gradients)),)) if factors is None else factors
        following = self.step + 1
        rest = setting(self.weight_decay, *self.betas, self.eps)
        corrections = 1.0 - mx.power(setting(*self.betas), following.astype(mx.float32))
        rates = setting(*(self.flow_rate if name.startswith(FLOWS) else 1.0 for name in named_arrays(gradients)))
        shared = AdamStep(mx.concatenate([self.learning_rate.reshape(1), rest, corrections]), factors, go, rates)
        self.state["step"] = mx.where(go.reshape(()), following, self.step)
        tensors: list[AdamTensor] = []

        def collect(gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> None:
            tensors.append(AdamTensor(parameter, gradient, state["m"], state["v"]))

        tree_map(collect, gradients, parameters, self.state)
        stepped = iter(adamw(tensors, shared))

        def put_back(_: mx.array, state: dict[str, mx.array]) -> mx.array:
            new, state["m"], state["v"] = next(stepped)
            return new

        return tree_map(put_back, gradients, self.state)


def make_optimiser(config: RunConfig) -> AdamW:
    """AdamW as torch's: bias correction, betas (0.9, 0.999), eps 1e-8, decoupled weight decay."""
    optimiser = AdamW(config.learning_rate, [0.9, 0.999], 1e-8, config.weight_decay, bias_correction=True)
    optimiser.flow_rate = config.flow_learning_rate_factor
    return optimiser


def start_training(model: EnergyFlow, config: RunConfig) -> AdamW:
    """Put a model into training mode, with what the loss does not reach frozen; returns its optimiser, with moments of zero."""
    freeze_unreached(model, config)
    model.train()
    optimiser = make_optimiser(config)
    optimiser.init(model.trainable_parameters())
    return optimiser


def freeze_unreached(model: EnergyFlow, config: RunConfig) -> None:
    """Freeze the parameters that no term of the loss reaches: weight decay would shrink them."""
    if config.part != "all":
        model.freeze()
        part = {"decoder": model.text_decoder, "corrector": model.text_corrector}[config.part]
        assert part is not None, "a run of this part has one"
        part.unfreeze()
        return
    if model.text_corrector is not None:
        model.text_corrector.freeze()
    # The flows carry no position history, and the collector's dictionary form is no part of training.
    model.carrier.position_memory.freeze()
    for layer in model.carrier.history_fusion:
        layer.freeze()
    model.collector.freeze(keys="position_weights", recurse=False)
    if not config.text_loss_weight:
        model.text_encoder.freeze()
    if not model.config.flows_enabled:
        model.neuron.freeze()
        model.carrier.freeze()
    if not config.embedding_loss_weight:
        model.collector.freeze()
    if model.text_decoder is not None and not config.text_decoder_loss_weight:
        model.text_decoder.freeze()


@dataclass
class Plateau:
    """Halves the rate after `patience` validations in a row without a better loss. Its fields are saved with a run."""

    best: float = math.inf
    waited: int = 0
    factor: float = 1.0

    def observe(self, loss: float, patience: int) -> None:
        """Take note of a validation loss."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > patience:
            self.factor, self.waited = self.factor / 2, 0


def learning_rate(config: RunConfig, step: int, plateau: Plateau) -> float:
    """The rate of step `step`, counted from 0: linear warm-up to the peak, then `learning_rate_schedule`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.learning_rate_schedule == "plateau":
        return config.learning_rate * plateau.factor
    if config.learning_rate_schedule == "cosine":
        rest = max(config.training_steps - config.warmup_steps, 1)
        share = min((step - config.warmup_steps) / rest, 1.0)
        return config.learning_rate * (COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * share)) / 2)
    return config.learning_rate


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree of lists and dictionaries by their dotted names."""
    return cast(dict[str, mx.array], tree_flatten(tree, destination={}))


def gradient_norms(gradients: Any) -> tuple[list[str], mx.array]:
    """The parameters' names, and the L2 norm of the gradient of each [P], in float32."""
    named = named_arrays(gradients)
    return list(named), l2_norms(list(named.values()))


def clip_factors(norms: mx.array, per_tensor: float, global_norm: float) -> mx.array:
    """What gradients of these norms [P] are multiplied by [P]: each is brought down to the norm `per_tensor`, then all together
    to `global_norm`; 0 leaves out either.

    As torch's `clip_grad_norm_`: factor min(1, bound / (norm + 1e-6)).
    """
    factors = mx.ones_like(norms)
    if per_tensor:
        factors = _shrink(norms, per_tensor)
    if global_norm:
        factors = factors * _shrink(mx.linalg.norm(norms * factors), global_norm)
    return factors


def _shrink(norm: mx.array, bound: float) -> mx.array:
    return mx.minimum(bound / (norm + 1e-6), 1.0)
