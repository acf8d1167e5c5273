"""One op of one preset on this machine: does its kernel compile, does it give what the plain graph gives, and is it faster?

`python -m energy_flow_mlx.doctor.checks JOB.json RESULT.json` does those of one op in a process of its own: what one kernel does to
the GPU, or to the process, then ends with it.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..benchmarks.measure import per_call
from ..config import EnergyConfig
from ..nn.precision import DTYPES
from ..ops.failures import VARIABLE, KernelError, forget_launches, how_to_go_on, kernel_errors
from ..training import memory
from ..training.losses import number
from .cases import CASES, Case, both, fitting, floating, leaves, training_step

WHOLE = "training step"  # a case of its own: sums that run on from step to step are in no single op's case
NAMES = (*CASES, WHOLE)

# Differences from the plain graph in float32, of the largest element or of 1: several times what sums in another order come to.
TOLERANCE = {"float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
STEP_TOLERANCE = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 5e-2}  # a flow on the edge of a cell may take the other one
# Outputs that are no floats: a share that may differ, of numbers on the edge between two.
FEW_OTHERS = 1e-3

FEW = 4  # samples of a check
SIDE = 24  # of the lattice, for ops that know flows as rows alone: their kernels do not depend on how many there are
ROWS_ALONE = ("gru_gates", "neuron", "heads", "inherit")
TIMED_BYTES = 2**28  # of inputs, where a smaller batch can bring them down to it
REPEATS, SECONDS = 7, 0.1


@dataclasses.dataclass
class Finding:
    """What came of one case and direction. Times are medians of a call; None: not measured."""

    case: str
    preset: str
    dtype: str
    way: str  # forward, or both: forward and backward
    size: str  # of the first input in the check
    ok: bool
    message: str = ""
    difference: float | None = None
    plain_seconds: float | None = None
    kernel_seconds: float | None = None


def check(name: str, preset: str, dtype: str, *, kernels: bool) -> list[Finding]:
    """Try a case, forward, and then both ways. An error is a finding.

    Args:
        name: one of NAMES.
        kernels: the kernel beside the plain graph; False: the plain graph alone.
    """
    if name == WHOLE:
        return [_whole_step(preset, dtype, kernels)]
    config = EnergyConfig.preset(preset)
    small = config
    if name in ROWS_ALONE:
        small = config.replace(lattice_width=min(config.lattice_width, SIDE), lattice_height=min(config.lattice_height, SIDE))
    mx.random.seed(0)
    case = CASES[name](small, min(config.batch_size, FEW), DTYPES[dtype])
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
            timed = fitting(name, config, DTYPES[dtype], TIMED_BYTES)[1]
            finding.plain_seconds = _seconds(timed, way, False)
            finding.kernel_seconds = _seconds(timed, way, True) if kernels else None
        findings.append(finding)
        mx.clear_cache()
    return findings


class Wrong(ArithmeticError):
    """A kernel ran and gave something else than the plain graph."""


@contextmanager
def _noted(finding: Finding) -> Iterator[None]:
    """Errors inside become the finding's message; a kernel's error can only be about kernels launched inside."""
    forget_launches()
    op = finding.case.split(",")[0]
    try:
        with kernel_errors():
            yield
    except KernelError as error:
        finding.ok, finding.message = False, str(error)
    except Exception as error:  # whatever it is, the other kernels are tried
        way_on = "" if finding.case == WHOLE else "\n" + how_to_go_on([(op, finding.way)])
        finding.ok, finding.message = False, f"{type(error).__name__}: {error}{way_on}"


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
    """The largest difference between the kernel and the plain graph in float32 on the CPU, on the same (rounded) numbers.

    Raises:
        Wrong: it is over the tolerance.
    """
    cotangents = _cotangents(case, way, True)
    actual = _run(case, way, True, cotangents)
    mx.eval(actual, cotangents)
    with mx.stream(mx.cpu):  # on a GPU too, whose own products and layer_norm are less exact
        exact = [array.astype(mx.float32) if floating([array]) else array for array in case.arrays]
        own = [cotangent.astype(mx.float32) for cotangent in cotangents]
        reference = _run(dataclasses.replace(case, arrays=exact), way, False, own)
        largest = 0.0
        for place, (a, w) in enumerate(zip(actual, reference, strict=True)):
            if not floating([a]):
                others = number(mx.mean(a != w))
                if others > FEW_OTHERS:
                    raise Wrong(f"result {place} differs from the plain graph in {others:.2%} of its elements")
                continue
            a, w = a.astype(mx.float32), w.astype(mx.float32)
            difference = number(mx.max(mx.abs(a - w)) / mx.maximum(1.0, mx.max(mx.abs(w)))) if a.size else 0.0
            if not difference <= TOLERANCE[dtype]:  # NaN is not
                raise Wrong(
                    f"result {place} differs from the plain graph by {difference:.2g} of its largest element; up to "
                    f"{TOLERANCE[dtype]:g} is taken for rounding"
                )
            largest = max(largest, difference)
    return largest


def _require_finite(case: Case, way: str) -> None:
    """Evaluate the plain graph.

    Raises:
        Wrong: a number is not finite.
    """
    results = floating(_run(case, way, False, _cotangents(case, way, False)))
    if not all(mx.all(mx.isfinite(result)).item() for result in results):
        raise Wrong("the plain graph gives numbers that are not finite")


def _seconds(case: Case, way: str, kernels: bool) -> float:
    """Median time of a call among several in flight."""
    cotangents = _cotangents(case, way, kernels)
    results = _run(case, way, kernels, cotangents)
    mx.eval(case.arrays, cotangents, results)
    calls = max(1, min(20, TIMED_BYTES // max(1, sum(result.nbytes for result in results))))
    del results
    return per_call(lambda: _run(case, way, kernels, cotangents), calls, repeats=REPEATS, limit=SECONDS)


def _whole_step(preset: str, dtype: str, kernels: bool) -> Finding:
    """Loss and gradients of a whole training step with all kernels on, beside the plain graph: two samples and three moves."""
    config = EnergyConfig.preset(preset).replace(batch_size=2, gradient_accumulation_steps=1, compute_dtype=dtype)
    config = config.replace(lattice_depth=min(config.lattice_depth, 6))
    finding = Finding(WHOLE, preset, dtype, "both", f"{2 * config.slots_per_sample} flows", ok=False)
    needed, there = memory.predicted(config).total, memory_bytes()
    if needed > 0.7 * there:
        finding.ok = True
        finding.message = f"left out: it takes about {needed / memory.GB:.1f} GB, and there are {there / memory.GB:.1f}"
        return finding
    with _noted(finding):
        wanted = _step_numbers(config, "off")
        actual = _step_numbers(config, "on") if kernels else wanted
        for what, a, w in zip(("loss", "norm of all gradients"), actual, wanted, strict=True):
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
    """What the device has, or the machine."""
    info = mx.device_info()
    for name in ("total_memory", "memory_size"):
        if name in info:
            return int(info[name])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """The findings of `names` x `presets` x `dtypes`."""
    findings = []
    for name in job["names"]:
        for preset in job["presets"]:
            for dtype in job["dtypes"]:
                findings += check(name, preset, dtype, kernels=job["kernels"])
    return {"findings": [dataclasses.asdict(finding) for finding in findings]}


if __name__ == "__main__":
    job_file, result_file = map(Path, sys.argv[1:])
    result_file.write_text(json.dumps(run_job(json.loads(job_file.read_text(encoding="utf-8")))), encoding="utf-8")
