"""Writes that fail: the file and the reason are named, and nothing partial stays."""

import errno
import os
import platform
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file
from train.small import arguments, small_config, small_model

from energy_flow_mlx.convert.to_torch import convert_to_torch
from energy_flow_mlx.dataset.__main__ import main as dataset
from energy_flow_mlx.files import write_aside, write_folder
from energy_flow_mlx.tensors import save_arrays
from energy_flow_mlx.text import TextCache
from energy_flow_mlx.train import report
from energy_flow_mlx.train.command import main as train

LIMIT = 50_000


@contextmanager
def small_files(most=LIMIT):
    """Inside, a file ends at `most` bytes, as on a disk that is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mlx_arrays(path):
    save_arrays(path, {"a": mx.zeros((LIMIT,))}, {"step": "1"})


WRITERS = {
    "text": lambda path: path.write_text("a" * 2 * LIMIT),
    "mlx": mlx_arrays,
    "safetensors": lambda path: save_file({"a": np.zeros(LIMIT)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, writer):
    (tmp_path / "a.bin").write_text("old")
    with small_files(), pytest.raises(OSError) as caught:
        write_aside(tmp_path / "a.bin", WRITERS[writer])
    check(caught.value, tmp_path / "a.bin", writer)
    with small_files(), pytest.raises(OSError) as caught:
        write_folder(tmp_path, {"b.bin": lambda path: path.write_text("new"), "a.bin": WRITERS[writer]})
    check(caught.value, tmp_path / "a.bin", writer)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_text() == "old"


def check(error, path, writer):
    if writer == "safetensors":  # which gives the reason as text alone
        assert str(error).startswith(f"{path}: could not be written: ") and "File too large" in str(error)
    else:
        assert (error.errno, error.filename) == (errno.EFBIG, str(path))


def test_the_error_below_a_librarys_own_is_told(tmp_path):
    """As of torch.save, which raises its own error over that of the file."""

    def write(path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    with pytest.raises(OSError, match="No space left") as caught:
        write_aside(tmp_path / "a", write)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_an_error_that_is_not_of_writing_stays_what_it_is(tmp_path):
    with pytest.raises(KeyError):
        write_folder(tmp_path, {"a": lambda path: {}["b"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["", ".", "folder"])
def test_a_folder_is_no_file_to_write(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        write_aside(path, lambda aside: pytest.fail("nothing is written"))
    assert refused.value.filename == str(Path(path)) and refused.value.strerror == "Is a directory"
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_disk_that_flushes_no_folders_serves(tmp_path, monkeypatch):
    flushed = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flushed(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "run", {"a": lambda path: path.write_text("new")})
    assert (tmp_path / "run" / "a").read_text() == "new"
    monkeypatch.setattr(os, "fsync", lambda descriptor: fsync(os.open(tmp_path, os.O_RDONLY)))
    with pytest.raises(OSError, match="Invalid argument"):
        write_aside(tmp_path / "b", lambda path: path.write_text("new"))


def test_saved_arrays_are_read_back(tmp_path):
    arrays = {"a": mx.arange(6).reshape(2, 3).astype(mx.bfloat16), "b": mx.array(1.5)}
    save_arrays(tmp_path / "a.safetensors", arrays, {"step": "7"})
    loaded, metadata = mx.load(str(tmp_path / "a.safetensors"), return_metadata=True)
    assert metadata["step"] == "7"
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype and mx.array_equal(loaded[name], array)


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
        with small_files(resource.RLIM_INFINITY):
            save_model(model)
    convert_to_torch(model, folder, "float32", with_optimizer=False)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("save", [save_model, save_cache, save_torch])
def test_what_finds_no_room_is_named_and_leaves_nothing(save: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "there"
    with small_files(1000), pytest.raises(OSError) as failed:
        save(folder)
    assert failed.value.errno == errno.EFBIG
    assert Path(failed.value.filename).is_relative_to(folder)
    assert everything(folder) == {}
    save(folder)
    assert everything(folder)


def test_a_folder_that_finds_no_room_keeps_its_old_files(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": lambda path: path.write_bytes(b"old"), "b": lambda path: path.write_bytes(b"old")})
    with small_files(1000), pytest.raises(OSError, match=f"{tmp_path}/b"):
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
    monkeypatch.setattr(report, "draw_curves", lambda *_: None)
    run = tmp_path / "run"
    assert train(arguments(run, training_steps=2)) == 0
    before = everything(run)
    capsys.readouterr()
    with small_files(1000):
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
    with small_files(1000):
        assert dataset(command) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "File too large" in error and str(folder) in error
    assert not folder.exists()
    assert dataset(command) == 0
