"""Trace: the flows of a model, recorded at every step for looking at."""

import dataclasses
import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..config import ModelConfig
from ..files import write_aside
from ..flows import Flows
from ..showing import html_picture, html_table, png
from ..strict_json import parse_json, to_json
from ..tensors import read_metadata, read_tensors
from .lattice import FlowState
from .processor import FlowProcessor

_FORMAT = "energy-flow trace 1"
_FRAMES = ("pandas", "polars")
_RECORDED = ("position", "energy", "active", "arrived", "age")
_BYTES = 22  # of one flow at one step, in the five recorded arrays
GB = 1e9


@dataclasses.dataclass(eq=False)
class Trace(Flows):
    """The arrays that `energy_flow_mlx.flows.Flows` describes, position [T, B, C, 3], energy [T, B, C] and so on, with the B texts that
    they are of, if any. It is saved and loaded, becomes a data frame, and shows itself in a notebook."""

    texts: tuple[str, ...] = ()

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def to_frame(self, library: str | None = None) -> Any:
        """A data frame with a row for each flow at each step at which it is there.

        Args:
            library: "pandas" or "polars"; None: the first of the two that is installed.

        Raises:
            ValueError: another name.
            ImportError: it is not installed.
        """
        at = step, sample, flow = np.nonzero(self.exists)
        columns: dict[str, Any] = {"step": step, "sample": sample, "flow": flow}
        columns |= dict(zip("xyz", self.position[at].T, strict=True))
        columns |= {name: getattr(self, name)[at] for name in _RECORDED[1:]}
        columns["parent"] = self.parent[sample, flow]
        return _frame_class(library)(columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, aside and renamed."""
        tensors = {
            name: np.ascontiguousarray(array.astype(np.uint8) if array.dtype == bool else array)
            for name, array in self.to_numpy().items()
        }
        sizes = {name: str(getattr(self, name)) for name in ("width", "height", "depth")}
        metadata = {"format": _FORMAT, "texts": to_json(list(self.texts), indent=None), **sizes}
        write_aside(path, lambda aside: save_file(tensors, aside, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """The trace in a file that `save` wrote.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it holds no trace; names it.
        """
        path = Path(path)
        metadata = read_metadata(path)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: its format is {metadata.get('format')!r}, accepted is {_FORMAT!r}, which Trace.save writes")
        arrays: dict[str, Any] = dict(read_tensors(path))
        for name in ("active", "arrived"):
            if name in arrays:
                arrays[name] = arrays[name].astype(bool)
        try:
            sizes: dict[str, Any] = {name: int(metadata[name]) for name in ("width", "height", "depth")}
            trace = cls(**arrays, **sizes, texts=tuple(parse_json(metadata["texts"])))
            rows, batch, slots, _ = trace.position.shape
            shapes = _shapes(rows, batch, slots, trace.width * trace.height, trace.cell.shape[-1])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path}: it is not what Trace.save writes: {error!r}") from error
        wrong = [f"{name} {array.shape}" for name, array in trace.to_numpy().items() if array.shape != shapes[name]]
        if wrong:
            raise ValueError(f"{path}: arrays do not fit each other: {', '.join(wrong)}")
        return trace

    def __repr__(self) -> str:
        return f"Trace({', '.join(f'{name}: {value}' for name, value in self._summary().items())})"

    def _summary(self) -> dict[str, str]:
        last, there = len(self.position) - 1, self.exists[-1]
        children = int(np.sum(self.parent >= 0))
        return {
            "samples": str(self.samples),
            "lattice": f"{self.width}x{self.height}x{self.depth}",
            "steps": str(last),
            "flows": f"{int(there.sum())}" + (f", {children} of them children" if children else ""),
            "arrived": f"{self.arrived[last][there].mean():.1%}",
        }

    def _repr_png_(self) -> bytes:
        """The first sample as a picture, for notebooks."""
        from ..plot import overview

        return png(overview(self))

    def _repr_html_(self) -> str:
        text = f"<div><em>{html.escape(self.texts[0])}</em></div>" if self.texts else ""
        return html_table(self._summary().items()) + text + html_picture(self._repr_png_(), "flows of the first sample")


def record(
    processor: FlowProcessor,
    surface: mx.array,
    *,
    texts: Sequence[str] = (),
    steps: int | None = None,
    training_step: int | mx.array | None = None,
    limit_gb: float = 1.0,
) -> Trace:
    """Run the flows of surfaces [B, S] as evaluation runs them, and keep where they were.

    Args:
        texts: of which the surfaces are, if they are known.
        limit_gb: the most that the trace may take.

    Raises:
        ValueError: it would take more; names its size. Or as FlowProcessor.
    """
    config = processor.config
    kept: list[dict[str, NDArray[Any]]] = []
    born: list[NDArray[np.int32]] = []

    def witness(done: int, flows: FlowState) -> None:
        if done == 0:
            _check_size(flows, config, steps, limit_gb)
            kept.clear()
            born.clear()
        mx.eval(flows)  # step by step: the hidden states of a step are freed before those of the next are made
        batch = flows.children.shape[0]
        kept.append({name: np.array(getattr(flows, name)).reshape(batch, -1, *_TRAILING.get(name, ())) for name in _RECORDED})
        born.append(config.surface_dim + np.array(flows.children))

    result, end, cell, weight = processor.watch(surface, witness, steps=steps, training_step=training_step)
    batch, slots = kept[0]["age"].shape
    counts = np.stack(born)  # [T, B], flows that are there
    used = int(counts.max())
    first = np.sum(np.arange(used) >= counts[..., None], axis=0)  # [B, C], steps before it was there
    return Trace(
        **{name: np.stack([step[name][:, :used] for step in kept]) for name in _RECORDED},
        born=np.where(first < len(kept), first, -1).astype(np.int32),
        parent=np.array(end.parent).reshape(batch, slots)[:, :used],
        cell=np.array(cell).reshape(batch, slots, -1)[:, :used],
        weight=np.array(weight).reshape(batch, slots, -1)[:, :used],
        start=kept[0]["energy"][:, : config.surface_dim],
        surface=np.array(result.surface),
        width=config.lattice_width,
        height=config.lattice_height,
        depth=config.lattice_depth,
        texts=tuple(texts),
    )


_TRAILING = {"position": (3,)}  # dimensions behind [B, C]


def _shapes(rows: int, batch: int, slots: int, cells: int, ways: int) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a trace's arrays: T, B, C, S and K."""
    recorded = {name: (rows, batch, slots, *_TRAILING.get(name, ())) for name in _RECORDED}
    collected = {name: (batch, slots, ways) for name in ("cell", "weight")}
    return {**recorded, **collected, **dict.fromkeys(("born", "parent"), (batch, slots)), **dict.fromkeys(("start", "surface"), (batch, cells))}


def _check_size(flows: FlowState, config: ModelConfig, steps: int | None, limit_gb: float) -> None:
    rows = 1 + (config.flow_steps if steps is None else steps)
    size = rows * flows.age.size * _BYTES / GB
    if not (math.isfinite(limit_gb) and size <= limit_gb):
        raise ValueError(
            f"limit_gb={limit_gb:g}: the trace of {flows.age.size} flows over {rows - 1} steps takes {size:.3g} GB; trace fewer samples, or "
            "raise limit_gb"
        )


def _frame_class(library: str | None) -> Any:
    if library not in (None, *_FRAMES):
        raise ValueError(f"library={library!r} came, accepted are {', '.join(_FRAMES)}")
    if library != "polars":
        try:
            import pandas

            return pandas.DataFrame
        except ImportError:
            if library == "pandas":
                raise ImportError("to_frame: pandas is not installed (pip install pandas)") from None
    try:
        import polars

        return polars.DataFrame
    except ImportError:
        missing = "polars is not installed" if library else "neither pandas nor polars is installed"
        raise ImportError(f"to_frame: {missing} (pip install {library or 'pandas'})") from None
