"""What a run shows at its end: the table and the curves."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cli import reason
from ..config import EnergyConfig
from ..data.source import PairData
from ..figures import BLUE, GREEN, GREY, ORANGE, PINK, figure_file
from ..models.energy_flow import EnergyFlow
from .baselines import mlp_baseline, simple_baselines, without_flow
from .checkpoint import read_metrics
from .evaluation import Evaluation, Scores, evaluate

FLOOR = 1e-4  # of the loss parts' logarithmic axis, on which a distance of 0 would not be seen


def held_out(
    model: EnergyFlow, data: PairData, config: EnergyConfig, *, mlp: bool = False, ablation: bool = False
) -> dict[str, Scores]:
    """Scores on the test split, by name: the baselines and the model.

    Args:
        mlp: train an MLP of the model's size for as many steps.
        ablation: train the model with its flow left out for as many steps.
    """
    rows = simple_baselines(data)
    rows[f"energy flow ({model.trained_steps} steps)"] = evaluate(model, data.test, config)
    for wanted, train in ((mlp, mlp_baseline), (ablation, without_flow)):
        if wanted:
            name, scores = train(model, data, config)
            rows[name] = scores
    return rows


def table(rows: Mapping[str, Scores], title: str) -> str:
    """The rows as plain text, the best cosine last. What flows did stands in the rows of models that have flows."""
    width = max(map(len, rows))
    heads = ("cosine", "top-1", "top-10", "arrived", "collisions a cell", "cells sideways")
    lines = [title, " " * width + "".join(f"  {head:>7}" for head in heads)]
    for name, scores in sorted(rows.items(), key=lambda row: row[1].cosine):
        cells = [f"{scores.cosine:.4f}", f"{scores.top1:.1%}", f"{scores.top10:.1%}"]
        if isinstance(scores, Evaluation):
            cells += [f"{scores.arrived:.1%}", f"{scores.collisions:.3f}", f"{scores.sideways:.2f}"]
        columns = zip(cells, heads, strict=False)
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>{max(len(head), 7)}}" for cell, head in columns))
    return "\n".join(lines)


def try_curves(run: Path) -> None:
    """Draw curves.png of a run. A figure never costs a result: what goes wrong is a warning."""
    path = run / "curves.png"
    try:
        draw_curves(path, read_metrics(run))
    except Exception as error:
        print(f"warning: {path} is not drawn: {type(error).__name__}: {reason(error)}", file=sys.stderr)


def draw_curves(path: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """How a run went, as a PNG: cosine and arrival of training and validation, parts of the loss, rate and gradient norm."""
    trained = _columns(metrics, "loss")
    watched = _columns(metrics, "validation_cosine")
    style: Any = {
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "font.size": 9, "legend.frameon": False, "lines.linewidth": 1.4,
    }  # fmt: skip
    with figure_file(path, (8, 5.2), style) as figure:
        (cosines, arrivals), (parts, rates) = figure.subplots(2, 2)
        if "embedding" in trained:
            cosine = 1 - trained["embedding"]
            cosines.plot(trained["step"], cosine, color=BLUE, alpha=0.25)
            cosines.plot(trained["step"], _smooth(cosine), color=BLUE, label="training")
        cosines.plot(watched["step"], watched["validation_cosine"], color=ORANGE, marker="o", ms=3, label="validation")
        cosines.set(title="cosine of output and target")
        if "arrived" in trained:
            share = 100 * trained["arrived"] / np.maximum(trained["ended"], 1)
            arrivals.plot(trained["step"], share, color=BLUE, label="training")
        if "validation_arrived" in watched:
            arrivals.plot(
                watched["step"], 100 * watched["validation_arrived"], color=ORANGE, marker="o", ms=3, label="validation"
            )
        arrivals.set(title="flows that arrive, %", ylim=(-3, 103))
        named = {"embedding": "1 - cosine", "surface": "surface", "text": "text", "arrival": "distance to a plane"}
        for (name, label), colour in zip(named.items(), (BLUE, ORANGE, GREEN, PINK), strict=True):
            if name in trained and np.any(trained[name] > 0):
                parts.plot(trained["step"], np.maximum(trained[name], FLOOR), color=colour, label=label)
        parts.set(title="parts of the loss, before their weights", yscale="log", xlabel="step")
        rates.plot(trained["step"], trained["learning_rate"], color=BLUE, label="learning rate (left)")
        rates.set(title="learning rate and gradient norm", xlabel="step", ylim=(0, None))
        right = rates.twinx()
        right.spines["right"].set_visible(True)
        right.grid(False)
        right.plot(trained["step"], trained["gradient_norm"], color=GREY, lw=0.8, label="gradient norm (right)")
        right.set(yscale="log")
        handles = [axes.get_legend_handles_labels() for axes in (rates, right)]
        for axes in (cosines, arrivals, parts):
            axes.legend(loc="best")
        rates.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="best")


def _columns(metrics: Sequence[dict[str, Any]], name: str) -> dict[str, np.ndarray]:
    """The lines that have `name`, as one array a key that all of them have."""
    lines = [line for line in metrics if name in line]
    shared = set.intersection(*(set(line) for line in lines)) if lines else {"step", name}
    return {key: np.array([line[key] for line in lines], dtype=np.float64) for key in shared}


def _smooth(values: np.ndarray, weight: float = 0.9) -> np.ndarray:
    """The exponential moving average, corrected for its start."""
    smoothed, mean = np.empty_like(values), 0.0
    for at, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        smoothed[at] = mean / (1 - weight ** (at + 1))
    return smoothed
