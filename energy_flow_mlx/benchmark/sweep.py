"""The growth of time and memory with batch size, cells, depth and hidden size."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import EnergyConfig
from ..models.energy_flow import EnergyFlow
from .measure import clear_memory, timed
from .work import make_batches, make_model, make_step

AXES = {"B": "batch_size", "W*H": "lattice_width", "D": "lattice_depth", "Hd": "carrier_hidden_size"}
LEAST = {"B": 1, "W*H": 2, "D": 2, "Hd": 4}
FACTORS = (0.25, 0.5, 1.0, 2.0)


def sweep_points(config: EnergyConfig) -> list[tuple[str, int, EnergyConfig]]:
    """(axis, its value, configuration) with one axis at 1/4, 1/2, 1 or 2 times the configuration's value.

    W*H is varied through W. D is kept even, because flows take D // 2 steps.
    """
    points = []
    for axis, field in AXES.items():
        seen = set()
        for factor in FACTORS:
            value = round(getattr(config, field) * factor)
            value = max(LEAST[axis], value // 2 * 2 if axis == "D" else value)
            if value in seen:
                continue
            seen.add(value)
            size = value * config.lattice_height if axis == "W*H" else value
            points.append((axis, size, config.replace(**{field: value})))
    return points


def exponent(values: Sequence[float], results: Sequence[float]) -> float:
    """The exponent p of results ~ values^p, fitted on logarithms; NaN for fewer than two values or a result of 0."""
    if len(values) < 2 or min(results) <= 0:
        return math.nan
    return float(np.polyfit(np.log(values), np.log(results), 1)[0])


def measure_sweep(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and peak bytes of a training step, and of only its flows (forward and backward), at each point; and the
    exponents of their growth along each axis. Those of the flows must be linear."""
    points: list[dict[str, Any]] = []
    for axis, value, config in sweep_points(EnergyConfig.from_dict(job["config"])):
        model = make_model(config, training=True, dropout=job["dropout"])
        timing = {"warmup": 1, "repeats": job["repeats"], "limit": job["limit_s"]}
        flows = _measured(_flows(config, model), timing)
        training = _measured(_training(config, model), timing)
        points.append({"axis": axis, "value": value, "training": training, "flows": flows})
        del model
        clear_memory()
    fits = []
    for axis in AXES:
        axis_points = [point for point in points if point["axis"] == axis]
        values = [point["value"] for point in axis_points]
        fit: dict[str, Any] = {"axis": axis}
        for what in ("training", "flows"):
            for quantity in ("seconds", "peak_bytes"):
                results = [point[what][quantity] for point in axis_points]
                fit[f"{what} {quantity}"] = exponent(values, results)
                fit[f"{what} {quantity}, last doubling"] = exponent(values[-2:], results[-2:])
        fits.append(fit)
    return {"points": points, "exponents": fits}


def _measured(call: Callable[[], Any], timing: Mapping[str, Any]) -> dict[str, float]:
    call()
    clear_memory()
    times = timed(call, **timing)
    return {"seconds": statistics.median(times), "peak_bytes": mx.get_peak_memory()}


def _training(config: EnergyConfig, model: EnergyFlow) -> Callable[[], Any]:
    step, batches = make_step(config, model), make_batches(config)

    def call() -> None:
        step(0, batches, config.learning_rate)
        mx.eval(model.parameters(), step.optimiser.state)

    return call


def _flows(config: EnergyConfig, model: EnergyFlow) -> Callable[[], Any]:
    surface = mx.random.uniform(-1, 1, (config.batch_size, config.surface_dim))
    key = mx.random.key(0)

    def loss(weights: list[Any], surface: mx.array) -> mx.array:
        model.neuron.update(weights[0])
        model.carrier.update(weights[1])
        return mx.sum(mx.square(model.processor(surface, key=key).surface))

    gradient = mx.value_and_grad(loss, argnums=(0, 1))

    def call() -> None:
        weights = [model.neuron.parameters(), model.carrier.parameters()]
        mx.eval(gradient(weights, surface))
        model.neuron.update(weights[0])
        model.carrier.update(weights[1])

    return call
