"""python -m energy_flow_mlx.doctor: on this CPU as it is, and its checks of kernels through the Metal harness."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from metal_cpu import metal_on_cpu

from energy_flow_mlx.benchmark.processes import MeasurementFailed
from energy_flow_mlx.doctor import __main__ as doctor
from energy_flow_mlx.doctor import checks, report
from energy_flow_mlx.doctor.checks import CASES, NAMES, WHOLE, Finding, check, run_job
from energy_flow_mlx.ops import failures, kernel

CACHES: list[Any] = [kernel.build, kernel._parts, kernel.read_source]


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "on_gpu", lambda: False)
    monkeypatch.setattr(report, "on_gpu", lambda: False)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are Metal, run by the harness; nothing is timed, for the harness says nothing of a GPU's time."""
    monkeypatch.delenv(failures.VARIABLE, raising=False)
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    monkeypatch.setattr(checks, "_seconds", lambda *_: 1.0)
    with metal_on_cpu(checked=False, caches=CACHES):
        yield


def with_source(monkeypatch: pytest.MonkeyPatch, op: str, old: str, new: str) -> None:
    whole, read = kernel.source_file(f"{op}.metal"), kernel.source_file
    assert whole.count(old) >= 1
    monkeypatch.setattr(kernel, "source_file", lambda name: whole.replace(old, new) if name == f"{op}.metal" else read(name))


def test_there_is_a_case_for_every_kernel() -> None:
    assert {name.split(",")[0] for name in CASES} == set(kernel.ops())


def test_on_a_cpu_the_plain_graph_alone_is_run(on_a_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "doctor.json"
    assert doctor.main(["--preset", "tiny", "--report", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "only MLX's built-in operations are run" in printed and "all 30 checks passed" in printed
    found = json.loads(file.read_text())
    findings = [Finding(**values) for values in found["findings"]]
    assert tuple(dict.fromkeys(finding.case for finding in findings)) == NAMES
    assert all(finding.ok and finding.kernel_seconds is None for finding in findings)
    untimed = {finding.case for finding in findings if finding.plain_seconds is None}
    assert untimed == {WHOLE, "flow_step", "flow_step, life"}
    assert found["machine"]["mlx"] and found["machine"]["kernels"] is None and found["machine"]["memory_bytes"] > 2**30
    text = (tmp_path / "doctor.txt").read_text()
    assert text.startswith(report.heading(found["machine"])) and report.table(findings) in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "ways"),
    [("heads", ["forward", "both"]), ("masked_mean", ["forward", "both"]), ("flow_step", ["forward"]), ("flow_step, life", ["forward"]), ("spawn", ["forward"]), ("norms", ["forward"])],
)
def test_a_kernel_that_is_right_passes(name: str, ways: list[str], dtype: str, metal: None) -> None:
    findings = check(name, "tiny", dtype, kernels=True)
    assert [finding.way for finding in findings] == ways
    for finding in findings:
        assert finding.ok and not finding.message, finding.message
        assert finding.difference is not None and finding.difference <= checks.TOLERANCE[dtype]
        assert finding.kernel_seconds == 1.0


def test_a_kernel_that_does_not_compile_is_reported_and_the_others_go_on(metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The harness's error stands for MLX's here, whose own texts are in ops/test_failures.py.
    with_source(monkeypatch, "masked_mean", "float divisor = ", "float divisor = missing + ")
    job = {"names": ["masked_mean", "heads"], "presets": ["tiny"], "dtypes": ["float32"], "kernels": True}
    broken, broken_too, *others = [Finding(**values) for values in run_job(job)["findings"]]
    for finding in (broken, broken_too):
        assert not finding.ok and finding.kernel_seconds is None
        assert "masked_mean/forward/masked_mean.metal:" in finding.message
        assert "use of undeclared identifier 'missing'" in finding.message
        assert finding.message.splitlines()[-1].startswith("Go on with ENERGY_FLOW_KERNELS=auto,-masked_mean ")
    assert [finding.case for finding in others] == ["heads", "heads"] and all(finding.ok for finding in others)
    said = report.closing([broken, *others])
    assert said.startswith("masked_mean, tiny, float32, forward failed:\n") and "1 of 3 checks failed" in said
    assert report.table([broken]).splitlines()[1].split()[5] == "failed"


def test_a_kernel_that_is_wrong_is_reported(metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_source(monkeypatch, "masked_mean", "float divisor = ", "float divisor = 1.0f + ")
    forward, both = check("masked_mean", "tiny", "float32", kernels=True)
    for finding in (forward, both):
        assert not finding.ok and "differs from the plain graph by" in finding.message
        assert "ENERGY_FLOW_KERNELS=auto,-masked_mean" in finding.message


def test_the_training_step_runs_every_kernel_that_training_launches(metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = checks.EnergyConfig.preset("tiny").replace(lattice_width=4, lattice_height=3, text_model_dim=8, carrier_hidden_size=8)
    monkeypatch.setattr(checks.EnergyConfig, "preset", lambda _: config)
    (finding,) = check(WHOLE, "tiny", "float32", kernels=True)
    assert finding.ok, finding.message
    templates = [(op, dict(template)) for (op, _), kept in failures._launched.items() for template in kept]
    ran = {(op, template["RUNNING"]) for op, template in templates if "RUNNING" in template}
    assert ran == {(op, running) for op in ("gru_gates", "heads", "neuron") for running in (False, True)}

    with_source(monkeypatch, "heads", "metal::tanh(e[r] + out_bias[0])", "metal::tanh(e[r] + out_bias[0] + 0.5f)")
    kernel._parts.cache_clear()
    kernel.read_source.cache_clear()
    kernel.build.cache_clear()
    (finding,) = check(WHOLE, "tiny", "float32", kernels=True)
    assert not finding.ok and "with kernels and" in finding.message


def test_a_step_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "memory_bytes", lambda: 10**8)
    (finding,) = check(WHOLE, "optimized", "float32", kernels=False)
    assert finding.ok and finding.message.startswith("left out: it needs about ")
    assert report.table([finding]).splitlines()[1].split("  ")[-1] == "left out"


def test_on_a_gpu_an_op_that_ends_its_process_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_mlx(folder: Path, job: dict[str, Any], *, module: str, cold: bool, limit: float) -> dict[str, Any]:
        assert module == doctor.MODULE and job["kernels"] and not cold and limit == 2 * doctor.LIMIT
        if job["names"] == ["neuron"]:
            raise MeasurementFailed("exit code -6: [METAL] Command buffer execution failed")
        kept = {"case": job["names"][0], "preset": "tiny", "dtype": "float32", "way": "forward", "size": "1", "ok": True}
        return {"findings": [{**kept, "plain_seconds": 1.0, "kernel_seconds": 2.0}]}

    monkeypatch.setattr(doctor, "on_gpu", lambda: True)
    monkeypatch.setattr(doctor, "run_mlx", run_mlx)
    assert doctor.main(["--ops", "neuron", "heads", "--preset", "tiny", "debug"]) == 1
    printed = capsys.readouterr().out
    assert "its process failed: exit code -6: [METAL] Command buffer execution failed" in printed
    assert "ENERGY_FLOW_KERNELS=auto,-neuron" in printed and "1 of 2 checks failed" in printed
    assert "2.0x slower" in printed and "slower than MLX's built-in operations in some case: heads" in printed


def test_the_process_of_an_op_writes_its_findings(tmp_path: Path) -> None:
    job = {"names": ["norms"], "presets": ["tiny"], "dtypes": ["float32"], "kernels": False}
    (finding,) = doctor.run_mlx(tmp_path, job, module=doctor.MODULE, cold=False, limit=100)["findings"]
    assert Finding(**finding).ok and finding["case"] == "norms" and finding["plain_seconds"] > 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--report", "nowhere/doctor.json"], ["nowhere", "no folder"]),
        (["--report", "doctor.txt"], ["doctor.txt", ".json"]),
        (["--ops", "nuron"], ["'nuron'", "neuron"]),
        (["--preset", "huge"], ["'huge'", "tiny"]),
        (["--dtype", "float64"], ["'float64'", "bfloat16"]),
    ],
)
def test_refusals(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = doctor.main(argv)
    except SystemExit as stop:
        code = int(str(stop.code))
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and all(word in said for word in words)
