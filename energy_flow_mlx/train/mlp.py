"""A baseline for the table: an MLP with as many parameters as the model, trained on the same batches."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from ..config import EnergyConfig
from ..data.source import EpochOrder, PairBatch, PairData
from ..models.energy_flow import EnergyFlow
from .loss import cosine, number
from .optimiser import Plateau, learning_rate, named_arrays
from .report import Row, batches
from .step import micro_batches


class MLP(nn.Module):
    """Linear(E, h) GELU Linear(h, h) GELU Linear(h, E): embeddings [B, E] -> [B, E]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, dim)]

    def __call__(self, x: mx.array) -> mx.array:
        first, second, last = self.layers
        out: mx.array = last(nn.gelu(second(nn.gelu(first(x)))))
        return out


def hidden_width(parameters: int, dim: int) -> int:
    """The h whose MLP has at most `parameters` parameters, h² + (2E + 2)h + E of them; 1 where even that has more."""
    return max(1, math.isqrt((dim + 1) ** 2 + max(parameters - dim, 0)) - (dim + 1))


def parameter_count(module: nn.Module) -> int:
    """Numbers in all parameters of a module."""
    return sum(array.size for array in named_arrays(module.parameters()).values())


def mlp_row(model: EnergyFlow, data: PairData, config: EnergyConfig) -> Row:
    """Train the MLP for as many steps as the model was, on the batches and with the learning rates of its run.

    Its loss is 1 - cosine(prediction, target), which the table judges by, and its weights start from `config.seed`. With
    the schedule plateau, which follows the flow's validation loss, the rate is constant.
    """
    if config.learning_rate_schedule == "plateau":
        config = config.replace(learning_rate_schedule="constant")
    mx.random.seed(config.seed)
    mlp = MLP(data.train.dim, hidden_width(parameter_count(model), data.train.dim))
    optimiser = optim.AdamW(config.learning_rate, [0.9, 0.999], 1e-8, config.weight_decay, bias_correction=True)
    optimiser.init(mlp.trainable_parameters())
    order = EpochOrder(len(data.train), min(config.batch_size, len(data.train)), config.seed)
    gradient = nn.value_and_grad(mlp, _loss)
    for step in range(model.trained_steps):
        parts = micro_batches(data.train, order, step, config.gradient_accumulation_steps)
        _, gradients = gradient(mlp, _rows(parts, "input_embedding"), _rows(parts, "target_embedding"))
        optimiser.learning_rate = learning_rate(config, step, Plateau())
        if config.gradient_clip:
            gradients, _ = optim.clip_grad_norm(gradients, config.gradient_clip)
        optimiser.update(mlp, gradients)
        mx.eval(mlp.parameters(), optimiser.state)
    total = 0.0
    for batch in batches(data.test, 1024):
        total += number(mx.sum(cosine(mlp(mx.array(batch.input_embedding)), mx.array(batch.target_embedding))))
    return Row(f"MLP ({parameter_count(mlp):,} parameters, {model.trained_steps} steps)", total / len(data.test))


def _loss(mlp: MLP, inputs: mx.array, targets: mx.array) -> mx.array:
    return mx.mean(1 - cosine(mlp(inputs), targets))


def _rows(parts: list[PairBatch], name: str) -> mx.array:
    """One array of all micro-batches, [B * accumulation, E]."""
    return mx.array(np.concatenate([getattr(part, name) for part in parts]))
