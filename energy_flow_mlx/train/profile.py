"""`train --profile`: where the time of a few training steps goes.

On a Mac with Metal: `step.gputrace`, a capture for Xcode. Elsewhere: `trace.json`, one span a stage, in the format of Chrome's
trace viewer (chrome://tracing or ui.perfetto.dev). A traced step runs uncompiled and waits after every stage: spans tell the
stages apart, but add up to more than an unwatched step takes.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files import write_aside
from ..strict_json import to_json
from . import step as training_step
from .stages import STAGES, wrapped
from .step import TrainStep

GRADIENTS = "loss and gradients"  # after its last forward stage the rest of this span is the backward pass
SKIPPED, TRACED = 2, 3  # steps of a run that warm up, and that are then recorded

_SPANS = (*STAGES, (training_step, "clip_factors", "clip"))


class ProfileError(OSError):
    """Profiling cannot start; the text says what to do."""


class Profile:
    """Records steps SKIPPED to SKIPPED + TRACED - 1 of a run into `folder`.

    Args:
        folder: made if it is not there; None records nothing.

    Raises:
        ProfileError: Metal captures are not allowed in this process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._seen = 0
        self._spans: list[dict[str, Any]] = []
        self._metal = mx.metal.is_available()
        self.written: Path | None = None
        if folder is None:
            return
        if self._metal and os.environ.get("MTL_CAPTURE_ENABLED") != "1":
            raise ProfileError("--profile on a Mac needs MTL_CAPTURE_ENABLED=1 in the environment")
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def step(self, number: int, train_step: TrainStep) -> Iterator[None]:
        """Around optimiser step `number` with its reading of data; the file is written after the last recorded one."""
        position, self._seen = self._seen, self._seen + 1
        if self._folder is None or not SKIPPED <= position < SKIPPED + TRACED:
            yield
            return
        if self._metal:
            with self._capture(self._folder, position):
                yield
        else:
            with self.recorded(train_step), self.span(f"step {number}"):
                yield
            if position == SKIPPED + TRACED - 1:
                self._write(self._folder)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record what happens inside as one span."""
        start = 1e6 * time.perf_counter()
        yield
        self._add(name, start, 1e6 * time.perf_counter())

    @contextmanager
    def recorded(self, train_step: TrainStep) -> Iterator[None]:
        """While inside, every stage of `train_step` waits for its arrays and leaves a span."""
        with wrapped(_SPANS, self._waiting), ExitStack() as stack:
            # A step that was compiled already would still run as one piece.
            eager = {"_micro_batch": train_step._sum_micro_batch, "_update": train_step._update_weights}
            for attribute, function in eager.items():
                stack.callback(setattr, train_step, attribute, getattr(train_step, attribute))
                setattr(train_step, attribute, function)
            # Set on the instances, where the attribute hides that of the class until it is deleted.
            for where, attribute, name in (
                (train_step, "_sums", GRADIENTS),
                (train_step.optimiser, "apply_gradients", "optimiser"),
            ):
                setattr(where, attribute, self._waiting(getattr(where, attribute), name))
                stack.callback(delattr, where, attribute)
            yield

    def _waiting(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                result = function(*arguments, **options)
                mx.eval(result)
                if name == GRADIENTS:
                    self._add("backward", self._spans[-1]["ts"] + self._spans[-1]["dur"], 1e6 * time.perf_counter())
            return result

        return call

    def _add(self, name: str, start: float, end: float) -> None:
        """A span between two times in microseconds."""
        self._spans.append({"name": name, "ph": "X", "ts": start, "dur": end - start, "pid": 0, "tid": 0})

    @contextmanager
    def _capture(self, folder: Path, position: int) -> Iterator[None]:
        path = folder / "step.gputrace"
        if position > SKIPPED:  # one step is as much as Xcode opens with ease
            yield
            return
        mx.metal.start_capture(str(path))
        try:
            yield
        finally:
            mx.synchronize()
            mx.metal.stop_capture()
        self.written = path

    def _write(self, folder: Path) -> None:
        path = folder / "trace.json"
        text = to_json({"traceEvents": sorted(self._spans, key=lambda span: float(span["ts"]))}, indent=None) + "\n"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
        self.written = path
