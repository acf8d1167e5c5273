"""scripts/compile_metal.py without a Mac: what it captures, and what it asks of a compiler that stands for Apple's."""

import os
import re
import sys
from pathlib import Path

import compile_metal
import pytest

FEW = ["--preset", "tiny", "--dtype", "bfloat16"]
# Takes notes; knows metal3.1 and metal3.2 alone; refuses files that hold a word.
XCRUN = """#!{python}
import sys
arguments = sys.argv[1:]
with open("{log}", "a") as log:
    log.write(" ".join(arguments) + "\\n")
standard = next(argument for argument in arguments if argument.startswith("-std="))
text = open(arguments[arguments.index("-c") + 1]).read()
if standard not in ("-std=metal3.1", "-std=metal3.2"):
    sys.exit("error: invalid value '" + standard[5:] + "' in '-std='")
if "{refused}" and "{refused}" in text:
    sys.exit("heads/forward/heads.metal:24:5: error: program scope variable must reside in constant address space")
"""


def mac(folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str = "") -> Path:
    """An xcrun on PATH; returns where it takes notes."""
    log = folder / "xcrun.log"
    log.touch()
    xcrun = folder / "bin" / "xcrun"
    xcrun.parent.mkdir()
    xcrun.write_text(XCRUN.format(python=sys.executable, log=log, refused=refused))
    xcrun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{xcrun.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def test_every_source_is_compiled_as_the_oldest_and_as_the_newest_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = mac(tmp_path, monkeypatch)
    assert compile_metal.main(FEW) == 0
    calls = [line for line in log.read_text().splitlines() if "probe.metal" not in line]
    texts = compile_metal.sources(compile_metal.captured(["tiny"], ["bfloat16"]))
    assert all(line.startswith("-sdk macosx metal -std=metal3.") and f"-I{compile_metal.PRELUDE.parents[4]} -c " in line for line in calls)
    for standard in ("metal3.1", "metal3.2"):
        files = {re.search(r"-c (\S+)", line)[1] for line in calls if f"-std={standard} " in line}  # type: ignore[index]
        assert len(files) == len(texts) > 30
    assert f"{2 * len(texts)} of {2 * len(texts)} compile: {len(texts)} sources as metal3.1 and metal3.2" in capsys.readouterr().out


def test_a_source_that_is_refused_is_named_with_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mac(tmp_path, monkeypatch, refused="heads/forward")
    assert compile_metal.main(FEW) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^\d+_heads_forward_\w+\.metal does not compile as metal3\.1:\nheads/forward/heads\.metal:24:5: error: ", printed, re.MULTILINE)
    assert " as metal3.2:\n" in printed and printed.count("heads.metal:24:5") == 2


def test_a_compiler_that_is_not_installed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mac(tmp_path, monkeypatch, refused="kernel")  # the probe too
    assert compile_metal.main(FEW) == 2
    assert "xcodebuild -downloadComponent MetalToolchain" in capsys.readouterr().err


def test_without_xcrun_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert compile_metal.main(FEW) == 2
    said = capsys.readouterr().err
    assert "no xcrun here" in said and "--to FOLDER" in said


def test_sources_are_written_for_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sources"
    assert compile_metal.main([*FEW, "--to", str(folder)]) == 0
    texts = {file.read_text() for file in folder.iterdir()}
    assert texts == set(compile_metal.sources(compile_metal.captured(["tiny"], ["bfloat16"])).values())
    assert all(text.startswith('#include "mlx/backend/metal/kernels/utils.h"\n') and "[[kernel]] void" in text for text in texts)
    assert compile_metal.main([*FEW, "--to", str(folder)]) == 2
    assert "new or an empty folder" in capsys.readouterr().err


def test_every_body_of_every_op_is_captured() -> None:
    names = {launch.name for launch in compile_metal.captured(["debug", "optimized"], ["float16"])}
    for op in compile_metal.kernel.ops():
        for body in compile_metal.kernel.read_source(op)[1]:
            assert any(name.startswith(f"custom_kernel_{op}_{body}_") for name in names), (op, body)
