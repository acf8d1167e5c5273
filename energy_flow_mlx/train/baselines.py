"""What stands beside the model in the table: no learning, a linear map, an MLP, and the model without its flow."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray

from ..config import EnergyConfig
from ..data.source import EpochOrder, PairBatch, PairData, PairDataset
from ..models.energy_flow import EnergyFlow
from ..scores import Scores
from .evaluation import ROWS, batches, evaluate, score
from .loss import cosine
from .optimiser import Plateau, learning_rate, named_arrays, start_training
from .step import TrainStep, micro_batches

RIDGE_PENALTIES = tuple(10.0**power for power in range(-3, 4))  # tried on the validation split


def simple_baselines(data: PairData) -> dict[str, Scores]:
    """Scores on the test split, by name: the input itself, the training split's mean target, and a ridge regression fitted on the
    training split whose penalty is the best on the validation split."""
    fit = RidgeFit.of(data.train)
    penalty = max(RIDGE_PENALTIES, key=lambda penalty: score(fit.solve(penalty), data.validation).cosine)
    mean = Affine(np.zeros((data.train.dim,) * 2), fit.target_mean)
    return {
        "input itself": score(lambda batch: batch.input_embedding, data.test),
        "mean target": score(mean, data.test),
        f"ridge regression (penalty {penalty:g})": score(fit.solve(penalty), data.test),
    }


@dataclass(frozen=True)
class Affine:
    """x -> x @ weight [E, E] + bias [E]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, batch: PairBatch) -> NDArray[np.float32]:
        """The predictions [B, E] for a batch."""
        return (batch.input_embedding @ self.weight + self.bias).astype(np.float32)


@dataclass(frozen=True)
class RidgeFit:
    """Sums over a split that give the ridge regression with intercept for any penalty."""

    input_mean: NDArray[np.float64]  # [E]
    target_mean: NDArray[np.float64]  # [E]
    eigenvalues: NDArray[np.float64]  # [E], of the inputs' covariance times N
    eigenvectors: NDArray[np.float64]  # [E, E]
    cross: NDArray[np.float64]  # [E, E], inputs with targets

    @classmethod
    def of(cls, data: PairDataset) -> "RidgeFit":
        """Read `data` once."""
        dim = data.dim
        inputs, targets = np.zeros(dim), np.zeros(dim)
        gram, cross = np.zeros((dim, dim)), np.zeros((dim, dim))
        for batch in batches(data, ROWS):
            x, y = batch.input_embedding, batch.target_embedding
            inputs += x.sum(axis=0, dtype=np.float64)
            targets += y.sum(axis=0, dtype=np.float64)
            gram += x.T @ x
            cross += x.T @ y
        inputs, targets = inputs / len(data), targets / len(data)
        eigenvalues, eigenvectors = np.linalg.eigh(gram - len(data) * np.outer(inputs, inputs))
        return cls(inputs, targets, eigenvalues, eigenvectors, cross - len(data) * np.outer(inputs, targets))

    def solve(self, penalty: float) -> Affine:
        """The minimum of |targets - prediction|^2 + penalty |weight|^2 over the split."""
        inverse = 1 / (np.maximum(self.eigenvalues, 0) + penalty)
        weight = (self.eigenvectors * inverse) @ (self.eigenvectors.T @ self.cross)
        return Affine(weight, self.target_mean - self.input_mean @ weight)


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


def mlp_baseline(model: EnergyFlow, data: PairData, config: EnergyConfig) -> tuple[str, Scores]:
    """Name and scores of an MLP with as many parameters as the model, trained for as many steps, on the batches and with the
    learning rates of the model's run. Its loss is 1 - cosine(prediction, target), which the table judges by."""
    config = _own_schedule(config)
    mx.random.seed(config.seed)
    mlp = MLP(data.train.dim, hidden_width(sum(array.size for array in model.flow_parameters().values()), data.train.dim))
    optimiser = optim.AdamW(config.learning_rate, [0.9, 0.999], 1e-8, config.weight_decay, bias_correction=True)
    optimiser.init(mlp.trainable_parameters())
    gradient = nn.value_and_grad(mlp, _mlp_loss)
    for _, parts, rate in _steps_of_run(model, data, config):
        _, gradients = gradient(mlp, _rows(parts, "input_embedding"), _rows(parts, "target_embedding"))
        optimiser.learning_rate = rate
        if config.gradient_clip:
            gradients, _ = optim.clip_grad_norm(gradients, config.gradient_clip)
        optimiser.update(mlp, gradients)
        mx.eval(mlp.parameters(), optimiser.state)
    scores = score(lambda batch: np.array(mlp(mx.array(batch.input_embedding))), data.test)
    return f"MLP ({parameter_count(mlp):,} parameters, {model.trained_steps} steps)", scores


def without_flow(model: EnergyFlow, data: PairData, config: EnergyConfig) -> tuple[str, Scores]:
    """Name and scores of the model with its flow left out: the mapper's surface goes straight to the collector. Trained anew, for
    as many steps, on the batches and with the learning rates of the model's run."""
    config = _own_schedule(config).replace(
        flows_enabled=False, text_loss_weight=0, arrival_loss_weight=0, text_decoder_loss_weight=0, part="all"
    )
    mx.random.seed(config.seed)
    ends = EnergyFlow(config)
    step = TrainStep(ends, start_training(ends, config), config)
    for number, parts, rate in _steps_of_run(model, data, config):
        step(number, parts, rate)
    result = evaluate(ends, data.test, config)
    return f"flow left out ({model.trained_steps} steps)", Scores(result.cosine, result.top1, result.top10)


def _own_schedule(config: EnergyConfig) -> EnergyConfig:
    """The schedule plateau follows the flow's validation loss, which a baseline does not have: its rate is constant."""
    return config.replace(learning_rate_schedule="constant") if config.learning_rate_schedule == "plateau" else config


def _steps_of_run(
    model: EnergyFlow, data: PairData, config: EnergyConfig
) -> Iterator[tuple[int, list[PairBatch], float]]:
    """Number, micro-batches and learning rate of each step of the run that trained `model`."""
    order = EpochOrder(len(data.train), min(config.batch_size, len(data.train)), config.seed)
    for step in range(model.trained_steps):
        parts = micro_batches(data.train, order, step, config.gradient_accumulation_steps)
        yield step, parts, learning_rate(config, step, Plateau())


def _mlp_loss(mlp: MLP, inputs: mx.array, targets: mx.array) -> mx.array:
    return mx.mean(1 - cosine(mlp(inputs), targets))


def _rows(parts: list[PairBatch], name: str) -> mx.array:
    """One array of all micro-batches, [B * accumulation, E]."""
    return mx.array(np.concatenate([getattr(part, name) for part in parts]))
