"""A whole flow in float64 NumPy, flow by flow in plain Python: the schedule of the reference, written for reading.

Nothing is shared with the package but the weights' names; one flow is one object in a list.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from energy_flow_mlx import EnergyConfig, EnergyFlow

Weights = dict[str, np.ndarray]


@dataclass
class Flow:
    position: np.ndarray  # [3]
    energy: float
    hidden: np.ndarray  # [L, Hd]
    age: int = 0
    active: bool = True
    arrived: bool = False


@dataclass
class Outcome:
    surface: np.ndarray  # [B, S]
    flows: list[list[Flow]]
    reached_z0: int = 0
    reached_zdepth: int = 0
    projected: int = 0
    dropped: int = 0
    spawned: int = 0
    overflowed: int = 0


def weights_of(model: EnergyFlow) -> Weights:
    return {name: np.array(value, dtype=np.float64) for name, value in tree_flatten(model.parameters())}


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def neuron(w: Weights, position: np.ndarray, energy: float) -> np.ndarray:
    x = np.append(linear(w, "neuron.coord_encoder", position), energy)
    x = gelu(norm(w, "neuron.layers.1", linear(w, "neuron.layers.0", x)))
    x = gelu(norm(w, "neuron.layers.4", linear(w, "neuron.layers.3", x)))
    return linear(w, "neuron.layers.6", x)


def carrier(w: Weights, features: np.ndarray, flow: Flow) -> tuple[float, np.ndarray, np.ndarray]:
    """New energy, unscaled displacement [3], hidden [L, Hd]."""
    x = np.clip(np.append(features, flow.energy), -10, 10)
    hidden = []
    for layer, state in enumerate(np.clip(flow.hidden, -10, 10)):
        gru = f"carrier.gru.{layer}"
        i = np.split(w[f"{gru}.Wx"] @ x + w[f"{gru}.b"], 3)
        h = np.split(w[f"{gru}.Wh"] @ state, 3)
        r, z = sigmoid(i[0] + h[0]), sigmoid(i[1] + h[1])
        x = (1 - z) * np.tanh(i[2] + r * (h[2] + w[f"{gru}.bhn"])) + z * state
        hidden.append(x)
    g = np.clip(x, -10, 10)
    energy = math.tanh(linear(w, "carrier.energy_projection.2", gelu(linear(w, "carrier.energy_projection.0", g)))[0])
    inner = gelu(linear(w, "carrier.displacement_projection.0", g))
    return energy, linear(w, "carrier.displacement_projection.2", inner), np.clip(hidden, -10, 10)


def displacement_scale(config: EnergyConfig, step: int) -> float:
    scale = config.displacement_scale
    updates = (step - config.displacement_warmup_steps) // config.displacement_scale_update_interval
    for _ in range(updates):
        scale *= config.displacement_scale_decay
    return max(scale, config.displacement_scale_min)


def run(
    model: EnergyFlow,
    surface: mx.array,
    *,
    steps: int | None = None,
    step: int = 0,
    noise: list[np.ndarray] | None = None,
) -> Outcome:
    """The life of all flows of surfaces [B, S]. noise: one array [B, slots, 3] for each step."""
    c, w = model.config, weights_of(model)
    scale = displacement_scale(c, step)
    out = Outcome(np.zeros(surface.shape), [])
    start = np.array(surface, dtype=np.float64)
    for sample, row in enumerate(start):
        flows = []
        for cell, energy in enumerate(row):
            iy, ix = divmod(cell, c.lattice_width)
            iz = c.lattice_depth // 2
            spans = np.array([c.lattice_width - 1, c.lattice_height - 1, c.lattice_depth])
            hidden = np.zeros((c.carrier_num_layers, c.carrier_hidden_size))
            flows.append(Flow(2 * np.array([ix, iy, iz]) / spans - 1, energy, hidden))
        for number in range(steps or c.lattice_depth // 2):
            _step(c, w, flows, scale, None if noise is None else noise[number][sample], len(surface), out)
        _collect(c, flows, out, sample)
        out.flows.append(flows)
    return out


def _step(
    c: EnergyConfig, w: Weights, flows: list[Flow], scale: float, noise: np.ndarray | None, batch: int, out: Outcome
) -> None:
    parents = []
    for slot, flow in enumerate(flows):
        if not flow.active:
            continue
        before = flow.position
        flow.energy, displacement, flow.hidden = carrier(w, neuron(w, before, flow.energy), flow)
        raw = before + np.clip(scale * displacement, -0.5, 0.5)
        if noise is not None:
            raw = raw + noise[slot]
        following = np.clip(raw, -1, 1)
        flow.position = following.copy()
        if c.boundary_reflection_enabled:
            for axis in (0, 1):
                mirrored = -2 - raw[axis] if raw[axis] < -1 else 2 - raw[axis] if raw[axis] > 1 else raw[axis]
                flow.position[axis] = min(max(mirrored, -1), 1)
        flow.age += 1
        length = math.dist(following, before)
        if abs(following[2]) >= 1:
            flow.active, flow.arrived = False, True
            out.reached_z0 += following[2] <= -1
            out.reached_zdepth += following[2] >= 1
        elif c.enable_displacement_filtering and length < c.min_displacement_threshold:
            flow.active = False
            out.dropped += 1
        elif length > c.spawn_movement_threshold_ratio:
            count = min(math.floor(length / c.spawn_movement_threshold_ratio) - 1, c.max_spawn_per_step)
            parents += [(flow, before)] * count
    if not c.movement_based_spawn:
        return
    for parent, position in parents:
        moving = sum(flow.active for flow in flows)
        if len(flows) < c.slots_per_sample and moving < c.max_active_flows // batch:
            flows.append(Flow(position, parent.energy, parent.hidden))
            out.spawned += 1
        else:
            out.overflowed += 1


def _collect(c: EnergyConfig, flows: list[Flow], out: Outcome, sample: int) -> None:
    cells: dict[int, list[tuple[float, float, float]]] = {}  # (weight, share, energy)
    for flow in flows:
        if flow.active:
            out.projected += c.project_unfinished
            out.dropped += not c.project_unfinished
        if not (flow.arrived or (flow.active and c.project_unfinished)):
            continue
        distance = min(abs(flow.position[2] - plane) for plane in (-1, 1))
        weight = abs(flow.energy) / (1 + distance) * (1 + 0.1 * flow.age)
        x = (flow.position[0] + 1) / 2 * (c.lattice_width - 1)
        y = (flow.position[1] + 1) / 2 * (c.lattice_height - 1)
        for iy in range(c.lattice_height):
            for ix in range(c.lattice_width):
                if c.collection == "nearest":
                    share = float(ix == round(x) and iy == round(y))
                else:  # a tent over the neighbouring cells
                    share = max(0, 1 - abs(x - ix)) * max(0, 1 - abs(y - iy))
                if share:
                    cells.setdefault(iy * c.lattice_width + ix, []).append((weight, share, flow.energy))
    for cell, entries in cells.items():
        mass = [share * math.exp(weight) for weight, share, _ in entries]
        mean = sum(m * energy for m, (_, _, energy) in zip(mass, entries, strict=True)) / sum(mass)
        out.surface[sample, cell] = min(1, sum(share for _, share, _ in entries)) * mean
