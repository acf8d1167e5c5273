"""Writes that fail: the file and the reason are named, and nothing partial stays."""

import errno
import os
import resource
import stat
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from energy_flow_mlx.files import write_aside, write_folder
from energy_flow_mlx.tensors import save_arrays

LIMIT = 50_000


@contextmanager
def small_files():
    """Inside, a file ends at LIMIT bytes, as on a disk that is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
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
