"""A training of 60 steps stopped after every step, in every combination of what has a state: the resumed run is the same bit for bit.

A trial is one combination. Three runs are compared in their weights, moments, trainer's state and metrics: one that nothing stops; one
that the signal of Ctrl-C stops after every step, to be resumed in a new process, compared after each; and one that is stopped once, at a
step of chance, and then goes on to its end.

    python scripts/campaigns/resume.py --minutes 20 --state /dev/shm/resume
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from campaign import Campaign
from jobs import Announce, Work, after, child, contents, flags

from energy_flow_mlx.results import Results
from energy_flow_mlx.scores import Scores
from energy_flow_mlx.train import checkpoint, report
from energy_flow_mlx.train import command as training
from energy_flow_mlx.train import run as training_run
from energy_flow_mlx.train.step import TrainStep

STEPS = 60
VARIED = {
    "compute_dtype": ("float32", "bfloat16", "float16"),
    "learning_rate_schedule": ("cosine", "plateau", "constant"),
    "gradient_accumulation_steps": (1, 2),
    "gradient_checkpointing": (False, True),
    "compile_step": ("off", "on"),
    "movement_based_spawn": (False, True),
}
# So that each of these states changes within the run: the plateau's rate, the loss scale, the displacement scale.
RESTLESS = {
    "validation_interval": 3,
    "plateau_patience": 1,
    "gradient_scale_init": 2.0**22,
    "spawn_movement_threshold_ratio": 0.05,
    "displacement_warmup_steps": 5,
    "displacement_scale_min": 0.2,
    "warmup_steps": 10,
    "checkpoint_interval": 1,
    "log_interval": 1,
    "validation_pairs": 4,
}
TIMED = ("samples_per_second", "peak_memory_bytes")  # in metrics.jsonl


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if a resumed run differs."""
    combinations = [dict(zip(VARIED, values, strict=True)) for values in itertools.product(*VARIED.values())]
    campaign = Campaign("resume", len(combinations), argv, __doc__)
    random.Random(campaign.options.seed).shuffle(combinations)
    for trial in campaign.trials():
        fields = combinations[trial]
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        for fault in _faults(campaign, fields, campaign.random(trial).randrange(1, STEPS)):
            campaign.fault(f"{told}: {fault}")
    figure = f"{campaign.counts['stops']:,} stops in {campaign.done} of {len(combinations)} combinations, {campaign.faults} differences"
    return campaign.end(figure, f"{STEPS * len(combinations):,} stops, bit for bit")


def _faults(campaign: Campaign, fields: dict[str, object], step: int) -> list[str]:
    """What goes wrong in one combination: the first difference of each run, after each step and after `step`."""
    whole, often, once = (campaign.folder / name for name in ("whole", "often", "once"))
    states = campaign.folder / "states"  # of the uninterrupted run after each step, a line each
    for path in (whole, often, once):
        shutil.rmtree(path, ignore_errors=True)
    states.unlink(missing_ok=True)

    def noting(_: Announce) -> int:
        with after(checkpoint, "save", lambda *_: _note(states, whole)):
            return _train("--out", whole, fields)

    if fault := _ended(noting, campaign, 0):
        return [f"does not train at all, {fault}"]
    expected = [json.loads(line) for line in states.read_text(encoding="utf-8").splitlines()]
    faults = []
    for run, stops in ((often, [*range(1, STEPS), None]), (once, [step, None])):
        for stop in stops:
            how = "--resume" if run.exists() else "--out"
            fault = _ended(lambda _, how=how, run=run, stop=stop: _train(how, run, fields, stop), campaign, 130 if stop else 0)
            campaign.count("stops", stop is not None)
            found = {} if fault else _state(run)
            wrong = sorted(name for name in found if found[name] != expected[stop or STEPS][name])
            fault = fault or (f"differs in {', '.join(wrong)}" if wrong else "")
            if fault:
                faults.append(f"stopped {'after every step' if run is often else f'after step {step}'}, up to {stop or STEPS}: {fault}")
                break
        else:
            if _metrics(run) != _metrics(whole):
                faults.append(f"{run.name}: metrics.jsonl differs")
    return faults


def _ended(work: Work, campaign: Campaign, wanted: int) -> str:
    """Run `work` in a child; what is wrong with its exit code, or nothing."""
    ended = child(work, campaign.folder / "log")
    return "" if ended.code == wanted else f"exit code {ended.code} instead of {wanted}: {ended.printed[-300:]}"


def _train(how: str, run: Path, fields: dict[str, object], stop: int | None = None) -> int:
    """A training without the figure and the table at its end, which take longer than the run; stopped by SIGINT in step `stop`."""
    report.draw_curves = lambda *_: None
    nothing = Results("nothing", {"test": 0}, {"test": {"nothing": Scores(0.0, 0.0, 0.0)}}, 0)
    training_run.held_out = lambda *_, **__: nothing
    launch = TrainStep.launch

    def stopping(self: TrainStep, at: int, batches: object, rate: object) -> object:
        if at + 1 == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return launch(self, at, batches, rate)

    TrainStep.launch = stopping
    given = flags(training_steps=STEPS, **RESTLESS, **fields) if how == "--out" else []
    return training.main([how, str(run), *given, "--quiet"])


def _note(states: Path, run: Path) -> None:
    """Add a line with the state of a run."""
    with states.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_state(run)) + "\n")


def _state(run: Path) -> dict[str, str]:
    return {name: contents(run / name) for name in checkpoint.FILES}


def _metrics(run: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in checkpoint.read_metrics(run)]


if __name__ == "__main__":
    sys.exit(main())
