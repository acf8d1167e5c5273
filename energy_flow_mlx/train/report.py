"""What a run leaves at its end: its results and its curves."""

import logging
import time
from pathlib import Path

from ..cli import reason
from ..config import EnergyConfig
from ..data.source import PairData
from ..distributed import ALONE, World
from ..files import write_aside
from ..models.energy_flow import EnergyFlow
from ..results import Results, made_by
from ..scores import Evaluation, Rows
from .baselines import mlp_baseline, simple_baselines, without_flow
from .evaluation import evaluate

CURVES = "curves.png"
logger = logging.getLogger(__name__)


def held_out(
    model: EnergyFlow, data: PairData, config: EnergyConfig, *, mlp: bool = False, ablation: bool = False, world: World = ALONE
) -> Results:
    """The results of a model: baselines and the model on the test split, the model on the validation split.

    Args:
        mlp: train an MLP of the model's size for as many steps.
        ablation: train the model with its flow left out for as many steps.
        world: its other processes evaluate the model on the test split too.
    """
    began = time.perf_counter()
    rows = simple_baselines(data)
    # The steps of a decoder's run are its own, not the flow's.
    name = f"energy flow ({model.trained_steps} steps)" if config.part == "all" else "energy flow (frozen)"
    rows[name] = evaluate(model, data.test, config, world)
    for wanted, train in ((mlp, mlp_baseline), (ablation, without_flow)):
        if wanted:
            other, scores = train(model, data, config)
            rows[other] = scores
    return Results(
        data=data.name,
        pairs={"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        splits={"test": rows, "validation": {name: evaluate(model, data.validation, config)}},
        steps=model.trained_steps,
        seconds={"evaluation": time.perf_counter() - began},
        made=made_by(config),
    )


def try_curves(run: Path, rows: Rows | None = None) -> None:
    """`draw_curves`, where a figure never costs a result: what goes wrong is a warning."""
    try:
        draw_curves(run, rows)
    except Exception as error:
        logger.warning("%s is not drawn: %s: %s", run / CURVES, type(error).__name__, reason(error))


def draw_curves(run: Path, rows: Rows | None = None) -> None:
    """Write curves.png into the folder of a run: how it went, from its metrics.jsonl.

    rows: the final table, whose baselines are drawn as lines.
    """
    from ..plot import training

    baselines = {name.split(" (")[0]: scores.cosine for name, scores in (rows or {}).items() if not isinstance(scores, Evaluation)}
    figure = training(run, baselines)
    write_aside(run / CURVES, lambda aside: figure.savefig(aside, dpi=150, format="png"))
