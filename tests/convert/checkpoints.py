"""Torch checkpoints of any size, made as the PyTorch trainer saves them."""

from pathlib import Path
from typing import NamedTuple

import torch
from models import torch_modules
from torch import nn


class Sizes(NamedTuple):
    """W, H, D, E, Hd, L, neuron h and F, text vocabulary, positions and feed-forward."""

    width: int
    height: int
    depth: int
    embedding: int
    hidden: int
    layers: int
    neuron: int
    features: int
    vocabulary: int = 30
    positions: int = 20
    text_layers: int = 1


ODD = Sizes(width=4, height=3, depth=7, embedding=10, hidden=12, layers=3, neuron=5, features=9, text_layers=3)
WIDE = Sizes(width=2, height=9, depth=4, embedding=64, hidden=96, layers=1, neuron=40, features=33, vocabulary=51)
TEXT_DIM, TEXT_INNER, TEXT_HEADS = 16, 24, 8  # the trainer always has 8 heads
RATE, DECAY = 1e-3, 1e-2


class Modules(nn.Module):
    """The five modules under the names that the trainer gives them."""

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        cells = sizes.width * sizes.height
        self.neuron = torch_modules.SimpleNeuron(sizes.width, sizes.height, sizes.depth, sizes.neuron, sizes.features)
        self.carrier = torch_modules.EnergyCarrier(sizes.features, sizes.hidden, sizes.layers)
        self.input_mapper = torch_modules.EmbeddingMapper(sizes.embedding, sizes.width, sizes.height)
        self.output_collector = torch_modules.OutputCollector(sizes.embedding, sizes.width, sizes.height)
        self.text_encoder = torch_modules.TextToCubeEncoder(
            sizes.vocabulary, sizes.positions, TEXT_DIM, TEXT_HEADS, TEXT_INNER, sizes.text_layers, cells
        )
        self.eval()

    def part(self, *names: str) -> dict[str, torch.Tensor]:
        """The state of some modules, keys prefixed with their names."""
        return {key: value.clone() for key, value in self.state_dict().items() if key.startswith(names)}


def torch_config(sizes: Sizes) -> dict:
    return {
        "lattice_width": sizes.width,
        "lattice_height": sizes.height,
        "lattice_depth": sizes.depth,
        "carrier_hidden_size": sizes.hidden,
        "carrier_num_layers": sizes.layers,
        "neuron_hidden_dim": sizes.neuron,
        "neuron_output_dim": sizes.features,
        "input_embedding_dim_from_teacher": sizes.embedding,
        "output_embedding_dim_to_teacher": sizes.embedding,
        "input_cells": sizes.width * sizes.height,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "boundary_reflection_enabled": True,
        "movement_based_spawn": False,
        "displacement_scale": 1.0,
        "displacement_scale_min": 1.0,
        "dtype": torch.float32,
        "max_steps_z": 1000,
    }


def optimiser(modules: Modules) -> torch.optim.AdamW:
    """Over what the trainer trains, in its order."""
    trained = [*modules.neuron.parameters(), *modules.carrier.parameters(), *modules.text_encoder.parameters()]
    return torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)


def checkpoint(modules: Modules, sizes: Sizes, adam: torch.optim.AdamW | None = None) -> dict:
    return {
        "epoch": 2,
        "global_step": 7,
        "config": torch_config(sizes),
        "model_state_dict": modules.part("neuron.", "carrier."),
        "optimizer_state_dict": adam.state_dict() if adam else None,
        "scheduler_state_dict": {"best": 0.5, "num_bad_epochs": 3, "patience": 10},
        "best_loss": 0.25,
        "training_history": {"total_losses": [1.0, 0.5]},
        "text_encoder_state_dict": modules.text_encoder.state_dict(),
    }


def save(modules: Modules, sizes: Sizes, folder: Path, adam: torch.optim.AdamW | None = None) -> tuple[Path, Path]:
    """Write checkpoint.pt and mapper.pt; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint(modules, sizes, adam), folder / "checkpoint.pt")
    torch.save(modules.part("input_mapper.", "output_collector."), folder / "mapper.pt")
    return folder / "checkpoint.pt", folder / "mapper.pt"


def run_flows(modules: Modules, sizes: Sizes, surface: torch.Tensor) -> torch.Tensor:
    """A surface [B, S] through the torch modules: reflection on, no children, unfinished flows projected (section 3)."""
    batch, cells = surface.shape
    spans = torch.tensor([sizes.width - 1, sizes.height - 1, sizes.depth]).float()
    index = torch.arange(cells)
    plane = torch.full((cells,), sizes.depth // 2)
    start = 2 * torch.stack([index % sizes.width, index // sizes.width, plane], dim=1) / spans - 1
    position, energy, hidden = start.repeat(batch, 1), surface.reshape(-1, 1), None
    age, active = torch.zeros(batch * cells), torch.ones(batch * cells, dtype=torch.bool)
    for _ in range(sizes.depth // 2):
        features = modules.neuron(position, energy)
        new_energy, after, raw, new_hidden, done = modules.carrier(features, energy, hidden, position)
        sides = torch.where(raw < -1, -2 - raw, torch.where(raw > 1, 2 - raw, raw)).clamp(-1, 1)
        keep = active[:, None]
        position = torch.where(keep, torch.cat([sides[:, :2], after[:, 2:]], dim=1), position)
        energy = torch.where(keep, new_energy, energy)
        hidden = new_hidden if hidden is None else torch.where(keep[None], new_hidden, hidden)
        age, active = age + active, active & ~done
    distance = 1 - position[:, 2].abs()
    weight = energy[:, 0].abs() / (1 + distance) * (1 + 0.1 * age)
    place = torch.round((position[:, :2] + 1) / 2 * spans[:2]).long()
    cell = place[:, 1] * sizes.width + place[:, 0] + torch.arange(batch).repeat_interleave(cells) * cells
    share = torch.zeros(batch * cells).index_add(0, cell, weight.exp())
    total = torch.zeros(batch * cells).index_add(0, cell, weight.exp() * energy[:, 0])
    return torch.where(share > 0, total / share, 0.0).reshape(batch, cells)
