"""Checking one op with a preset's sizes: its kernel is compiled, compared with the plain graph, and timed.

The plain graph consists of MLX's built-in operations. `python -m energy_flow_mlx.doctor.checks JOB.json RESULT.json`
checks one op in a child process, so that a kernel that crashes or corrupts the GPU's state does not affect the others.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..benchmark.measure import per_call
from ..config import EnergyConfig
from ..nn.precision import DTYPES
from ..ops.failures import VARIABLE, KernelError, forget_launches, how_to_go_on, kernel_errors
from ..strict_json import read_json, write_json
from ..train import memory
from ..train.loss import number
from .cases import CASES, Case, both, fitting, floating, leaves, training_step

WHOLE = "training step"  # covers sums that accumulate over flow steps, which no case of a single op has
NAMES = (*CASES, WHOLE)

# For max|difference| / max(1, max|reference|), to the float32 plain graph: several times the effect of summation order.
TOLERANCE = {"float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
# For a training step, in which a flow at the edge of a cell may round to the neighbouring cell.
STEP_TOLERANCE = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 5e-2}
# The share of integer and boolean outputs that may differ, because rounding moves numbers across a threshold.
MISMATCH_SHARE = 1e-3

SAMPLES = 4  # batch size of a check
# Lattice width and height for ops that treat flows as independent rows, whose number does not matter. A CPU, which computes the
# reference, takes long for the products of a whole step.
SIDES = {"gru_gates": 24, "neuron": 24, "heads": 24, "inherit": 24, "flow_step": 8}
TIMED_BYTES = 2**28  # of inputs; the batch is made smaller to reach it
REPEATS, SECONDS = 7, 0.1


@dataclasses.dataclass
class Finding:
    """The result of one case and direction. Times are medians per call; None: not measured."""

    case: str
    preset: str
    dtype: str
    way: str  # forward, or both: forward and backward
    size: str  # shape of the check's first input
    ok: bool
    message: str = ""
    difference: float | None = None
    plain_seconds: float | None = None
    kernel_seconds: float | None = None


def check(name: str, preset: str, dtype: str, *, kernels: bool) -> list[Finding]:
    """Check a case, first forward only, then forward and backward. Errors are reported as findings.

    Args:
        name: one of NAMES.
        preset, dtype: its sizes and the dtype of activations.
        kernels: compare the kernel with the plain graph; False: run only the plain graph.
    """
    if name == WHOLE:
        return [_whole_step(preset, dtype, kernels)]
    config = EnergyConfig.preset(preset)
    small = config
    op = name.split(",")[0]
    if op in SIDES:
        small = config.replace(lattice_width=min(config.lattice_width, SIDES[op]), lattice_height=min(config.lattice_height, SIDES[op]))
    mx.random.seed(0)
    case = CASES[name](small, min(config.batch_size, SAMPLES), DTYPES[dtype])
    size = "x".join(map(str, case.arrays[0].shape))
    findings = []
    for way in ("forward", "both") if case.floats else ("forward",):
        finding = Finding(name, preset, dtype, way, size, ok=False)
        with _noted(finding):
            if kernels:
                finding.difference = _difference(case, way, dtype)
            else:
                _require_finite(case, way)
            finding.ok = True
            if kernels or op != "flow_step":  # which would keep a CPU busy for minutes at the sizes of a preset
                timed = fitting(name, config, DTYPES[dtype], TIMED_BYTES)[1]
                finding.plain_seconds = _seconds(timed, way, False)
                finding.kernel_seconds = _seconds(timed, way, True) if kernels else None
        findings.append(finding)
        mx.clear_cache()
    return findings


class Wrong(ArithmeticError):
    """The results are wrong: a kernel's differ from the plain graph's, or are not finite."""


@contextmanager
def _noted(finding: Finding) -> Iterator[None]:
    """Record errors in the `with` block as the finding's message, kernel errors as those of kernels launched in it."""
    forget_launches()
    op = finding.case.split(",")[0]
    try:
        with kernel_errors():
            yield
    except KernelError as error:
        finding.ok, finding.message = False, str(error)
    except Exception as error:  # any error is a finding, so that the other kernels are still checked
        advice = "" if finding.case == WHOLE else "\n" + how_to_go_on([(op, finding.way)])
        finding.ok, finding.message = False, f"{type(error).__name__}: {error}{advice}"


def _run(case: Case, way: str, kernels: bool, cotangents: Sequence[mx.array]) -> list[mx.array]:
    if way == "forward":
        return leaves(case.function(kernels, *case.arrays))
    return both(case, kernels)(*case.arrays, *cotangents)


def _cotangents(case: Case, way: str, kernels: bool) -> list[mx.array]:
    if way == "forward":
        return []
    outputs = floating(leaves(case.function(kernels, *case.arrays)))
    mx.random.seed(1)
    return [mx.random.normal(output.shape).astype(output.dtype) for output in outputs]


def _difference(case: Case, way: str, dtype: str) -> float:
    """The largest relative difference between the kernel and the plain graph in float32 on the CPU, on the same inputs.

    Raises:
        Wrong: the difference exceeds the tolerance.
    """
    cotangents = _cotangents(case, way, True)
    actual = _run(case, way, True, cotangents)
    mx.eval(actual, cotangents)
    with mx.stream(mx.cpu):  # the GPU's matrix products and layer_norm are less accurate
        arrays = [array.astype(mx.float32) if floating([array]) else array for array in case.arrays]
        float_cotangents = [cotangent.astype(mx.float32) for cotangent in cotangents]
        reference = _run(dataclasses.replace(case, arrays=arrays), way, False, float_cotangents)
        largest = 0.0
        for place, (a, w) in enumerate(zip(actual, reference, strict=True)):
            if not floating([a]):
                mismatch = number(mx.mean(a != w))
                if mismatch > MISMATCH_SHARE:
                    raise Wrong(f"result {place} differs from the plain graph in {mismatch:.2%} of its elements")
                continue
            a, w = a.astype(mx.float32), w.astype(mx.float32)
            difference = number(mx.max(mx.abs(a - w)) / mx.maximum(1.0, mx.max(mx.abs(w)))) if a.size else 0.0
            if not difference <= TOLERANCE[dtype]:  # NaN is not
                raise Wrong(
                    f"result {place} differs from the plain graph by {difference:.2g} of its largest element; the tolerance is "
                    f"{TOLERANCE[dtype]:g}"
                )
            largest = max(largest, difference)
    return largest


def _require_finite(case: Case, way: str) -> None:
    """Evaluate the plain graph.

    Raises:
        Wrong: a result is not finite.
    """
    results = floating(_run(case, way, False, _cotangents(case, way, False)))
    if not all(mx.all(mx.isfinite(result)).item() for result in results):
        raise Wrong("the plain graph's results are not finite")


def _seconds(case: Case, way: str, kernels: bool) -> float:
    """Median seconds per call, with several calls submitted before waiting."""
    cotangents = _cotangents(case, way, kernels)
    results = _run(case, way, kernels, cotangents)
    mx.eval(case.arrays, cotangents, results)
    calls = max(1, min(20, TIMED_BYTES // max(1, sum(result.nbytes for result in results))))
    del results
    return per_call(lambda: _run(case, way, kernels, cotangents), calls, repeats=REPEATS, limit=SECONDS)


def _whole_step(preset: str, dtype: str, kernels: bool) -> Finding:
    """Compare loss and gradient norm of a training step (two samples, three flow steps) with and without kernels."""
    config = EnergyConfig.preset(preset).replace(batch_size=2, gradient_accumulation_steps=1, compute_dtype=dtype)
    config = config.replace(lattice_depth=min(config.lattice_depth, 6))
    finding = Finding(WHOLE, preset, dtype, "both", f"{2 * config.slots_per_sample} flows", ok=False)
    needed, available = memory.predicted(config).total, memory_bytes()
    if needed > 0.7 * available:
        finding.ok = True
        finding.message = f"left out: it needs about {needed / memory.GB:.1f} GB of {available / memory.GB:.1f} GB"
        return finding
    with _noted(finding):
        reference = _step_numbers(config, "off")
        actual = _step_numbers(config, "on") if kernels else reference
        for what, a, w in zip(("loss", "norm of all gradients"), actual, reference, strict=True):
            difference = abs(a - w) / max(abs(w), 1e-6)
            if not difference <= STEP_TOLERANCE[dtype]:  # NaN is not
                raise Wrong(f"the {what} is {a:.6g} with kernels and {w:.6g} without")
            finding.difference = max(difference, finding.difference or 0.0) if kernels else None
        finding.ok = True
    return finding


def _step_numbers(config: EnergyConfig, setting: str) -> tuple[float, float]:
    """The loss and the norm of all gradients, with all kernels on or off."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = setting
    try:
        loss, norms, _ = training_step(config, optimise=False)
        total = mx.linalg.norm(norms)
        mx.eval(loss, total)
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
    return number(loss), number(total)


def memory_bytes() -> int:
    """The memory of the device or, if MLX does not report it, of the machine."""
    info = mx.device_info()
    for name in ("total_memory", "memory_size"):
        if name in info:
            return int(info[name])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Check all combinations of the job's `names`, `presets` and `dtypes`; returns the findings as dictionaries."""
    findings = []
    for name in job["names"]:
        for preset in job["presets"]:
            for dtype in job["dtypes"]:
                findings += check(name, preset, dtype, kernels=job["kernels"])
    return {"findings": [dataclasses.asdict(finding) for finding in findings]}


if __name__ == "__main__":
    job_file, result_file = map(Path, sys.argv[1:])
    write_json(result_file, run_job(read_json(job_file)))
