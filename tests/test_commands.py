"""`energy-flow` and `python -m energy_flow_mlx`: the list of commands, running one, completing one."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from energy_flow_mlx import program
from energy_flow_mlx.__main__ import main as dispatch
from energy_flow_mlx.__main__ import verbs

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = verbs(ROOT / "energy_flow_mlx")


def call(monkeypatch: pytest.MonkeyPatch, *words: str, through: str = "energy-flow") -> int:
    monkeypatch.setattr(sys, "argv", [through, *words])
    monkeypatch.setattr(program, "_words", program._words)  # which the call changes
    return dispatch()


def test_every_command_of_the_readme_is_listed() -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("## Architecture")[1]
    named = re.findall(r"^  (\w+)(?:/|\.py) +python -m energy_flow_mlx\.\w+", block, flags=re.MULTILINE)
    assert {"train", "evaluate", "convert", "embed", "upload"} <= set(named)
    assert sorted(named) == sorted(COMMANDS)
    assert all(20 < len(does) < 110 for does in COMMANDS.values())


def test_every_command_leaves_errors_to_exit_code() -> None:
    for name in COMMANDS:
        file = ROOT / "energy_flow_mlx" / f"{name}.py"
        sources = [path.read_text("utf-8") for path in ([file] if file.is_file() else file.with_suffix("").glob("*.py"))]
        assert any("return exit_code(" in source for source in sources), name


def test_documentation_makes_a_command(tmp_path: Path) -> None:
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "__main__.py").write_text('"""python -m energy_flow_mlx.look RUN: look at a run: closely."""')
    (tmp_path / "other.py").write_text('"""Runs python -m energy_flow_mlx.other: not as a command."""')
    (tmp_path / "bare.py").write_text("")
    assert verbs(tmp_path) == {"look": "look at a run: closely"}


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_command_all_are_listed(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "tarin") == 2
    assert capsys.readouterr().err == f"error: tarin is no command; accepted are {', '.join(COMMANDS)}\n"


def test_a_command_runs_with_its_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code, shown in ((["--help"], 0, "usage: energy-flow evaluate [-h]"), (["nowhere"], 2, "error: nowhere/config.json")):
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, "evaluate", *words)
        assert ended.value.code == code
        assert shown in "".join(capsys.readouterr())


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # other tests have imported the commands
@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_of_a_help_alone_has_the_call(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(monkeypatch, name, "--help")
    usage, description = capsys.readouterr().out.split("\n\n")[:2]
    assert usage.startswith(f"usage: energy-flow {name} [")
    assert description[0].isupper() and description.endswith(".")
    assert "python -m" not in description and f"energy-flow {name}" not in description


@pytest.mark.parametrize(
    ("through", "called"),
    [("/venv/bin/energy-flow", "energy-flow "), ("/site-packages/energy_flow_mlx/__main__.py", "python -m energy_flow_mlx ")],
)
def test_hints_name_commands_as_they_were_called(
    through: str, called: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.call_of("train") == "python -m energy_flow_mlx.train"
    for words, hint in (
        (["generate", str(ROOT / "weights" / "golden"), "--rounds", "1", "a"], f"{called}train --init-from {ROOT / 'weights' / 'golden'} --part corrector"),
        (["train", "--data", "nothing"], f"`{called}dataset build`"),
        (["compare", "--nothing"], f"(see {called}compare --help)"),
    ):
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, *words, through=through)
        assert ended.value.code == 2
        assert hint in capsys.readouterr().err


def test_no_hint_names_a_command_by_itself() -> None:
    for path in (ROOT / "energy_flow_mlx").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        documentation = [node.value for node in nodes if isinstance(node, ast.Expr)]
        texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation]
        assert not [text.value for text in texts if "python -m energy_flow_mlx." in text.value], path


def test_the_console_script_is_this_function() -> None:
    assert 'energy-flow = "energy_flow_mlx.__main__:run"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("energy-flow tr", ["train"]),
        ("energy-flow dataset build --poo", ["--pooling"]),
        ("energy-flow convert x --dtype ", ["float32", "float16", "bfloat16"]),
    ],
)
def test_a_shell_completes(line: str, completions: list[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="completion is an extra: pip install argcomplete")
    shown = tmp_path / "shown"
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(shown), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, **shell, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    subprocess.run([sys.executable, "-m", "energy_flow_mlx"], env=environment, cwd=ROOT, check=True, capture_output=True)
    assert shown.read_text().split() == completions
