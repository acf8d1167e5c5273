"""What a run shows at its end: the table and the curves."""

import sys
from collections.abc import Mapping
from pathlib import Path

from ..cli import reason
from ..config import EnergyConfig
from ..data.source import PairData
from ..distributed import ALONE, World
from ..files import write_aside
from ..models.energy_flow import EnergyFlow
from .baselines import mlp_baseline, simple_baselines, without_flow
from .evaluation import Evaluation, Scores, evaluate

CURVES = "curves.png"


def held_out(
    model: EnergyFlow, data: PairData, config: EnergyConfig, *, mlp: bool = False, ablation: bool = False, world: World = ALONE
) -> dict[str, Scores]:
    """Scores on the test split, by name: the baselines and the model.

    Args:
        mlp: train an MLP of the model's size for as many steps.
        ablation: train the model with its flow left out for as many steps.
        world: its other processes evaluate the model on the test split too.
    """
    rows = simple_baselines(data)
    rows[f"energy flow ({model.trained_steps} steps)"] = evaluate(model, data.test, config, world)
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


def try_curves(run: Path, rows: Mapping[str, Scores] | None = None) -> None:
    """`draw_curves`, where a figure never costs a result: what goes wrong is a warning."""
    try:
        draw_curves(run, rows)
    except Exception as error:
        print(f"warning: {run / CURVES} is not drawn: {type(error).__name__}: {reason(error)}", file=sys.stderr)


def draw_curves(run: Path, rows: Mapping[str, Scores] | None = None) -> None:
    """Write curves.png into the folder of a run: how it went, from its metrics.jsonl.

    rows: the final table, whose baselines are drawn as lines.
    """
    from ..plot import training

    baselines = {name.split(" (")[0]: scores.cosine for name, scores in (rows or {}).items() if not isinstance(scores, Evaluation)}
    figure = training(run, baselines)
    write_aside(run / CURVES, lambda aside: figure.savefig(aside, dpi=150, format="png"))
