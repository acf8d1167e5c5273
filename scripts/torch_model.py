"""The energy-flow model in vectorised PyTorch: dense tensors over all flows, no loop over them. torch_baseline.py times it.

Parameters have the names of the MLX model where torch lets them, so that both can start from the same weights.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

State = tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor, Tensor]  # position, energy, hidden a layer, active, age


def protect(x: Tensor, bound: float) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=10.0, neginf=-10.0).clamp(-bound, bound)


class Mapper(nn.Module):
    """[B, E] -> [B, S]."""

    def __init__(self, c: Any, rate: float) -> None:
        super().__init__()
        surface, middle = c.surface, max(c.embedding // 2, 2 * c.surface)
        self.projection = nn.Sequential(
            nn.Linear(c.embedding, middle), nn.GELU(), nn.LayerNorm(middle), nn.Dropout(0.1 * rate),
            nn.Linear(middle, 2 * surface), nn.GELU(), nn.LayerNorm(2 * surface), nn.Dropout(0.05 * rate),
            nn.Linear(2 * surface, surface), nn.Tanh(),
        )  # fmt: skip
        self.energy_scale, self.energy_bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.positional_encoding = nn.Parameter(0.02 * torch.randn(c.lattice_height, c.lattice_width))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).float() * self.energy_scale + self.energy_bias + self.positional_encoding.flatten()


class Collector(nn.Module):
    """[B, S] -> [B, E]."""

    def __init__(self, c: Any, rate: float) -> None:
        super().__init__()
        surface, middle = c.surface, max(c.embedding // 2, 2 * c.surface)
        self.reconstruction = nn.Sequential(
            nn.Linear(surface, 2 * surface), nn.GELU(), nn.LayerNorm(2 * surface), nn.Dropout(0.05 * rate),
            nn.Linear(2 * surface, middle), nn.GELU(), nn.LayerNorm(middle), nn.Dropout(0.1 * rate),
            nn.Linear(middle, c.embedding),
        )  # fmt: skip

    def forward(self, surface: Tensor) -> Tensor:
        return self.reconstruction(surface).float()


class Neuron(nn.Module):
    """Positions [N, 3], energies [N, 1] -> [N, F]."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        width = c.neuron_hidden_dim
        self.coord_encoder = nn.Linear(3, 3)
        self.layers = nn.Sequential(
            nn.Linear(4, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, c.neuron_output_dim),
        )  # fmt: skip

    def forward(self, position: Tensor, energy: Tensor) -> Tensor:
        return self.layers(torch.cat([self.coord_encoder(position), energy.to(position.dtype)], dim=1))


class Cell(nn.Module):
    """One GRU layer, one time step, gate order r, z, n: the gates are left to the compiler to fuse."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.Wx = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * size, inputs)))
        self.Wh = nn.Parameter(nn.init.orthogonal_(torch.empty(3 * size, size)))
        self.b = nn.Parameter(torch.cat([torch.zeros(size), torch.full((size,), 2.0), torch.zeros(size)]))
        self.bhn = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        size = hidden.shape[1]
        i, h = F.linear(x, self.Wx, self.b), F.linear(hidden, self.Wh)
        reset = torch.sigmoid(i[:, :size] + h[:, :size])
        update = torch.sigmoid(i[:, size : 2 * size] + h[:, size : 2 * size])
        candidate = torch.tanh(i[:, 2 * size :] + reset * (h[:, 2 * size :] + self.bhn))
        return (candidate + update * (hidden - candidate)).to(hidden.dtype)


class Carrier(nn.Module):
    """GRU and heads: features, energies, hidden states -> new energies, displacements, hidden states."""

    def __init__(self, c: Any, gru: str) -> None:
        super().__init__()
        size, layers, first = c.carrier_hidden_size, c.carrier_num_layers, c.neuron_output_dim + 1
        self.c = c
        self.gru: nn.Module = (
            nn.GRU(first, size, layers)
            if gru == "cudnn"
            else nn.ModuleList(Cell(inputs, size) for inputs in [first] + [size] * (layers - 1))
        )
        self.energy_projection = nn.Sequential(
            nn.Linear(size, size // 2), nn.GELU(), nn.Linear(size // 2, 1), nn.Tanh()
        )
        self.displacement_projection = nn.Sequential(nn.Linear(size, 64), nn.GELU(), nn.Linear(64, 3))

    def forward(self, features: Tensor, energy: Tensor, hidden: tuple[Tensor, ...], active: Tensor) -> Any:
        def bounded(x: Tensor, bound: float) -> Tensor:
            return protect(x, bound) if self.c.enable_gru_nan_protection else x

        x = bounded(torch.cat([features, energy.to(features.dtype)], dim=1), self.c.gru_input_clip_value)
        before = [bounded(state, self.c.gru_input_clip_value) for state in hidden]
        if isinstance(self.gru, nn.GRU):
            _, stacked = self.gru(x[None], torch.stack(before))
            after = [
                torch.where(active, new, old) for new, old in zip(stacked.to(before[0].dtype), before, strict=True)
            ]
        else:
            after = []
            for cell, old in zip(self.gru, before, strict=True):  # type: ignore[arg-type]
                x = torch.where(active, cell(x, old), old)
                after.append(x)
        after = [bounded(state, self.c.gru_output_clip_value) for state in after]
        g = after[-1]
        return self.energy_projection(g).float(), self.displacement_projection(g).float(), tuple(after)


class TextEncoder(nn.Module):
    """Tokens [B, T] -> [B, S]."""

    def __init__(self, c: Any, rate: float) -> None:
        super().__init__()
        dim = c.text_model_dim
        self.token_embedding = nn.Embedding(c.text_vocab_size, dim)
        self.positional_encoding = nn.Parameter(0.02 * torch.randn(c.text_max_positions, dim))
        layer = nn.TransformerEncoderLayer(
            dim, c.text_num_heads, c.text_feedforward_dim, 0.1 * rate, "gelu", batch_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, c.text_num_layers, enable_nested_tensor=False)
        self.surface_projection = nn.Sequential(
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.LayerNorm(dim),
            nn.Dropout(0.1 * rate),
            nn.Linear(dim, c.surface),
            nn.Tanh(),
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_encoding[: ids.shape[1]]
        x = self.transformer_encoder(x, src_key_padding_mask=mask == 0)
        weight = mask[..., None].to(x.dtype)
        return self.surface_projection((x * weight).sum(1) / weight.sum(1).clamp(min=1)).float()


class TorchEnergyFlow(nn.Module):
    """The whole model on dense tensors over all flows.

    Args:
        config: the fields of EnergyConfig by name. Spawning, noise, filtering and adaptive stop must be off, collection nearest.
        gru: cell or cudnn.
        dropout: whether the dropout layers of the MLX model are there.
    """

    def __init__(self, config: Mapping[str, Any], gru: str = "cell", dropout: bool = False) -> None:
        super().__init__()
        c = SimpleNamespace(**config)
        c.surface, c.embedding = c.lattice_width * c.lattice_height, c.input_embedding_dim_from_teacher
        rate = float(dropout)
        self.c = c
        self.mapper, self.collector = Mapper(c, rate), Collector(c, rate)
        self.neuron, self.carrier = Neuron(c), Carrier(c, gru)
        if c.text_loss_weight:
            self.text_encoder = TextEncoder(c, rate)
        index = torch.arange(c.surface)
        z = 2 * (c.lattice_depth // 2) / c.lattice_depth - 1
        x = 2 * (index % c.lattice_width) / (c.lattice_width - 1) - 1
        y = 2 * (index // c.lattice_width) / (c.lattice_height - 1) - 1
        self.register_buffer("start", torch.stack([x, y, torch.full_like(x, z)], dim=1), persistent=False)
        self.hidden_dtype = torch.float32
        self.move: Callable[..., State] = self._move

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take the weights of the MLX model, by their names there; parameters that training does not reach are left out."""
        state: dict[str, np.ndarray] = dict(weights)
        unreached = ("carrier.position_memory", "carrier.history_fusion", "collector.position_weights")
        unreached += () if self.c.text_loss_weight else ("text_encoder.",)
        for name in list(state):
            if name.startswith(unreached):
                del state[name]
            elif "query_proj" in name:
                parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
                state[name.replace("query_proj.", "in_proj_")] = np.concatenate(parts)
            elif name == "text_encoder.positional_encoding.weight":
                state["text_encoder.positional_encoding"] = state.pop(name)
            elif isinstance(self.carrier.gru, nn.GRU) and name.startswith("carrier.gru."):
                layer, kind = name.split(".")[2:]
                value = state.pop(name)
                if kind == "bhn":
                    state[f"carrier.gru.bias_hh_l{layer}"] = np.concatenate([np.zeros(2 * value.size), value])
                else:
                    key = {"Wx": "weight_ih", "Wh": "weight_hh", "b": "bias_ih"}[kind]
                    state[f"carrier.gru.{key}_l{layer}"] = value
        self.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})

    def _move(self, position: Tensor, energy: Tensor, hidden: tuple[Tensor, ...], active: Tensor, age: Tensor) -> State:
        new_energy, displacement, hidden = self.carrier(self.neuron(position, energy), energy, hidden, active)
        raw = protect(position + (self.c.displacement_scale * displacement).clamp(-0.5, 0.5), 10.0)
        side = raw[:, :2]
        if self.c.boundary_reflection_enabled:
            side = torch.where(side < -1, -2 - side, torch.where(side > 1, 2 - side, side))
        moved = torch.cat([side, raw[:, 2:]], dim=1).clamp(-1, 1)
        position = torch.where(active, moved, position)
        energy = torch.where(active, new_energy, energy)
        age = age + active
        return position, energy, hidden, active & (moved[:, 2:].abs() < 1), age

    def _collect(self, position: Tensor, energy: Tensor, active: Tensor, age: Tensor, batch: int) -> Tensor:
        c = self.c
        weight = energy.abs() / (2 - position[:, 2:].abs()) * (1 + 0.1 * age)
        mass = weight.exp() if c.project_unfinished else torch.where(active, 0.0, weight.exp())
        place = (position[:, :2].detach() + 1) / 2
        ix = (place[:, 0] * (c.lattice_width - 1)).round().long()
        iy = (place[:, 1] * (c.lattice_height - 1)).round().long()
        sample = torch.arange(batch, device=energy.device).repeat_interleave(c.surface)
        cell = sample * c.surface + iy * c.lattice_width + ix
        # One scatter of two columns instead of two scatters.
        sums = energy.new_zeros(batch * c.surface, 2).index_add(0, cell, torch.cat([mass, mass * energy], dim=1))
        return (sums[:, 1] / torch.where(sums[:, 0] > 0, sums[:, 0], 1.0)).reshape(batch, c.surface)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, E] -> embeddings [B, E], surfaces [B, S]."""
        c, batch = self.c, embeddings.shape[0]
        energy = self.mapper(embeddings).reshape(-1, 1)
        flows = energy.shape[0]
        zeros = torch.zeros(flows, c.carrier_hidden_size, device=energy.device, dtype=self.hidden_dtype)
        active = torch.ones(flows, 1, device=energy.device, dtype=torch.bool)
        state: State = (
            self.start.repeat(batch, 1), energy, (zeros,) * c.carrier_num_layers, active, torch.zeros_like(energy)
        )  # fmt: skip
        for _ in range(c.lattice_depth // 2):
            if self.training and c.gradient_checkpointing:
                state = checkpoint(self.move, *state, use_reentrant=False)
            else:
                state = self.move(*state)
        position, energy, _, active, age = state
        surface = self._collect(position, energy, active, age, batch)
        return self.collector(surface), surface

    def loss(self, inputs: Tensor, targets: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The training loss of a batch, as `training.losses.energy_flow_loss` computes it."""
        c = self.c
        embedding, surface = self(inputs)
        with torch.no_grad():
            target_surface, input_surface = self.mapper(torch.cat([targets, inputs])).chunk(2)
        squares = (embedding * embedding).sum(-1) * (targets * targets).sum(-1)
        cosine = (embedding * targets).sum(-1) * squares.clamp(min=1e-16).rsqrt()
        loss = c.surface_loss_weight * (surface - target_surface).square().mean()
        loss = loss + c.embedding_loss_weight * (1 - cosine).mean()
        if c.text_loss_weight:
            text = (self.text_encoder(ids, mask) - input_surface).square().mean()
            loss = loss + c.text_loss_weight * text
        return loss
