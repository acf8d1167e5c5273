"""Break a correct kernel on purpose, one place at a time, and see whether its test notices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .intercept import Edit, metal_on_cpu
from .run import KernelFault


@dataclass(frozen=True)
class Mutant:
    """A source with `old` replaced by `new` in one place."""

    old: str
    new: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """What a check said to a mutant: "fault" (the harness reported it), "result" (an assertion failed) or "survived"."""

    edit: Edit
    how: str
    message: str = ""

    @property
    def caught(self) -> bool:
        return self.how != "survived"


def mutants(source: str, edits: Iterable[Edit]) -> list[Mutant]:
    """One mutant an edit (old, new). `old` must occur exactly once, so that a mutant says what it breaks."""
    made = []
    for old, new in edits:
        if (count := source.count(old)) != 1:
            raise ValueError(f"{old!r} occurs {count} times: a mutant changes exactly one place")
        if old == new:
            raise ValueError(f"{old!r} is replaced by itself")
        made.append(Mutant(old, new, source.replace(old, new)))
    return made


def mutation_outcomes(check: Callable[[], Any], edits: Sequence[Edit], *, caches: Sequence[Any] = ()) -> list[Outcome]:
    """Run `check` on the kernels as they are, which must pass, then once for each edit of their generated sources.

    Args:
        check: calls the public op and asserts what is true of its results; it needs no `metal_on_cpu` of its own.
        edits: (old, new) texts; each must occur exactly once in a kernel that `check` runs.
        caches: cached kernel factories, as in `metal_on_cpu`.

    A mutant that does not compile proves nothing: its KernelCompileError goes through to the caller.
    """
    with metal_on_cpu(caches=caches):
        check()
    outcomes = []
    for edit in edits:
        try:
            with metal_on_cpu(edit=edit, caches=caches):
                check()
        except KernelFault as fault:
            outcomes.append(Outcome(edit, "fault", str(fault)))
        except AssertionError as failure:
            outcomes.append(Outcome(edit, "result", str(failure)))
        else:
            outcomes.append(Outcome(edit, "survived"))
    return outcomes


def survivors(check: Callable[[], Any], edits: Sequence[Edit], *, caches: Sequence[Any] = ()) -> list[Edit]:
    """The edits that `check` did not notice: `assert not survivors(check, edits)`."""
    return [o.edit for o in mutation_outcomes(check, edits, caches=caches) if not o.caught]
