"""Small reference trainings: linear regression, an MLP, and the text encoder, on every available device."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from ..config import EnergyConfig
from ..data.source import PairBatch, built_in_data
from ..models.mapper import EmbeddingMapper
from ..models.text_encoder import TextToCubeEncoder
from ..train.loss import number
from ..train.optimiser import named_arrays
from .measure import clear_memory

SCENARIOS = ("linear", "mlp", "text-encoder")
Batch = tuple[mx.array, ...]
Loss = Callable[[Any, Batch], mx.array]


def measure_scenario(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train `job["scenario"]` for `job["steps"]` steps on the CPU and, if there is one, on the GPU."""
    config = EnergyConfig.from_dict(job["config"])
    devices = [device for device in (mx.cpu, mx.gpu) if mx.is_available(device)]
    return {"scenario": job["scenario"], "runs": [_train(job["scenario"], config, job["steps"], d) for d in devices]}


def _train(scenario: str, config: EnergyConfig, steps: int, device: Any) -> dict[str, Any]:
    mx.set_default_device(device)
    mx.random.seed(config.seed)
    clear_memory()
    start = time.perf_counter()
    make = {"linear": _linear, "mlp": _mlp, "text-encoder": _text_encoder}[scenario]
    model, loss, batches, optimiser = make(config)
    optimiser.init(model.trainable_parameters())
    mx.eval(model.parameters(), batches)
    gradient = nn.value_and_grad(model, loss)
    times, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        value, gradients = gradient(model, batches[step % len(batches)])
        optimiser.update(model, gradients)
        mx.eval(value, model.parameters(), optimiser.state)
        times.append(time.perf_counter() - began)
        losses.append(number(value))
        if step == 0:
            first_call = time.perf_counter() - start
    window = max(1, steps // 10)
    return {
        "device": device.name,
        "steps": steps,
        "batch_size": batches[0][0].shape[0],
        "parameters": sum(array.size for array in named_arrays(model.trainable_parameters()).values()),
        "seconds": statistics.median(times[1:] or times),
        "first_call_s": first_call,
        "first_loss": statistics.mean(losses[:window]),
        "last_loss": statistics.mean(losses[-window:]),
        "peak_bytes": mx.get_peak_memory(),
    }


def _linear(config: EnergyConfig) -> tuple[nn.Module, Loss, list[Batch], optim.Optimizer]:
    """Linear regression on 256 features, batches of 1024. Noise of standard deviation 0.1 bounds the loss at 0.01."""
    weight = mx.random.normal((256, 1)) / 16
    batches: list[Batch] = []
    for _ in range(8):
        x = mx.random.normal((1024, 256))
        batches.append((x, x @ weight + 0.1 * mx.random.normal((1024, 1))))
    return nn.Linear(256, 1), _square_error, batches, optim.SGD(0.1)


def _mlp(config: EnergyConfig) -> tuple[nn.Module, Loss, list[Batch], optim.Optimizer]:
    """A 64-512-512-10 MLP with GELU learns the classes that a random network of its shape assigns to random points."""

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))

    teacher = network()

    def loss(model: Any, batch: Batch) -> mx.array:
        return nn.losses.cross_entropy(model(batch[0]), batch[1], reduction="mean")

    batches: list[Batch] = []
    for _ in range(8):
        x = mx.random.normal((512, 64))
        scores = teacher(x)
        batches.append((x, mx.argmax(scores - mx.mean(scores, axis=0), axis=1)))
    return network(), loss, batches, optim.AdamW(1e-3)


def _text_encoder(config: EnergyConfig) -> tuple[nn.Module, Loss, list[Batch], optim.Optimizer]:
    """The text encoder learns the surfaces to which a fixed mapper maps the embeddings of built-in texts."""
    pairs = 8 * config.batch_size
    data = built_in_data(
        pairs, 2, 2, config.seed, config.embedding_dim, config.text_vocab_size, config.text_max_length
    ).train
    mapper = EmbeddingMapper(config.embedding_dim, config.lattice_width, config.lattice_height)
    mapper.eval()

    def batch(pairs: PairBatch) -> Batch:
        surface = mapper(mx.array(pairs.input_embedding))
        return mx.array(pairs.input_ids), mx.array(pairs.attention_mask), surface.reshape(surface.shape[0], -1)

    size = config.batch_size
    batches = [batch(data.batch(np.arange(start, start + size))) for start in range(0, pairs, size)]

    def loss(model: Any, batch: Batch) -> mx.array:
        return mx.mean(mx.square(model(batch[0], batch[1]) - batch[2]))

    return TextToCubeEncoder(config), loss, batches, optim.AdamW(config.learning_rate, bias_correction=True)


def _square_error(model: Any, batch: Batch) -> mx.array:
    return mx.mean(mx.square(model(batch[0]) - batch[1]))
