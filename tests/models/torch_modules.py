"""The PyTorch modules, written from the text of the reference: what the parity tests compare with."""

import math

import torch
from torch import nn


class SimpleNeuron(nn.Module):
    """Twelve coordinates of which three are used, after a second normalisation of a position that is normalised already."""

    def __init__(self, width: int, height: int, depth: int, hidden: int, features: int) -> None:
        super().__init__()
        self.register_buffer("span", torch.tensor([width - 1.0, height - 1.0, depth - 1.0]), persistent=False)
        self.coord_encoder = nn.Linear(3, 12)
        self.layers = nn.Sequential(
            nn.Linear(4, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, features),
        )  # fmt: skip

    def forward(self, position: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        coordinates = self.coord_encoder(2 * position / self.span - 1)[:, :3]
        return self.layers(torch.cat([coordinates, energy], dim=1))


def sanitise(x: torch.Tensor, bound: float = 10.0) -> torch.Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=10.0, neginf=-10.0).clamp(-bound, bound)


class EnergyCarrier(nn.Module):
    def __init__(self, features: int, hidden: int, layers: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.gru = nn.GRU(features + 1, hidden, num_layers=layers)
        self.energy_projection = nn.Sequential(
            nn.Linear(hidden, hidden // 2), nn.GELU(), nn.Linear(hidden // 2, 1), nn.Tanh()
        )
        self.displacement_projection = nn.Sequential(nn.Linear(hidden, 64), nn.GELU(), nn.Linear(64, 3))
        self.position_memory = nn.Linear(15, hidden // 4)
        self.history_fusion = nn.Sequential(
            nn.Linear(hidden + hidden // 4, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )

    def forward(
        self,
        neuron_output: torch.Tensor,
        energy: torch.Tensor,
        hidden: torch.Tensor | None,
        position: torch.Tensor,
        history: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """New energy, next position, raw next position, hidden state, terminated."""
        x = sanitise(torch.cat([neuron_output, energy], dim=1))[None]
        output, hidden = self.gru(x, None if hidden is None else sanitise(hidden))
        g, hidden = sanitise(output[0]), sanitise(hidden)
        if history is not None:
            missing = torch.zeros(history.shape[0], 5 - history.shape[1], 3)
            memory = self.position_memory(torch.cat([history, missing], dim=1).flatten(1))
            g = self.history_fusion(torch.cat([g, memory], dim=1))
        raw = position + (self.scale * self.displacement_projection(g)).clamp(-0.5, 0.5)
        following = raw.clamp(-1, 1)
        terminated = (following[:, 2] <= -1) | (following[:, 2] >= 1)
        return self.energy_projection(g), following, raw, hidden, terminated


class EmbeddingMapper(nn.Module):
    def __init__(self, embedding: int, width: int, height: int) -> None:
        super().__init__()
        surface = width * height
        middle = max(embedding // 2, 2 * surface)
        self.projection = nn.Sequential(
            nn.Linear(embedding, middle), nn.GELU(), nn.LayerNorm(middle), nn.Dropout(0.1),
            nn.Linear(middle, 2 * surface), nn.GELU(), nn.LayerNorm(2 * surface), nn.Dropout(0.05),
            nn.Linear(2 * surface, surface), nn.Tanh(),
        )  # fmt: skip
        self.energy_scale = nn.Parameter(torch.full((1,), 1.3))
        self.energy_bias = nn.Parameter(torch.full((1,), -0.2))
        self.positional_encoding = nn.Parameter(0.02 * torch.randn(height, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        surface = self.projection(x) * self.energy_scale + self.energy_bias
        return surface.reshape(-1, *self.positional_encoding.shape) + self.positional_encoding


class OutputCollector(nn.Module):
    def __init__(self, embedding: int, width: int, height: int) -> None:
        super().__init__()
        surface = width * height
        middle = max(embedding // 2, 2 * surface)
        self.reconstruction = nn.Sequential(
            nn.Linear(surface, 2 * surface), nn.GELU(), nn.LayerNorm(2 * surface), nn.Dropout(0.05),
            nn.Linear(2 * surface, middle), nn.GELU(), nn.LayerNorm(middle), nn.Dropout(0.1),
            nn.Linear(middle, embedding),
        )  # fmt: skip
        self.position_weights = nn.Parameter(torch.rand(height, width) + 0.5)

    def forward(self, surface: torch.Tensor) -> torch.Tensor:
        return self.reconstruction(surface)

    def from_cells(self, cells: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
        height, width = self.position_weights.shape
        batch = next(iter(cells.values())).shape[0]
        columns = [torch.zeros(batch, 1) for _ in range(width * height)]
        for (x, y), energy in cells.items():
            columns[y * width + x] = energy * self.position_weights[y, x]
        return self(torch.cat(columns, dim=1))


def sinusoids(positions: int, dim: int) -> torch.Tensor:
    """The textbook table, entry by entry."""
    table = torch.zeros(positions, dim)
    for p in range(positions):
        for i in range(dim):
            angle = p / 10000 ** ((i - i % 2) / dim)
            table[p, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return table


class TextToCubeEncoder(nn.Module):
    def __init__(
        self, vocabulary: int, positions: int, dim: int, heads: int, inner: int, layers: int, surface: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.positional_encoding = nn.Parameter(sinusoids(positions, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, inner, dropout=0.1, activation="gelu", batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.surface_projection = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Dropout(0.1), nn.Linear(dim, surface), nn.Tanh()
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_encoding[: ids.shape[1]]
        x = self.transformer_encoder(x, src_key_padding_mask=mask == 0)
        weight = mask[..., None].float()
        return self.surface_projection((x * weight).sum(1) / weight.sum(1))
