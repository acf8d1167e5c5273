"""NaN, infinities, 1e30 and denormals put into each stage forward and backward, and into weights, moments and data of a training.

The number is put in once, into step 3 of a run of 6. Wanted: a run that ends names the step and where the number was (the stage, the
parameter, the moment, the training pair) and exits with 1; a run that goes on has finite weights. Nothing that is not finite is saved.

    python scripts/campaigns/bad_numbers.py --minutes 20
"""

import itertools
import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from campaign import Campaign
from jobs import TINY, Training, checked, child, flags
from mlx.utils import tree_map

from energy_flow_mlx.config import EnergyConfig
from energy_flow_mlx.models.energy_flow import EnergyFlow
from energy_flow_mlx.train import command as training
from energy_flow_mlx.train import report
from energy_flow_mlx.train.optimiser import named_arrays, start_training
from energy_flow_mlx.train.stages import STAGES
from energy_flow_mlx.train.step import TrainStep

NUMBERS = {"NaN": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "1e30": 1e30, "a denormal": 1e-40}
STEPS, AT = 6, 3


class Trial(NamedTuple):
    """`number` put into `place`: (kind, name). `protected`: with the GRU's protection against NaN, which is the default."""

    kind: str
    name: str
    number: str
    protected: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if a number was not named or was saved."""
    campaign = Campaign("numbers", 0, argv, __doc__)
    names = campaign.folder / "names"
    ended = child(lambda _: _names(names), campaign.folder / "log")
    if ended.code:
        raise RuntimeError(ended.printed)
    stages, parameters = [name for *_, name in STAGES], names.read_text(encoding="utf-8").split()
    places = [("forward", name) for name in stages] + [("backward", name) for name in stages]
    places += [(kind, name) for kind in ("parameter", "m", "v") for name in parameters]
    places += [("data", "input_embedding"), ("data", "target_embedding")]
    trials = [Trial(*place, *rest) for place, *rest in itertools.product(places, NUMBERS, (True, False))]
    random.Random(campaign.options.seed).shuffle(trials)
    campaign.goal = campaign.goal or len(trials)
    for number in campaign.trials():
        trial = trials[number]
        for fault in _faults(campaign, trial):
            how = "" if trial.protected else ", GRU unprotected"
            campaign.fault(f"{trial.number} in {trial.kind} {trial.name}{how}: {fault}")
    figure = (
        f"{campaign.done} of {len(trials)} numbers: {campaign.counts['named']} named, {campaign.counts['harmless']} harmless, "
        f"{campaign.faults} faults"
    )
    return campaign.end(figure, "each named with step and place, or without effect; none saved")


def _names(path: Path) -> int:
    """Write the names of the parameters that are trained."""
    config = EnergyConfig.tiny().replace(**TINY)
    model = EnergyFlow(config)
    start_training(model, config)
    path.write_text("\n".join(named_arrays(model.trainable_parameters())), encoding="utf-8")
    return 0


def _faults(campaign: Campaign, trial: Trial) -> list[str]:
    job = Training(campaign.folder, STEPS)
    shutil.rmtree(job.folder, ignore_errors=True)
    ended = child(lambda _: _spoilt(job.folder, trial), campaign.folder / "log")
    faults = checked(job, -1, campaign.folder / "check")  # also that everything saved is finite
    bad = not np.isfinite(NUMBERS[trial.number])
    if ended.code == 0:
        if bad:
            faults.append("the run goes on without a word")
        if not faults:
            campaign.count("harmless")
        return faults
    line = next((line for line in ended.printed.splitlines() if line.startswith("error: ")), "")
    step = re.search(r"step (\d+)", line)
    named = trial.name.replace("_", " ") if trial.kind == "data" else trial.name
    if ended.code != 1:
        faults.append(f"exit code {ended.code}: {ended.printed[-300:]}")
    elif step is None or int(step.group(1)) not in (AT, AT + 1):
        faults.append(f"the step is not named: {line}")
    elif trial.kind != "backward" and bad and named not in line:
        faults.append(f"the place is not named: {line}")
    else:
        campaign.count("named")
    return faults


def _spoilt(run: Path, trial: Trial) -> int:
    """A training in whose step AT the number is put into its place."""
    report.draw_curves = lambda *_: None
    number = NUMBERS[trial.number]
    now = [False]
    for owner, attribute, name in STAGES:
        if trial.kind in ("forward", "backward") and name == trial.name:
            # Backward into all: not every one of them has a gradient.
            change, most = (_forward, 1) if trial.kind == "forward" else (_backward, 100)
            setattr(owner, attribute, _changed(getattr(owner, attribute), partial(change, number, now), most))
    launch = TrainStep.launch

    def launching(self: TrainStep, step: int, batches: Any, rate: float) -> Any:
        now[0] = step == AT
        if now[0] and trial.kind == "parameter":
            self.model.load_weights([(trial.name, _spoil(named_arrays(self.model.parameters())[trial.name], number))], strict=False)
        if now[0] and trial.kind in ("m", "v"):
            holder: Any = self.optimiser.state
            for part in trial.name.split("."):
                holder = holder[int(part) if isinstance(holder, list) else part]
            holder[trial.kind] = _spoil(holder[trial.kind], number)
        if now[0] and trial.kind == "data":
            batches[0] = batches[0]._replace(**{trial.name: np.array(_spoil(mx.array(getattr(batches[0], trial.name)), number))})
        return launch(self, step, batches, rate)

    TrainStep.launch = launching
    steps = {"training_steps": STEPS, "validation_interval": 2, "checkpoint_interval": 1, "log_interval": 1}
    given = flags(**steps, enable_gru_nan_protection=trial.protected)
    return training.main(["--out", str(run), *given, "--quiet"])


def _changed(function: Callable[..., Any], change: Callable[[mx.array], mx.array], most: int) -> Callable[..., Any]:
    """`function` with the first `most` arrays of floats of its result changed."""

    def call(*arguments: Any, **options: Any) -> Any:
        left = [most]

        def changed(array: Any) -> Any:
            if not left[0] or not isinstance(array, mx.array) or not mx.issubdtype(array.dtype, mx.floating):
                return array
            left[0] -= 1
            return change(array)

        return tree_map(changed, function(*arguments, **options))

    return call


def _spoil(array: mx.array, number: float) -> mx.array:
    flat = mx.arange(array.size).reshape(array.shape)
    return mx.where(flat == 0, mx.array(number, dtype=array.dtype), array)


def _forward(number: float, now: list[bool], array: mx.array) -> mx.array:
    return _spoil(array, number) if now[0] else array


def _backward(number: float, now: list[bool], array: mx.array) -> mx.array:
    if not now[0]:
        return array

    @mx.custom_function
    def same(x: mx.array) -> mx.array:
        return x * 1.0

    @same.vjp
    def spoilt(_: Any, cotangent: mx.array, __: Any) -> mx.array:
        return _spoil(cotangent, number)

    return same(array)


if __name__ == "__main__":
    sys.exit(main())
