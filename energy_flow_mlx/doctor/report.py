"""Reports of the findings, as text and as JSON, which can be attached to an issue."""

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files import write_aside
from ..ops.failures import VARIABLE
from ..ops.kernel import backend, on_gpu
from ..strict_json import write_json
from .checks import Finding, memory_bytes

COLUMNS = ("case", "preset", "dtype", "way", "size", "result", "difference", "plain ms", "kernel ms", "kernel is")
EVEN = 0.05  # relative difference up to which two times count as equal


def machine() -> dict[str, Any]:
    """Platform, versions and device."""
    return {
        "platform": platform.platform(),
        "macos": platform.mac_ver()[0],
        "python": platform.python_version(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]
        "kernels": backend() if on_gpu() else None,
        "device": {name: value for name, value in mx.device_info().items()},
        "memory_bytes": memory_bytes(),
        VARIABLE: os.environ.get(VARIABLE),
    }


def heading(machine: Mapping[str, Any]) -> str:
    """The machine in three lines."""
    device = machine["device"].get("device_name", "?")
    kernels = f"custom kernels in {machine['kernels'].capitalize()}" if machine["kernels"] else (
        "no GPU that MLX supports: only MLX's built-in operations are run, no custom kernel"
    )  # fmt: skip
    return "\n".join(
        [
            f"{machine['platform']}, Python {machine['python']}, MLX {machine['mlx']}",
            f"{device}, {machine['memory_bytes'] / 1e9:.1f} GB of memory; {kernels}",
            f"{VARIABLE} is {machine[VARIABLE] or 'not set'}; the doctor ignores it and tests every kernel",
        ]
    )


def table(findings: Sequence[Finding]) -> str:
    """A table with one line per finding."""
    rows = [COLUMNS, *map(_cells, findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def closing(findings: Sequence[Finding]) -> str:
    """The messages of failed and skipped checks, and a summary."""
    texts = [
        f"{finding.case}, {finding.preset}, {finding.dtype}, {finding.way}{'' if finding.ok else ' failed'}:\n{finding.message}"
        for finding in findings
        if finding.message
    ]
    failed = sum(not finding.ok for finding in findings)
    texts.append(f"{failed} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed")
    slower = sorted({finding.case for finding in findings if (gain := _gain(finding)) is not None and gain < 1 - EVEN})
    if slower:
        texts.append(f"slower than MLX's built-in operations in some case: {'; '.join(slower)}")
    return "\n\n".join(texts)


def write(path: Path, machine: Mapping[str, Any], findings: Sequence[Finding]) -> Path:
    """Write the report as JSON to `path` and as text beside it; returns the path of the text."""
    values = {"machine": dict(machine), "findings": [dataclasses.asdict(finding) for finding in findings]}
    text = "\n\n".join([heading(machine), table(findings), closing(findings)]) + "\n"
    text_path = path.with_suffix(".txt")
    write_aside(path, lambda aside: write_json(aside, values))
    write_aside(text_path, lambda aside: aside.write_text(text, encoding="utf-8"))
    return text_path


def _cells(finding: Finding) -> tuple[str, ...]:
    result = ("left out" if finding.message else "ok") if finding.ok else "failed"
    difference = "" if finding.difference is None else f"{finding.difference:.1e}"
    times = [
        "" if seconds is None else f"{1e3 * seconds:.3f}" for seconds in (finding.plain_seconds, finding.kernel_seconds)
    ]
    head = (finding.case, finding.preset, finding.dtype, finding.way, finding.size)
    return (*head, result, difference, *times, _verdict(finding))


def _gain(finding: Finding) -> float | None:
    if finding.plain_seconds is None or not finding.kernel_seconds:
        return None
    return finding.plain_seconds / finding.kernel_seconds


def _verdict(finding: Finding) -> str:
    gain = _gain(finding)
    if gain is None:
        return ""
    return f"{gain:.1f}x faster" if gain > 1 + EVEN else f"{1 / gain:.1f}x slower" if gain < 1 - EVEN else "as fast"
