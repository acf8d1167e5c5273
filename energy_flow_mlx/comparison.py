"""Runs beside each other: what they differ in and what they reached, over seeds as a mean and its spread."""

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runs import Run
from .scores import Evaluation
from .showing import html_picture, html_table, png

METRICS = ("cosine", "top1", "top10", "arrived", "collisions", "sideways")
NAME = 32  # characters of a group's name on one line of the picture
_LEFT_OUT = ("seed", "keep_checkpoints", "report_to")  # of what tells groups of runs apart


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed and in what is written of them. settings: the fields in which the groups differ, with their
    values here. unlike: those of them whose value is not that of most groups."""

    runs: tuple[Run, ...]
    settings: Mapping[str, Any]
    unlike: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What is unlike most groups; where nothing is, "as most", or the folder of the only group."""
        told = ", ".join(f"{name}={value}" for name, value in self.unlike.items()) or ("as most" if self.settings else "")
        first = self.runs[0]
        return told or (first.folder.name.removesuffix(f"-seed{first.config.seed}") if len(self.runs) > 1 else first.folder.name)

    @property
    def seeds(self) -> list[int]:
        """In order of the runs."""
        return [run.config.seed for run in self.runs]

    def values(self, metric: str) -> NDArray[np.float64]:
        """One of METRICS of each run, on the test split."""
        return np.array([getattr(run.evaluation, metric) for run in self.runs])


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, the best mean cosine last. It shows itself as a table, and in a notebook with a picture.

    baselines: mean cosines over all runs. The spread behind ± is the standard deviation over the seeds (with N - 1), where there are two or more.
    """

    groups: tuple[Group, ...]
    baselines: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: of each group its runs, seeds, settings and metrics, and the baselines' cosines."""
        groups = [
            {
                "name": group.name,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": group.seeds,
                "settings": dict(group.settings),
                "test": {metric: group.values(metric).tolist() for metric in METRICS},
            }
            for group in self.groups
        ]
        return {"groups": groups, "baselines": dict(self.baselines)}

    def _rows(self) -> list[list[str]]:
        rows = [[name, "", f"{cosine:.4f}"] for name, cosine in self.baselines.items()]
        rows += [
            [group.name, " ".join(map(str, group.seeds)), *(_told(group.values(metric), metric) for metric in METRICS)]
            for group in self.groups
        ]
        return sorted(rows, key=lambda row: float(row[2].split()[0]))

    def __str__(self) -> str:
        rows = [["", "seeds", *METRICS], *self._rows()]
        columns = range(len(rows[0]))
        widths = [max(len(row[column]) for row in rows if column < len(row)) for column in columns]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows)

    def plot(self, metric: str = "cosine", ax: Any = None) -> Any:
        """The groups' means with their ranges, for the cosine beside the baselines; returns the Axes."""
        from .plot import scores

        rows: dict[str, Any] = dict(self.baselines) if metric == "cosine" else {}
        ours = {"\n".join(textwrap.wrap(group.name, NAME)): group.values(metric) for group in self.groups}
        return scores({**rows, **ours}, metric=metric, ours=list(ours), ax=ax)

    def _repr_png_(self) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 0.6 + 0.24 * (len(self.groups) + len(self.baselines))), layout="constrained")
        self.plot(ax=figure.add_subplot())
        return png(figure)

    def _repr_html_(self) -> str:
        return html_table(self._rows(), ["", "seeds", *METRICS]) + html_picture(self._repr_png_(), "cosine on the test pairs")


def compare(*runs: Run | str | os.PathLike[str]) -> Comparison:
    """Compare finished runs, given as objects or folders.

    Raises:
        ValueError: there is none; or they were judged on other data.
        FileNotFoundError: one has no results yet.
    """
    if not runs:
        raise ValueError("runs: none came, accepted are one or more")
    found = [run if isinstance(run, Run) else Run.load(run) for run in runs]
    results = [run.results for run in found]
    names = {result.data.split(" (")[0] for result in results}
    if len(names) > 1:
        raise ValueError(f"runs: they were judged on {len(names)} data sets, {', '.join(sorted(names))}; accepted are runs of one")
    groups = tuple(_grouped(found))
    cosines: dict[str, list[float]] = {}  # by seed the data, and so the baselines, are others
    for result in results:
        for name, scores in result.splits["test"].items():
            if not isinstance(scores, Evaluation):
                cosines.setdefault(name.split(" (")[0], []).append(scores.cosine)
    baselines = {name: float(np.mean(values)) for name, values in cosines.items()}
    return Comparison(tuple(sorted(groups, key=lambda group: float(group.values("cosine").mean()))), baselines)


def _grouped(runs: Sequence[Run]) -> list[Group]:
    settings = [{name: value for name, value in run.config.to_dict().items() if name not in _LEFT_OUT} for run in runs]
    differing = [name for name in settings[0] if any(each[name] != settings[0][name] for each in settings)]
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, each in enumerate(settings):
        groups.setdefault(tuple(repr(each[name]) for name in differing), []).append(number)
    # Of two groups each is named by its own value; of more the value that most have goes without saying.
    most = [Counter(column).most_common(1)[0][0] if len(groups) > 2 else None for column in zip(*groups, strict=True)]
    return [
        Group(
            tuple(runs[number] for number in numbers),
            {name: settings[numbers[0]][name] for name in differing},
            {name: settings[numbers[0]][name] for name, value, usual in zip(differing, values, most, strict=True) if value != usual},
        )
        for values, numbers in groups.items()
    ]


def _told(values: NDArray[np.float64], metric: str) -> str:
    number = ".1%" if metric in ("top1", "top10", "arrived") else ".4f" if metric == "cosine" else ".3f"
    spread = f" ± {values.std(ddof=1):{number}}" if len(values) > 1 else ""
    return f"{values.mean():{number}}{spread}"
