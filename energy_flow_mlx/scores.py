"""Scores of predictions on a split, and tables of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .showing import html_table

_HEADS = ("cosine", "top-1", "top-10", "arrived", "collisions a cell", "cells sideways")


@dataclass(frozen=True)
class Scores:
    """Of predictions [N, E] for the N pairs of a split: `cosine`, the mean cosine with the target; `top1` and `top10`, the share
    whose own target is the nearest, or among the ten nearest, of all targets (of the first 10,000). Equal targets share a rank."""

    cosine: float
    top1: float
    top10: float

    def cells(self) -> list[str]:
        """The numbers as they stand in a table."""
        return [f"{self.cosine:.4f}", f"{self.top1:.1%}", f"{self.top10:.1%}"]

    def _repr_html_(self) -> str:
        return html_table(zip(_HEADS, self.cells(), strict=False))


@dataclass(frozen=True)
class Evaluation(Scores):
    """Also of a model in evaluation mode: means of the loss and of its parts; `arrived`, the share of flows that reached an output
    plane by moving; `collisions`, collected flows beyond the first in a cell, a cell; `sideways`, how far the first flows moved in
    x and y, in cells. Where a text decoder learns, `decoding` is its cross-entropy and `exact` its `exact_share`; else they are 0."""

    loss: float
    surface_mse: float
    arrival: float
    arrived: float
    collisions: float
    sideways: float
    decoding: float = 0.0
    exact: float = 0.0

    def cells(self) -> list[str]:
        return [*super().cells(), f"{self.arrived:.1%}", f"{self.collisions:.3f}", f"{self.sideways:.2f}"]


Rows = Mapping[str, Scores]


def ordered(rows: Rows) -> list[tuple[str, Scores]]:
    """Names and scores, the best cosine last."""
    return sorted(rows.items(), key=lambda row: row[1].cosine)


def table(rows: Rows, title: str) -> str:
    """The rows as plain text, the best cosine last. What flows did stands in the rows of models that have flows."""
    width = max(map(len, rows))
    lines = [title, " " * width + "".join(f"  {head:>7}" for head in _HEADS)]
    for name, scores in ordered(rows):
        columns = zip(scores.cells(), _HEADS, strict=False)
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>{max(len(head), 7)}}" for cell, head in columns))
    return "\n".join(lines)


def html_rows(rows: Rows, heads: Sequence[str] = _HEADS) -> str:
    """The rows as an HTML table, the best cosine last."""
    return html_table(([name, *scores.cells()] for name, scores in ordered(rows)), ["", *heads])
