"""The bar: in a terminal alone, by a clock that does not jump, with the loss in a narrow one."""

import fcntl
import io
import os
import select
import struct
import termios

import pytest

from energy_flow_mlx import bar
from energy_flow_mlx.bar import Bar, in_terminal
from energy_flow_mlx.train.progress import _FORMAT


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_shows_nothing(stream):
    file = stream()
    with Bar(total=2, quiet=True, file=file) as each:
        each.update()
    assert file.getvalue() == ""


def test_in_a_file_it_is_a_line_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    for _ in Bar(range(100), quiet=False, file=file, desc="embed", unit=" texts"):
        now[0] += 0.75
    assert file.getvalue().splitlines() == [
        "embed: 0/100 texts [00:00]", "embed: 40/100 texts [00:30]", "embed: 80/100 texts [01:00]", "embed: 100/100 texts [01:15]",
    ]  # fmt: skip


def test_its_clock_does_not_jump(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    file = Terminal()
    with Bar(total=9, quiet=False, file=file) as each:
        for _ in range(3):
            now[0] += 1.0
            each.update()
        assert each.format_dict["elapsed"] == 3.0
        assert "3/9 [00:03<00:06" in file.getvalue()


def test_a_narrow_terminal_shows_the_loss():
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 40, 0, 0))  # 40 columns
    with os.fdopen(slave, "w") as file, Bar(total=600, quiet=False, file=file, bar_format=_FORMAT) as each:
        each.set_postfix({"loss": "0.1234", "val cosine": "0.5000", "arrived": "100%"})
        shown = ""
        while "loss" not in shown and select.select([master], [], [], 5.0)[0]:
            shown += os.read(master, 10_000).decode()
    os.close(master)
    assert "0/600 [00:00<?, loss=0.1234" in shown
    assert max(len(line) for line in shown.split("\r")) <= 40


@pytest.mark.parametrize(("columns", "terminal"), [(80, True), (0, False)])
def test_a_terminal_without_a_width_gets_lines(columns, terminal):
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
    with os.fdopen(slave, "w") as file:
        assert in_terminal(file) == terminal
    os.close(master)
