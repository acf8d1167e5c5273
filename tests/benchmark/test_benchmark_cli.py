"""The command: what it prints and writes, and what it refuses."""

import importlib.util
import json

import pytest
from train.small import FIELDS

from energy_flow_mlx.benchmark import __main__ as benchmark
from energy_flow_mlx.benchmark import processes
from energy_flow_mlx.benchmark.processes import MeasurementFailed, run_mlx, run_torch

QUICK = ["--repeats", "3", "--warmup", "0", "--seconds", "0.5"]


def small_arguments():
    fields = {name: value for name, value in FIELDS.items() if name != "use_exploration_noise"}
    return [word for name, value in fields.items() for word in ("--" + name.replace("_", "-"), str(value))]


def refused(capsys, *argv):
    try:
        code = benchmark.main(argv)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def test_one_run_measures_both_frameworks_and_writes_everything(tmp_path, capsys):
    """A variant of torch that fails is reported, and the others go on."""
    files = ["--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "all.png")]
    torch_flags = ["--compare", "torch", "--torch-variants", "fp32/cell/nonsense,fp32/cell/eager"]
    assert benchmark.main([*small_arguments(), *QUICK, *files, *torch_flags, "--stages"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "all.json").read_text())
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert "torch fp32/cell/nonsense, training: exit code 1: ValueError" in printed
    assert {ratio["fastest_torch"] for ratio in results["ratios"]} == {"fp32/cell/eager"}
    rows = {(row["framework"], row["what"]): row for row in results["rows"] if "error" not in row}
    assert len(rows) == 4 == len(results["rows"]) - 2
    for (framework, what), row in rows.items():
        assert row["seconds"] > 0 and row["pipelined_s"] > 0 and row["process_peak_bytes"] > 0 and row["first_call_s"] > 0
        assert row["samples_per_s"] == pytest.approx(4 / row["seconds"])
        assert row["flow_steps_per_s"] == pytest.approx(4 * 6 * 2 / row["seconds"])
        assert row["tflops"] == pytest.approx(results["counted"][what]["flops"] / row["seconds"] / 1e12)
        assert f"{framework} " in printed
    # Both frameworks started from the same weights and did the same work.
    for what in ("training", "forward"):
        assert rows["mlx", what]["first_value"] == pytest.approx(rows["torch", what]["first_value"], abs=1e-4)
    ratio = {ratio["what"]: ratio for ratio in results["ratios"]}
    assert ratio["training"]["time"] == rows["mlx", "training"]["seconds"] / rows["torch", "training"]["seconds"]
    assert "in evaluation: flow_step is off" in printed
    for stage in results["stages"]:
        assert stage["stage"] in printed
        assert stage["limit_seconds"] >= 0


def test_torch_beyond_its_limit_is_left_out(capsys):
    flags = ["--compare", "torch", "--torch-eager", "--torch-limit", "0.01"]
    assert benchmark.main([*small_arguments(), *QUICK, *flags]) == 0
    printed = capsys.readouterr().out
    assert "timed out after 0 s" in printed and "--torch-limit 0.01 s is used up" in printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--repeats", "0"], "--repeats 0"),
        (["--torch-eager"], "--compare torch"),
        (["--compare", "torch", "--as-trained"], "--as-trained"),
        (["--compare", "torch", "--movement-based-spawn"], "--movement-based-spawn True"),
        (["--compare", "torch", "--collection", "bilinear"], "--collection bilinear"),
        (["--compare", "torch", "--torch-variants", "fp32"], "as in bf16/cell/captured"),
        (["--preset", "huge"], "tiny, debug, experiment, optimized"),
        (["--json", "/nowhere/at/all.json"], "no folder /nowhere/at"),
        (["--lattice-depth", "1"], "lattice_depth"),
    ],
)
def test_refusals(capsys, argv, words):
    assert words in refused(capsys, *argv)


def test_missing_torch_is_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install torch" in refused(capsys, "--compare", "torch")


def test_missing_script_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "BASELINE", tmp_path / "torch_baseline.py")
    with pytest.raises(MeasurementFailed, match=r"torch_baseline\.py is missing"):
        run_torch(tmp_path, {})


def test_a_failing_process_says_why(tmp_path):
    with pytest.raises(MeasurementFailed, match="KeyError: 'nonsense'"):
        run_mlx(tmp_path, {"what": "nonsense"})
