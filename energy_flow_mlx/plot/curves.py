"""Pictures of runs: metrics over the steps, and held-out scores."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray

from ..figures import BLUE, GREEN, GREY, ORANGE, PINK
from ..metrics import Metrics, columns, read_lines
from ..results import Results
from ..scores import Evaluation, Scores
from .styling import canvas, style

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
FLOOR = 1e-4  # of a logarithmic axis, on which 0 would not be seen


def curves(
    *runs: Any, metric: str = "validation_cosine", labels: Sequence[str] | None = None, smooth: float = 0.0, ax: Axes | None = None
) -> Axes:
    """One metric of several runs over the steps.

    Args:
        runs: folders of runs, runs, or metrics themselves: arrays by name, in step with "step", NaN where there is none.
        labels: of the runs; None: the names of their folders.
        smooth: 0 to 0.999, weight of the past in an exponential mean; the raw values stay behind it, pale.
    """
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth={smooth} came, accepted is 0 up to, but not, 1")
    names = labels or [_name(run, number) for number, run in enumerate(runs, 1)]
    with canvas(ax) as ax:
        for run, name in zip(runs, names, strict=True):
            metrics = metrics_of(run)
            if metric not in metrics:
                raise ValueError(f"metric={metric!r} came, accepted are {', '.join(each for each in metrics if each != 'step')}")
            steps, values = series(metrics, metric)
            marker = "o" if len(steps) < 40 and not smooth else None
            (line,) = ax.plot(steps, smoothed(values, smooth), label=name, marker=marker)
            if smooth:
                ax.plot(steps, values, color=line.get_color(), alpha=0.2, lw=0.8, zorder=1)
        ax.set(xlabel="step", ylabel=metric.replace("_", " "))
        ax.legend(loc="best")
    return ax


def scores(rows: Any, *, metric: str = "cosine", ours: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Held-out scores beside those of baselines, the best at the top; bars of models with flows stand out.

    Args:
        rows: the folder of a run, or the run, or its results: the rows of its table that have `metric`. Or a mapping, by name a number, an
            object with `metric` such as a run's `evaluation`, a run as above, or several of these (seeds: their mean, with their range).
        ours: names of the models with flows; None: those that begin with "energy flow", and the runs.

    Raises:
        FileNotFoundError, ValueError: a run has no results.json, or it does not parse; or there is no such metric.
    """
    found = {name: [_scored(one) for one in np.atleast_1d(np.asarray(row, dtype=object))] for name, row in _named(rows, metric).items()}
    if ours is None:
        ours = [name for name, each in found.items() if name.startswith("energy flow") or isinstance(each[0], Evaluation)]
    values = {name: np.array([_number(one, metric) for one in each]) for name, each in found.items()}
    order = sorted(values, key=lambda name: float(values[name].mean()))
    with canvas(ax, size=(3.3, 0.6 + 0.24 * len(order))) as ax:
        for place, name in enumerate(order):
            mean, low, high = values[name].mean(), values[name].min(), values[name].max()
            ax.barh(place, mean, height=0.65, color=BLUE if name in ours else "#BBBBBB")
            if high > low:
                ax.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black", lw=0.8, capsize=2)
            ax.text(high, place, f" {mean:.3f}", va="center", fontsize=7)
        ax.set(xlabel=metric)
        ax.set_yticks(range(len(order)), order)
        ax.margins(x=0.14)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
    return ax


def _named(rows: Any, metric: str) -> Mapping[str, Any]:
    """Rows by name; of a run's table those that have the metric, and its model's in any case."""
    if isinstance(rows, Mapping):
        return rows
    results = Results.load(rows) if isinstance(rows, str | os.PathLike) else getattr(rows, "results", rows)
    return {name: each for name, each in results.splits["test"].items() if hasattr(each, metric) or isinstance(each, Evaluation)}


def _scored(row: Any) -> Any:
    """The model's scores where a row is a run; else the row."""
    return getattr(Results.load(row) if isinstance(row, str | os.PathLike) else row, "evaluation", row)


def _number(row: Any, metric: str) -> float:
    value = getattr(row, metric, row)
    if isinstance(value, Scores):
        raise ValueError(f"metric={metric!r} came, accepted are {', '.join(each.name for each in fields(value))}")
    return float(value)


def training(run: Any, baselines: Mapping[str, float] | None = None) -> Figure:
    """How a run went, as one figure that pyplot does not know of: cosine and arrival of training and validation, parts of the loss, rate
    and gradient norm.

    Args:
        run: as in `curves`.
        baselines: held-out cosines by name, which are drawn as lines.
    """
    metrics = metrics_of(run)
    with style():
        figure = Figure(figsize=(7, 4.8))
        (cosines, arrivals), (parts, rates) = figure.subplots(2, 2)
        _cosines(cosines, metrics, baselines or {})
        _arrivals(arrivals, metrics)
        _parts(parts, metrics)
        _rates(rates, metrics)
        for ax in (parts, rates):
            ax.set(xlabel="step")
    return figure


def _cosines(ax: Axes, metrics: Metrics, baselines: Mapping[str, float]) -> None:
    steps, distance = series(metrics, "embedding")
    ax.plot(steps, 1 - distance, color=BLUE, alpha=0.2)
    ax.plot(steps, smoothed(1 - distance, 0.9), color=BLUE, label="training")
    ax.plot(*series(metrics, "validation_cosine"), color=ORANGE, marker="o", label="validation")
    for (name, value), dashes in zip(baselines.items(), ((1, 1), (4, 2), (4, 1, 1, 1), (8, 2)), strict=False):
        ax.axhline(value, color=GREY, lw=0.9, dashes=dashes, label=name)
    _titled(ax, "cosine of output and target")


def _arrivals(ax: Axes, metrics: Metrics) -> None:
    (steps, arrived), (_, ended) = series(metrics, "arrived"), series(metrics, "ended")
    ax.plot(steps, 100 * arrived / np.maximum(ended, 1), color=BLUE, label="training")
    steps, arrived = series(metrics, "validation_arrived")
    ax.plot(steps, 100 * arrived, color=ORANGE, marker="o", label="validation")
    ax.set_ylim(-3, 103)
    _titled(ax, "flows that arrive, %")


def _parts(ax: Axes, metrics: Metrics) -> None:
    named = {"embedding": "1 - cosine", "surface": "surface", "text": "text", "arrival": "distance to a plane"}
    for (name, label), colour in zip(named.items(), (BLUE, ORANGE, GREEN, PINK), strict=True):
        steps, values = series(metrics, name)
        if np.any(values > 0):
            ax.plot(steps, np.maximum(values, FLOOR), color=colour, label=label)
    _logarithmic(ax)
    _titled(ax, "parts of the loss, before their weights")


def _rates(ax: Axes, metrics: Metrics) -> None:
    ax.plot(*series(metrics, "learning_rate"), color=BLUE, label="learning rate (left)")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.set_ylim(0, None)
    right = ax.twinx()
    right.spines["right"].set_visible(True)
    right.grid(False)
    (line,) = right.plot(*series(metrics, "gradient_norm"), color=GREY, lw=0.8, label="gradient norm (right)")
    _logarithmic(right)
    _titled(ax, "learning rate and gradient norm", [*ax.lines, line])


def _titled(ax: Axes, title: str, lines: Sequence[Any] | None = None) -> None:
    """A title, and the legend in a row under it, where no data are."""
    shown = [line for line in (lines or ax.lines) if not str(line.get_label()).startswith("_")]
    ax.set_title(title, pad=14)
    ax.legend(handles=shown, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=5, columnspacing=1.0, borderpad=0.2, fontsize=6.5)


def _logarithmic(ax: Axes) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5, and none in between."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    ax.yaxis.set_major_formatter(PLAIN)
    ax.minorticks_off()


def metrics_of(run: Any) -> Metrics:
    """The metrics of a run as arrays by name: of a folder, of an object with `metrics`, or as they are.

    Raises:
        FileNotFoundError, ValueError: the folder has no metrics.jsonl, or it does not parse.
    """
    if isinstance(run, str | os.PathLike):
        return columns(read_lines(run))
    found: Metrics = run if isinstance(run, Mapping) else run.metrics
    return found


def series(metrics: Metrics, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of one metric where it was measured; none if it never was."""
    values = np.asarray(metrics.get(name, []), dtype=np.float64)
    steps = np.asarray(metrics["step"], dtype=np.float64)[: len(values)]
    return steps[~np.isnan(values)], values[~np.isnan(values)]


def smoothed(values: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """The exponential moving average, corrected for its start."""
    means, mean = np.empty_like(values), 0.0
    for at, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        means[at] = mean / (1 - weight ** (at + 1))
    return means


def _name(run: Any, number: int) -> str:
    folder = run if isinstance(run, str | os.PathLike) else getattr(run, "folder", None)
    return Path(folder).name if folder else f"run {number}"
