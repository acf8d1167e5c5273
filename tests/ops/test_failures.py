"""What MLX says of a custom kernel, in its own texts (backend/metal: device.cpp, custom_kernel.cpp), and what a user is told."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from metal_cpu import KernelCompileError, metal_on_cpu
from train.small import arguments

from energy_flow_mlx import evaluate
from energy_flow_mlx.benchmark.processes import MeasurementFailed, run_mlx
from energy_flow_mlx.config import ConfigError
from energy_flow_mlx.ops import failures, heads, kernel, spawn
from energy_flow_mlx.ops.failures import KernelError, kernel_errors
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.step import TrainStep

LIBRARY = (
    "[metal::Device] Unable to build metal library from source\n"
    "{place}:23:33: error: program scope variable must reside in constant address space\n"
    "    static constexpr uint coord = 0, coord_bias = 9;\n"
)
PIPELINE = (
    "[metal::Device] Unable to load kernel custom_kernel_bias_gelu_norm_forward_0123456789ab_float_20000_1024_0_float\n"
    "Compiler encountered an internal error\n"
)
THREADS = "Thread group size (512) is greater than  the maximum allowed threads per threadgroup (448)."
BUFFER = "[METAL] Command buffer execution failed: Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)."


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failures.VARIABLE, raising=False)
    monkeypatch.setattr(failures, "_launched", {})
    failures.note_launch("neuron", "backward", {"T": mx.bfloat16, "HIDDEN": 32, "BOUNDED": True}, 256)
    failures.note_launch("bias_gelu_norm", "forward", {"D": 20000}, 256)
    failures.note_launch("spawn", "forward", {"SLOTS": 5000, "PER": 8}, 512)
    failures.note_launch("adamw", "step", {}, 256)


def told(error: Exception) -> str:
    with pytest.raises(KernelError) as caught, kernel_errors():
        raise error
    assert caught.value.__cause__ is error and str(error).strip() in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (
            RuntimeError(LIBRARY.format(place="neuron/backward/neuron.metal")),
            "neuron (backward; T=bfloat16, HIDDEN=32, BOUNDED=True) does not compile here:",
            "ENERGY_FLOW_KERNELS=auto,-neuron",
        ),
        (
            RuntimeError(PIPELINE),
            "bias_gelu_norm (forward; D=20000) compiles, but the GPU's driver cannot load it:",
            "ENERGY_FLOW_KERNELS=auto,-bias_gelu_norm",
        ),
        (
            ValueError(THREADS),
            "spawn (forward; SLOTS=5000, PER=8) asks for groups of 512 threads where this GPU allows it 448:",
            "ENERGY_FLOW_KERNELS=auto,-spawn",
        ),
        (
            RuntimeError("kernel adamw_step_0123456789ab_7 does not compile as CUDA:\nadamw/step/adamw.metal(3): error: no"),
            "adamw (step; no template) does not compile here:",
            "ENERGY_FLOW_KERNELS=auto,-adamw",
        ),
        (
            RuntimeError(LIBRARY.format(place="program_source")),
            "one of adamw, bias_gelu_norm, neuron, spawn does not compile here:",
            "ENERGY_FLOW_KERNELS=off",
        ),
        (
            RuntimeError(BUFFER),
            "one of adamw, bias_gelu_norm, neuron, spawn may have stopped the GPU, which does not say which did:",
            "ENERGY_FLOW_KERNELS=off",
        ),
    ],
)  # fmt: skip
def test_an_error_names_op_template_and_the_way_on(error: Exception, first: str, last: str) -> None:
    lines = told(error).splitlines()
    assert lines[0] == first
    assert last in lines[-1] and "python -m energy_flow_mlx.doctor" in lines[-1]


def test_several_suspects_are_all_named() -> None:
    failures.note_launch("neuron", "backward", {"T": mx.float32, "HIDDEN": 32, "BOUNDED": True}, 256)
    text = told(ValueError(THREADS.replace("512", "256").replace("448", "224")))
    for words in ("neuron (backward; T=bfloat16, ", " or T=float32, ", "bias_gelu_norm (", "adamw (", "auto,-adamw,-bias_gelu_norm,-neuron"):
        assert words in text


def test_the_way_on_keeps_what_the_setting_says_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failures.VARIABLE, "auto,-heads")
    assert "ENERGY_FLOW_KERNELS=auto,-heads,-spawn " in told(ValueError(THREADS))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("[matmul] Last dimension of first input with shape (2,3) must match second to last dimension"),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        RuntimeError("[metal::Device] Unable to load kernel steel_gemm_fused_nt_float32\n"),
        RuntimeError(
            "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
        ),
        ValueError(THREADS.replace("512", "1024")),  # of no kernel of ours
    ],
)
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, kernel_errors():
        raise error
    assert caught.value is error


def test_a_launch_is_noted_and_a_compile_error_names_the_line_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through clang, which takes `#line` as Apple's compiler does: it is one."""
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    whole = kernel.source_file("heads.metal")
    broken = whole.replace("e[r] = simd_sum(e[r])", "e[r] = no_such_sum(e[r])")
    number = next(number for number, line in enumerate(broken.splitlines(), 1) if "no_such_sum" in line)
    read = kernel.source_file
    monkeypatch.setattr(kernel, "source_file", lambda name: broken if name == "heads.metal" else read(name))
    caches: list[Any] = [kernel.build, kernel._parts, kernel.read_source]
    inner, bias = mx.ones((3, 12)), mx.ones((12,))
    with metal_on_cpu(caches=caches), pytest.raises(KernelCompileError) as caught:
        mx.eval(heads.heads(inner, bias, mx.ones((8,)), mx.ones((3, 4)), mx.ones((4,)), mx.ones((1,)), kernels=True))
    assert f"heads/forward/heads.metal:{number}:" in str(caught.value)
    text = told(RuntimeError(f"[metal::Device] Unable to build metal library from source\n{caught.value}"))
    assert text.startswith("heads (forward; T=float32, A=8, M=4, ROWS=4) does not compile here:")


def test_sizes_over_32_bits_are_refused_with_the_way_on() -> None:
    flows = mx.broadcast_to(mx.array(1.0), (6, 2**30))
    with pytest.raises(KernelError, match="spawn .*length has 6,442,450,944 elements; .* up to 4,294,967,295.*-spawn"):
        spawn.spawn(flows, flows > 0, mx.zeros((6,)), mx.zeros((6,)), slots=1, threshold=1.0, most=1, kernels=True)
    with pytest.raises(KernelError, match=r"heads \(forward\): the grid has 2,147,483,648 elements; .* up to 2,147,483,647"):
        kernel.call("heads", "forward", {}, {}, threads=2**31 - 1)


@pytest.mark.parametrize(
    ("setting", "on"),
    [
        ("on", {"heads", "neuron"}),
        ("off", set()),
        ("on,-neuron", {"heads"}),
        ("off,+neuron", {"neuron"}),
        ("off,+neuron,+heads,-neuron", {"heads"}),
        ("auto,+heads", {"heads"}),
    ],
)
def test_the_setting_picks_ops(setting: str, on: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "on_gpu", lambda: False)
    monkeypatch.setenv(failures.VARIABLE, setting)
    assert {op for op in ("heads", "neuron") if kernel.use_kernel(op)} == on
    assert kernel.use_kernel("heads", True) and not kernel.use_kernel("heads", False)


def test_one_op_is_off_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "on_gpu", lambda: True)
    monkeypatch.setenv(failures.VARIABLE, "auto,-neuron")
    assert kernel.use_kernel("heads") and not kernel.use_kernel("neuron")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("yes", ["'yes'", "auto, on or off"]),
        ("", ["''", "auto, on or off"]),
        ("-neuron", ["'-neuron'", "auto, on or off"]),
        ("auto,neuron", ["'neuron'", "-op or +op", "heads, inherit"]),
        ("auto,-nuron", ["'-nuron'", "heads, inherit, masked_mean, neuron"]),
        ("auto,", ["''", "-op or +op"]),
    ],
)
def test_other_settings_are_refused(setting: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failures.VARIABLE, setting)
    with pytest.raises(ConfigError) as caught:
        kernel.use_kernel("heads")
    assert all(word in str(caught.value) for word in [failures.VARIABLE, *words])


def fail(*_: object, **__: object) -> None:
    raise ValueError(THREADS)


def command_says(run: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-3].startswith("error: spawn (forward; SLOTS=5000, PER=8) asks for groups of 512 threads")
    assert "ENERGY_FLOW_KERNELS=auto,-spawn" in said and "Traceback" not in said


def test_commands_end_with_the_error_and_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert train.main([*arguments(run), "--training-steps", "2"]) == 0
    monkeypatch.setattr(evaluate, "held_out", fail)
    command_says(lambda: evaluate.main([str(run)]), capsys)
    monkeypatch.setattr(TrainStep, "settle", fail)
    command_says(lambda: train.main(arguments(tmp_path / "other")), capsys)


def test_a_bad_setting_is_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failures.VARIABLE, "auto,-nuron")
    assert train.main(arguments(tmp_path / "run")) == 2
    assert "'-nuron'" in capsys.readouterr().err


CHILD = """
import json, runpy, sys
from energy_flow_mlx.benchmark import measure
from energy_flow_mlx.ops import failures

def fail(job):
    failures.note_launch("spawn", "forward", {"SLOTS": 5000}, 512)
    raise ValueError(job["text"])

measure.measure_model = fail
sys.argv = ["", *sys.argv[1:]]
runpy.run_module("energy_flow_mlx.benchmark.job", run_name="__main__")
"""


def test_a_measurement_in_a_process_of_its_own_hands_the_whole_text_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"what": "forward", "text": THREADS}))
    command = [sys.executable, "-c", CHILD, str(job), str(tmp_path / "result.json")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("error: spawn (forward; SLOTS=5000) asks for groups of 512")

    (tmp_path / "python").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{ended.stderr}\nEND\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MeasurementFailed, match="(?s)exit code 1: error: spawn .*512.*-spawn"):
        run_mlx(tmp_path, {"what": "forward"})
