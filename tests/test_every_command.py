"""What every command shares: signals, outputs that break, files that cannot be written, errors, help."""

import io
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from energy_flow_mlx.checks import did_you_mean
from energy_flow_mlx.cli import Output, Parser, check_writable, exit_code, reason, run_command
from energy_flow_mlx.ops import failures

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def process():
    """Streams and signal handlers as they were."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # a runner under nohup ignores SIGHUP
    signal.signal(signal.SIGINT, signal.default_int_handler)
    streams = sys.stdout, sys.stderr
    yield
    sys.stdout, sys.stderr = streams
    for number, handler in handlers.items():
        signal.signal(number, handler)


def code_of(main):
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    return stop.value.code


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_and_its_temporary_files(number, capsys):
    folders = []

    def main():
        with tempfile.TemporaryDirectory() as folder:
            folders.append(Path(folder))
            os.kill(os.getpid(), number)
            signal.pause()

    assert code_of(main) == 130
    assert not folders[0].exists()
    assert capsys.readouterr().err == "interrupted\n"


def test_under_nohup_a_hangup_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert code_of(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0


def test_an_error_of_the_system_is_printed(capsys, tmp_path):
    assert code_of(lambda: (tmp_path / "absent").read_bytes()) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: No such file or directory\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("seed=-1"), 2, "error: seed=-1"),
        (TypeError("seed='a'"), 2, "error: seed='a'"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "error: a/b: No such file or directory"),
        (failures.KernelError("move fails"), 1, "error: move fails"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_code_and_the_line_of_an_error(error, code, said, capsys):
    def work():
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr().err == f"{said}\n"
    assert exit_code(lambda: 3) == 3


def test_a_command_may_name_its_errors_and_a_fault_of_the_program_is_none(capsys):
    def work(error):
        raise error

    assert exit_code(lambda: work(ArithmeticError("inf")), failed=(ArithmeticError,)) == 1
    assert exit_code(lambda: work(KeyboardInterrupt()), interrupted="interrupted; go on") == 130
    assert capsys.readouterr().err == "error: inf\ninterrupted; go on\n"
    for error in (ValueError("a fault"), failures.KernelError("a fault")):
        with pytest.raises(type(error), match="a fault"):
            exit_code(lambda error=error: work(error), refused=(OSError,), failed=(ArithmeticError,))


def test_what_mlx_says_of_a_kernel_is_told_by_its_op(capsys, monkeypatch):
    monkeypatch.setattr(failures, "_launched", {})
    failures.note_launch("neuron", "forward", {}, 64)

    def work():
        raise RuntimeError(f"{failures.LIBRARY} from source: neuron/forward/x.metal:1:1: error: no")

    assert exit_code(work) == 1
    assert capsys.readouterr().err.startswith("error: neuron (forward; no template) does not compile here")


def broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system: output to a full disk is not tested")
    return open("/dev/full", "w")


@pytest.mark.parametrize(("stream", "code"), [(broken_pipe, 0), (full_disk, 2)])
def test_an_output_that_breaks_does_not_stop_the_command(stream, code, capsys):
    sys.stdout = stream()
    done = []

    def main():
        print("x" * 100_000, flush=True)
        done.append(True)
        print("more")
        return 0

    assert code_of(main) == code and done
    sys.stdout.close()  # fails if something is left that cannot be written
    said = capsys.readouterr().err
    assert said == ("error: standard output: No space left on device\n" if code else "")


def test_a_terminal_without_unicode_shows_escapes():
    raw = io.BytesIO()
    out = Output(io.TextIOWrapper(raw, encoding="ascii"))
    out.write("2048² …")
    out.flush()
    assert raw.getvalue() == rb"2048\xb2 \u2026"


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    check_writable(None)
    check_writable(tmp_path / "new.json")
    assert not list(tmp_path.iterdir())
    for path, words in ((tmp_path / "no" / "a.json", f"there is no folder {tmp_path / 'no'}"), (tmp_path, "is a folder"), (Path("/proc/a.json"), "/proc/a.json")):
        with pytest.raises(OSError, match=re.escape(words)):
            check_writable(path)
    with pytest.raises(OSError, match=r"x.gif: accepted are files that end in .png, .svg"):
        check_writable(Path("x.gif"), (".png", ".svg"))


def test_an_error_of_the_system_is_told_by_path_and_reason():
    assert reason(PermissionError(13, "Permission denied", "a/b")) == "a/b: Permission denied"
    assert reason(ValueError("seed=-1")) == "seed=-1"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--learning-rat", "; did you mean --learning-rate?"),
        ("--lr", "; did you mean --learning-rate?"),
        ("--batch", "; did you mean --batch-size?"),
        ("--rate", "; did you mean --learning-rate or --learning-rate-schedule?"),
        ("--qqq", ""),
    ],
)
def test_hints(word, hint):
    assert did_you_mean(word, ["--learning-rate-schedule", "--learning-rate", "--batch-size", "--seed"]) == hint


def test_options_of_subcommands_are_hinted_at(capsys):
    parser = Parser(prog="p")
    parser.add_subparsers(dest="command").add_parser("build").add_argument("--shard-rows")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["build", "--shard-row", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown option --shard-row; did you mean --shard-rows?\n")


def test_an_option_before_its_subcommand_is_told_where_it_belongs(capsys):
    parser = Parser(prog="p")
    commands = parser.add_subparsers(dest="command")
    for name in ("build", "convert"):
        commands.add_parser(name).add_argument("--to")
    commands.add_parser("inspect")
    for words in (["--to=x", "build"], ["inspect", "--to", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert capsys.readouterr().err.startswith("error: --to is an option of build and convert, and stands after that word\n")


@pytest.mark.parametrize("options", [{}, {"type": int}, {"type": Path}, {"choices": ["a", "--"]}, {"nargs": "+"}])
def test_two_dashes_are_no_value_of_an_option(options, capsys):
    parser = Parser(prog="p")
    parser.add_argument("--flag", **options)
    parser.add_argument("text", nargs="?")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--flag=--"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument --flag: expected a value, got '--'\n")
    assert parser.parse_args(["--", "-x"]).text == "-x"


def test_help_in_a_narrow_terminal_keeps_words_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    parser = Parser(prog="p", description="instantiation of heteroscedasticity")
    parser.add_argument("--flag", help="a displacement-scale-update-interval")
    words = parser.format_help().split()
    for word in ("instantiation", "heteroscedasticity", "displacement-scale-update-interval"):
        assert word in words
