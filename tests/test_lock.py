"""A folder for one process at a time."""

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys

import pytest

from energy_flow_mlx.lock import LOCK, locked

_HOLD = """
import os, signal, sys
from pathlib import Path
from energy_flow_mlx.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_is_refused_by_the_name_of_the_first_also_in_the_same_process(tmp_path):
    with locked(tmp_path):
        with pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()} on {socket.gethostname()}, since 2"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_of_a_killed_process_is_none(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(BlockingIOError, match=f"process {child.pid} on"), locked(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_file_removed_between_opening_and_locking_is_made_anew(tmp_path, monkeypatch):
    flock, files = fcntl.flock, []

    def removed(file, how):
        files.append(file.fileno())
        if len(files) == 1:
            os.unlink(tmp_path / LOCK)  # as its holder does at its end
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    with locked(tmp_path):
        assert len(files) == 2 and (tmp_path / LOCK).is_file()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path):
        pass
    assert f"warning: {tmp_path / LOCK}: this file system has no locks (No locks available)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "run"):
        pass


def test_a_lock_that_finds_no_room_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused, locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.filename == str(tmp_path / LOCK)
    assert not list(tmp_path.iterdir())
