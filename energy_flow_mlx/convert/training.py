"""The training record of a checkpoint: what torch's trainer saves beside configuration, weights and moments."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checks import MOST
from ..strict_json import with_numbers

_MOST_RATE = 1e6
_STEPS = f"a whole number from 0 to {MOST}"


def check_training(path: Path, values: Any) -> dict[str, Any]:
    """The training record in or beside `path`, with the entries that a conversion uses checked; None is an empty one.

    Raises:
        ValueError: an entry is of another type or out of range; names each, what came and what is accepted.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: the training record is a {type(values).__name__}, accepted is an object")
    faults = [f"{name} is {str(got)[:80]!r}, accepted is {accepted}" for name, got, accepted in _faults(values)]
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults[:8])}")
    return values


def for_torch(values: Any) -> Any:
    """A record as torch had it: numbers that are not finite, and whole numbers as keys, which JSON has as text."""

    def keyed(value: Any) -> Any:
        if isinstance(value, list):
            return [keyed(item) for item in value]
        if not isinstance(value, dict):
            return value
        whole = all(key.isascii() and key.isdecimal() for key in value)
        return {int(key) if whole else key: keyed(item) for key, item in value.items()}

    return keyed(with_numbers(values))


def _faults(values: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Name, value and what is accepted of the entries that are not."""
    if "global_step" in values and not _whole(values["global_step"]):
        yield "global_step", values["global_step"], _STEPS
    scheduler = values.get("scheduler_state_dict")
    if not isinstance(scheduler, dict | None):
        yield "scheduler_state_dict", scheduler, "a dictionary"
    elif scheduler:
        best, waited = scheduler.get("best"), scheduler.get("num_bad_epochs")
        if best is not None and not _number(with_numbers(best)):
            yield "scheduler_state_dict.best", best, "a number"
        if waited is not None and not _whole(waited):
            yield "scheduler_state_dict.num_bad_epochs", waited, _STEPS
    groups = values.get("param_groups")
    if groups is not None and not (isinstance(groups, list) and all(isinstance(group, dict) for group in groups)):
        yield "param_groups", groups, "a list of dictionaries"
    else:
        for number, group in enumerate(groups or []):
            yield from _group_faults(f"param_groups[{number}]", group)
    ties, order = values.get("tied"), values.get("key_order")
    if ties is not None and not (isinstance(ties, dict) and all(isinstance(key, str) for key in ties.values())):
        yield "tied", ties, "a dictionary of keys"
    if order is not None and not (isinstance(order, list) and all(isinstance(key, str) for key in order)):
        yield "key_order", order, "a list of keys"


def _group_faults(name: str, group: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    rate, betas, params = group.get("lr", 0), group.get("betas", []), group.get("params")
    if not _number(rate) or not 0 <= rate <= _MOST_RATE:
        yield f"{name}.lr", rate, f"a number from 0 to {_MOST_RATE:.0f}"
    if not isinstance(betas, list) or not all(map(_number, betas)):
        yield f"{name}.betas", betas, "two numbers"
    if not isinstance(params, list) or not all(map(_whole, params)):
        yield f"{name}.params", params, "a list of whole numbers"


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _whole(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value == int(value) and 0 <= value <= MOST
