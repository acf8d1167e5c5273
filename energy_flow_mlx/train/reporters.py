"""Where the numbers of a run go beside metrics.jsonl: TensorBoard and Weights & Biases, each a callback."""

import contextlib
import dataclasses
import importlib.util
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import ConfigError, EnergyConfig
from ..files import write_aside
from ..scores import Evaluation
from .callbacks import Callback
from .correction import Corrected


class Reporter(Callback):
    """Writes the numbers of steps as train/… and those of validations as validation/…"""

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        self.write(step, {f"train/{name}": value for name, value in values.items() if name != "step"})

    def on_validation(self, step: int, result: Evaluation | Corrected) -> None:
        self.write(step, {f"validation/{name}": value for name, value in dataclasses.asdict(result).items()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Have the numbers of a step written when this returns, so that a checkpoint never stands for steps that are missing here."""
        raise NotImplementedError

    def close(self) -> None:
        """The run has ended, in whatever way."""
        raise NotImplementedError


class TensorBoard(Reporter):
    """Event files in tensorboard/ of the run folder, one for each process that trained the run."""

    def __init__(self, folder: Path, config: EnergyConfig, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder / "tensorboard"))
        if start:  # readers drop what an earlier process wrote of these steps, which come again
            session = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=start + 1, session_log=session))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Reporter):
    """A run of Weights & Biases with the configuration, in wandb/ of the run folder. A resumed run goes on with the same one, which leaves
    out the steps that come again; WANDB_MODE, WANDB_PROJECT and its other variables are heard."""

    def __init__(self, folder: Path, config: EnergyConfig, start: int) -> None:
        import wandb

        name = folder / "wandb" / "run-id.txt"
        if not name.is_file():
            name.parent.mkdir(exist_ok=True)
            write_aside(name, lambda aside: aside.write_text(uuid.uuid4().hex, encoding="utf-8"))
        try:
            self._run = wandb.init(
                dir=folder, id=name.read_text(encoding="utf-8"), resume="allow", name=folder.name, config=config.to_dict(),
                settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except wandb.Error as error:
            raise ConfigError(f"report_to={config.report_to}: wandb does not begin: {error}") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_REPORTERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def require(config: EnergyConfig) -> None:
    """See that what `report_to` names is installed.

    Raises:
        ConfigError: a package is missing; names the extra that brings it.
    """
    for name in _REPORTERS.keys() & set(config.reporters):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin: a folder of that name
            raise ConfigError(f"report_to={config.report_to}: {name} is not installed; pip install 'energy-flow-mlx[{name}]'")


@contextlib.contextmanager
def reporting(config: EnergyConfig, folder: Path, start: int) -> Iterator[list[Callback]]:
    """Inside, the callbacks that `report_to` asks for are open. metrics.jsonl is written without them.

    Args:
        start: steps that the run has done.

    Raises:
        ConfigError: one cannot begin.
    """
    with contextlib.ExitStack() as stack:
        opened: list[Callback] = []
        for name in config.reporters:
            if name in _REPORTERS:
                reporter = _REPORTERS[name](folder, config, start)
                stack.callback(reporter.close)
                opened.append(reporter)
        yield opened
