"""The training step of a preset here and in vectorised PyTorch, in turns in one process.

`python scripts/benchmarks/training_step.py --preset debug`. Both do the same work: mapper, every move of every flow, collection,
collector, surface + embedding loss, backward, AdamW. Spawning and noise are off, so that both move the same flows.
Needs torch (the `test` extra).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import torch
import torch.nn.functional as F
from torch import Tensor

from energy_flow_mlx import EnergyConfig, EnergyFlow


class TorchFlow(torch.nn.Module):
    """The reference's modules on dense tensors: no loop over flows."""

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.config = config
        surface, size = config.surface_dim, config.carrier_hidden_size
        embedding = config.embedding_dim
        middle = max(embedding // 2, 2 * surface)
        linear, norm, gelu = torch.nn.Linear, torch.nn.LayerNorm, torch.nn.GELU
        self.mapper = torch.nn.Sequential(
            linear(embedding, middle), gelu(), norm(middle), linear(middle, 2 * surface), gelu(), norm(2 * surface),
            linear(2 * surface, surface), torch.nn.Tanh(),
        )  # fmt: skip
        self.collector = torch.nn.Sequential(
            linear(surface, 2 * surface), gelu(), norm(2 * surface), linear(2 * surface, middle), gelu(), norm(middle),
            linear(middle, embedding),
        )  # fmt: skip
        width = config.neuron_hidden_dim
        self.coordinates = linear(3, 3)
        self.neuron = torch.nn.Sequential(
            linear(4, width), norm(width), gelu(), linear(width, width), norm(width), gelu(),
            linear(width, config.neuron_output_dim),
        )  # fmt: skip
        self.gru = torch.nn.GRU(config.neuron_output_dim + 1, size, config.carrier_num_layers)
        self.energy = torch.nn.Sequential(linear(size, size // 2), gelu(), linear(size // 2, 1), torch.nn.Tanh())
        self.displacement = torch.nn.Sequential(linear(size, 64), gelu(), linear(64, 3))
        index = torch.arange(surface)
        x = 2 * (index % config.lattice_width) / (config.lattice_width - 1) - 1
        y = 2 * (index // config.lattice_width) / (config.lattice_height - 1) - 1
        z = torch.full_like(x, 2 * (config.lattice_depth // 2) / config.lattice_depth - 1)
        self.register_buffer("start", torch.stack([x, y, z], dim=1))

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        width, height = config.lattice_width, config.lattice_height
        batch, cells = embeddings.shape[0], config.surface_dim
        energy = self.mapper(embeddings).reshape(-1, 1)
        position = self.start.repeat(batch, 1)
        flows = position.shape[0]
        hidden = energy.new_zeros(config.carrier_num_layers, flows, config.carrier_hidden_size)
        active = torch.ones(flows, 1, dtype=torch.bool)
        age = torch.zeros(flows, 1)
        for _ in range(config.flow_steps):
            features = self.neuron(torch.cat([self.coordinates(position), energy], dim=1))
            inputs = torch.cat([features, energy], dim=1).nan_to_num(0, 10, -10).clamp(-10, 10)
            g, state = self.gru(inputs[None], hidden.nan_to_num(0, 10, -10).clamp(-10, 10))
            g = g[0].nan_to_num(0, 10, -10).clamp(-10, 10)
            raw = position + (config.displacement_scale * self.displacement(g)).clamp(-0.5, 0.5)
            side = raw[:, :2]
            side = torch.where(side < -1, -2 - side, torch.where(side > 1, 2 - side, side))
            moved = torch.cat([side, raw[:, 2:]], dim=1).clamp(-1, 1)
            position = torch.where(active, moved, position)
            energy = torch.where(active, self.energy(g), energy)
            hidden = torch.where(active, state, hidden)
            age = age + active
            active = active & (position[:, 2:].abs() < 1)
        weight = energy.abs() / (2 - position[:, 2:].abs()) * (1 + 0.1 * age)
        ix = ((position[:, 0] + 1) / 2 * (width - 1)).round().long()
        iy = ((position[:, 1] + 1) / 2 * (height - 1)).round().long()
        cell = torch.arange(batch).repeat_interleave(cells) * cells + iy * width + ix
        mass = weight.exp()[:, 0]
        zeros = energy.new_zeros(batch * cells)
        total = zeros.index_add(0, cell, mass)
        surface = zeros.index_add(0, cell, mass * energy[:, 0]) / torch.where(total > 0, total, 1.0)
        surface = surface.reshape(batch, cells)
        return self.collector(surface), surface


def torch_step(config: EnergyConfig, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    model = TorchFlow(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    def step() -> None:
        embedding, surface = model(inputs)
        loss = F.mse_loss(surface, model.mapper(targets).detach())
        loss = loss + (1 - F.cosine_similarity(embedding, targets)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimiser.step()

    return step


def mlx_step(config: EnergyConfig, inputs: mx.array, targets: mx.array) -> Callable[[], None]:
    mx.random.seed(0)
    model = EnergyFlow(config)
    model.eval()  # no dropout, as in the other
    optimiser = optim.AdamW(config.learning_rate, weight_decay=config.weight_decay, bias_correction=True)

    def loss(model: EnergyFlow) -> mx.array:
        output = model(inputs)
        target = mx.stop_gradient(model.mapper.map_to_surface(targets)).reshape(output.surface.shape)
        cosine = nn.losses.cosine_similarity_loss(output.embedding, targets)
        return mx.mean(mx.square(output.surface - target)) + mx.mean(1 - cosine)

    gradient = nn.value_and_grad(model, loss)

    def step() -> None:
        _, gradients = gradient(model)
        gradients, _ = optim.clip_grad_norm(gradients, config.gradient_clip)
        optimiser.update(model, gradients)
        mx.eval(model.parameters(), optimiser.state)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="debug")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = EnergyConfig.preset(options.preset).replace(movement_based_spawn=False, use_exploration_noise=False)
    inputs = torch.nn.functional.normalize(torch.randn(2, config.batch_size, config.embedding_dim), dim=-1)
    steps = {
        "mlx": mlx_step(config, mx.array(inputs[0].numpy()), mx.array(inputs[1].numpy())),
        "torch": torch_step(config, inputs[0], inputs[1]),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    flows = config.batch_size * config.surface_dim
    print(f"{options.preset}: {flows} flows, {config.flow_steps} steps; mlx on {mx.default_device()}, torch on cpu")
    for name, measured in times.items():
        print(f"{name:6} {statistics.median(measured):7.3f} s a training step")


if __name__ == "__main__":
    main()
