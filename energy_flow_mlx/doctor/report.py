"""What the doctor found, as a table for people and as JSON, both fit to be attached to an issue."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files import write_aside
from ..ops.failures import VARIABLE
from ..ops.kernel import backend, on_gpu
from .checks import Finding, memory_bytes

COLUMNS = ("case", "preset", "dtype", "way", "size", "result", "difference", "plain ms", "kernel ms", "kernel is")
EVEN = 0.05  # a share that the times of two equals may differ


def machine() -> dict[str, Any]:
    """Platform, MLX and device."""
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


def heading(here: Mapping[str, Any]) -> str:
    """The machine in three lines."""
    device = here["device"].get("device_name", "?")
    kernels = f"custom kernels in {here['kernels'].capitalize()}" if here["kernels"] else (
        "no GPU that MLX works on: MLX's own graph alone is run here, and no custom kernel"
    )  # fmt: skip
    return "\n".join(
        [
            f"{here['platform']}, Python {here['python']}, MLX {here['mlx']}",
            f"{device}, {here['memory_bytes'] / 1e9:.1f} GB of memory; {kernels}",
            f"{VARIABLE} is {here[VARIABLE] or 'not set'}; the doctor tries every kernel, whatever it says",
        ]
    )


def table(findings: Sequence[Finding]) -> str:
    """One line a finding."""
    rows = [COLUMNS, *map(_cells, findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def closing(findings: Sequence[Finding]) -> str:
    """Each failure with its message, what was left out, and the sum of it."""
    texts = [
        f"{finding.case}, {finding.preset}, {finding.dtype}, {finding.way}{'' if finding.ok else ' failed'}:\n{finding.message}"
        for finding in findings
        if finding.message
    ]
    failed = sum(not finding.ok for finding in findings)
    texts.append(f"{failed} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed")
    slower = sorted({finding.case for finding in findings if (gain := _gain(finding)) is not None and gain < 1 - EVEN})
    if slower:
        texts.append(f"slower than MLX's own graph somewhere: {'; '.join(slower)}")
    return "\n\n".join(texts)


def write(path: Path, here: Mapping[str, Any], findings: Sequence[Finding]) -> Path:
    """Write `path` (JSON) and, beside it, the same as text; returns the path of the text."""
    found = {"machine": dict(here), "findings": [dataclasses.asdict(finding) for finding in findings]}
    whole = "\n\n".join([heading(here), table(findings), closing(findings)]) + "\n"
    text = path.with_suffix(".txt")
    write_aside(path, lambda aside: aside.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8"))
    write_aside(text, lambda aside: aside.write_text(whole, encoding="utf-8"))
    return text


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
