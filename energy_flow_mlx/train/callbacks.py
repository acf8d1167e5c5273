"""What may listen to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..scores import Evaluation
from .correction import Corrected

if TYPE_CHECKING:
    from ..runs import Run


class Callback:
    """Override what you want to hear of. An error in one ends the run; its last checkpoint stays."""

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        """After every `log_interval` steps: the line that metrics.jsonl gets."""

    def on_validation(self, step: int, result: Evaluation | Corrected) -> None:
        """After a validation."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """After step `step` was saved in `folder`."""

    def on_end(self, run: Run) -> None:
        """Once, when a run that was not broken off by an error ends."""


class Callbacks:
    """What a run tells several while it trains, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        for each in self._callbacks:
            each.on_step(step, values)

    def on_validation(self, step: int, result: Evaluation | Corrected) -> None:
        for each in self._callbacks:
            each.on_validation(step, result)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        for each in self._callbacks:
            each.on_checkpoint(step, folder)
