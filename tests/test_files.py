"""Writes that find no room: named with the file and the system's reason, with nothing left behind and the old files as they were."""

import errno
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from train.small import arguments, small_config, small_model

from energy_flow_mlx.convert.to_torch import convert_to_torch
from energy_flow_mlx.dataset.__main__ import main as dataset
from energy_flow_mlx.files import write_aside, write_folder
from energy_flow_mlx.text import TextCache
from energy_flow_mlx.train import run as training_run
from energy_flow_mlx.train.__main__ import main as train


@contextmanager
def no_room(most: int = 1000) -> Iterator[None]:
    """Inside, a file that grows over `most` bytes fails with EFBIG, as it would with ENOSPC on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_model(folder: Path) -> None:
    small_model(small_config()).save_pretrained(folder)


def save_cache(folder: Path) -> None:
    cache = TextCache()
    cache.surfaces("model", ["a text"], lambda texts: np.ones((1, 600), np.float32))
    folder.mkdir(exist_ok=True)
    cache.save(folder / "surfaces.safetensors")


def save_torch(folder: Path) -> None:
    pytest.importorskip("torch")
    model = folder.with_name("model")
    if not model.exists():
        with no_room(resource.RLIM_INFINITY):
            save_model(model)
    convert_to_torch(model, folder, "float32", with_optimizer=False)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("save", [save_model, save_cache, save_torch])
def test_what_finds_no_room_is_named_and_leaves_nothing(save: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "there"
    with no_room(), pytest.raises(OSError) as failed:
        save(folder)
    assert failed.value.errno == errno.EFBIG
    assert Path(failed.value.filename).is_relative_to(folder)
    assert everything(folder) == {}
    save(folder)
    assert everything(folder)


def test_a_folder_that_finds_no_room_keeps_its_old_files(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": lambda path: path.write_bytes(b"old"), "b": lambda path: path.write_bytes(b"old")})
    with no_room(), pytest.raises(OSError, match=f"{tmp_path}/b"):
        write_folder(tmp_path, {"a": lambda path: path.write_bytes(b"new"), "b": lambda path: path.write_bytes(bytes(2000))})
    assert everything(tmp_path) == {"a": b"old", "b": b"old"}


def test_what_a_killed_process_left_of_a_write_goes_with_the_next(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    here = platform.node()
    for writer in (f"{here}-{ended.pid}", f"{here}-{os.getppid()}", f"{here}-of-another", f"elsewhere-{ended.pid}"):
        (tmp_path / f".file.{writer}.new.txt").touch()
    (tmp_path / f".other.{here}-{ended.pid}.new.txt").touch()
    write_aside(tmp_path / "file.txt", lambda path: path.write_bytes(b"new"))
    assert everything(tmp_path) == {
        "file.txt": b"new",
        f".file.{here}-{os.getppid()}.new.txt": b"",
        f".file.{here}-of-another.new.txt": b"",
        f".file.elsewhere-{ended.pid}.new.txt": b"",
        f".other.{here}-{ended.pid}.new.txt": b"",
    }


def test_an_error_keeps_the_name_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        write_aside(tmp_path / "file", lambda _: (tmp_path / "elsewhere").read_bytes())


def test_a_training_without_room_keeps_its_checkpoint_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "draw_curves", lambda *_: None)
    run = tmp_path / "run"
    assert train(arguments(run, training_steps=2)) == 0
    before = everything(run)
    capsys.readouterr()
    with no_room():
        assert train(["--resume", str(run), "--training-steps", "4", "--quiet"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "File too large" in error and str(run) in error
    after = everything(run)
    assert after.keys() == before.keys()
    assert after["model.safetensors"] == before["model.safetensors"]
    assert train(["--resume", str(run), "--training-steps", "4", "--quiet"]) == 0


def test_a_build_without_room_can_be_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "built"
    command = ["build", "builtin:100", "--to", str(folder), "--dim", "16", "--quiet"]
    with no_room():
        assert dataset(command) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "File too large" in error and str(folder) in error
    assert not folder.exists()
    assert dataset(command) == 0
