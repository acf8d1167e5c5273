"""Reading safetensors files, with checks before memory is allocated."""

import math
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from .strict_json import parse_json

WARN_BYTES = 2 * 2**30
# NumPy has no bfloat16, which is read as the upper 16 bits of a float32. (MLX's reader has no float64.)
_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4",
        "U8": "<u1",
    }.items()
}  # fmt: skip
# Bits of a number in the other dtypes of safetensors files, which are not read.
_OTHER_BITS = {
    "BOOL": 8, "I8": 8, "I16": 16, "U16": 16, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
LOADED = FLOATS[1:]  # of weights; MLX's reader has no float64
# The header's size is read from the file; the limit keeps a damaged file from causing a huge read.
_HEADER_LIMIT = 100 * 2**20
_MOST_DIMENSIONS = 64  # NumPy's limit


class Header(NamedTuple):
    """The header of a safetensors file: shape, dtype and first byte by key; metadata; total size as float32."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    offsets: dict[str, int]
    metadata: dict[str, str]
    float32_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a safetensors file, is cut off, or is inconsistent; the message says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(length) if 2 <= length <= _HEADER_LIMIT else b""
    if len(start) < 8 or not text or not text.startswith(b"{"):
        raise ValueError(f"{path}: is not a safetensors file (it starts with {start!r})")
    if len(text) < length:
        raise ValueError(f"{path}: is cut off inside its header ({size} bytes)")
    try:
        entries: dict[str, Any] = parse_json(text)
        metadata = entries.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata  # MLX writes null where it has none
        shapes = {key: _whole_numbers(entry["shape"]) for key, entry in entries.items()}
        dtypes = {key: str(entry["dtype"]) for key, entry in entries.items()}
        ranges = {key: _whole_numbers(entry["data_offsets"]) for key, entry in entries.items()}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("its __metadata__ is not an object of strings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its header does not parse: {error!r}") from error
    unknown = [f"{key} ({dtype})" for key, dtype in dtypes.items() if dtype not in _DTYPES and dtype not in _OTHER_BITS]
    if unknown:
        raise ValueError(f"{path}: {listing(unknown)} have a dtype that is not known; accepted are {', '.join(_DTYPES)}")
    for key, limits in ranges.items():
        if len(limits) != 2 or len(shapes[key]) > _MOST_DIMENSIONS or max(shapes[key], default=0) > sys.maxsize:
            raise ValueError(f"{path}: {key} has an impossible shape or offsets: {shapes[key]}, {limits}")
        begin, end = limits
        if (
            min(shapes[key], default=0) < 0
            or begin < 0
            or 8 * (end - begin) != math.prod(shapes[key]) * _bits(dtypes[key])
        ):
            raise ValueError(
                f"{path}: {key} of shape {shapes[key]} ({dtypes[key]}) does not fit its {end - begin} bytes"
            )
        if 8 + length + end > size:
            raise ValueError(f"{path}: is cut off: {key} ends at byte {8 + length + end}, the file has {size}")
    edges = sorted((limits[0], limits[1]) for limits in ranges.values())
    if any(end != begin for (_, end), (begin, _) in pairwise([(0, 0), *edges, (size - 8 - length, size)])):
        raise ValueError(f"{path}: its tensors overlap, or some bytes belong to no tensor")
    offsets = {key: 8 + length + limits[0] for key, limits in ranges.items()}
    return Header(shapes, dtypes, offsets, metadata, 4 * sum(math.prod(shape) for shape in shapes.values()))


def _bits(dtype: str) -> int:
    return _OTHER_BITS[dtype] if dtype in _OTHER_BITS else 8 * _DTYPES[dtype].itemsize


def check_dtypes(path: Path, dtypes: Mapping[str, str], accepted: Iterable[str]) -> None:
    """Raise ValueError that lists the tensors of a safetensors file whose dtype is not accepted."""
    others = [f"{key} ({dtype})" for key, dtype in dtypes.items() if dtype not in accepted]
    if others:
        raise ValueError(f"{path}: {listing(others)} have a dtype that is not accepted; accepted are {', '.join(accepted)}")


def load_arrays(path: Path, accepted: Iterable[str] = LOADED) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The arrays of a safetensors file in MLX, in their stored shapes and dtypes, not yet read, and the file's metadata.

    Raises:
        FileNotFoundError, ValueError: as `read_header`; also for dtypes that are not accepted.
    """
    header = read_header(path)  # its errors say what is wrong with a damaged file; those of MLX's reader do not
    check_dtypes(path, header.dtypes, accepted)
    try:
        return cast(dict[str, mx.array], mx.load(str(path))), header.metadata
    except RuntimeError as error:
        raise ValueError(f"{path}: MLX cannot read it: {error}") from error


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError(f"{values!r} is not a list of integers")
    return tuple(values)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises as `read_header`."""
    return read_header(path).metadata


def check_memory(path: Path, needed: int, available: int | None = None) -> None:
    """Warn if reading a file needs more than 2 GiB, and raise ValueError if it needs more than the machine has.

    Args:
        path: the file, for the message.
        needed: bytes that reading it needs.
        available: bytes of memory; None: the machine's physical memory.
    """
    if available is None:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise ValueError(
            f"{path}: reading it needs about {needed / 2**30:.1f} GiB of memory, this machine has {available / 2**30:.1f}"
        )
    if needed > WARN_BYTES:
        print(f"warning: {path}: reading it needs about {needed / 2**30:.1f} GiB of memory", file=sys.stderr)


def read_tensors(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, in their stored shapes; only those of `keys`, if given.

    Floating-point tensors are converted to float32, because NumPy has no bfloat16. Raises as `read_header` and
    `check_memory`, and ValueError for another dtype, such as bool.
    """
    header = read_header(path)
    # Twice: the stored tensors and their float32 copies.
    check_memory(path, 2 * header.float32_bytes)
    shapes = header.shapes if keys is None else {key: header.shapes[key] for key in keys}
    check_dtypes(path, {key: header.dtypes[key] for key in shapes}, _DTYPES)
    tensors = {}
    for key, shape in shapes.items():
        kind = header.dtypes[key]
        stored = np.fromfile(path, _DTYPES[kind], math.prod(shape), offset=header.offsets[key]).reshape(shape)
        if kind == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        tensors[key] = stored.astype(np.float32, copy=False) if stored.dtype.kind == "f" else stored
    return tensors


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write arrays of any shapes and MLX dtypes to a safetensors file.

    Raises:
        OSError: the file cannot be written. (MLX's own writer, given a path, does not say why.)
    """
    mx.eval(dict(arrays))  # before the file is emptied: arrays that were loaded from it may not have been read yet
    with open(path, "wb") as file:
        mx.save_safetensors(file, dict(arrays), metadata=dict(metadata))


def check_finite(what: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError that lists the tensors (of any shape) with NaN or infinity."""
    bad = [key for key, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"{what}: NaN or infinity in {listing(bad)}")


def check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], config: str = "config.json"
) -> None:
    """Raise ValueError that lists the parameters that are missing in a weights file, unknown, or of another shape than the file `config`
    beside it requires."""
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in expected]
    faults += [
        f"{name} has shape {tuple(found[name])}, {config} requires {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if faults:
        raise ValueError(f"{path} does not fit its {config}: {listing(faults, separator='; ')}")


@contextmanager
def buildable(config: Path) -> Iterator[None]:
    """Inside, layers of sizes from the file `config` are made; sizes that no array can have are refused by its name."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"{config} asks for an array that is larger than any can be: {error}") from error


def as_dtype(tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, mx.array]:
    """Convert NumPy arrays to MLX arrays of the same shapes, in float32, float16 or bfloat16.

    Raises:
        ValueError: a value is too large for float16; names the tensors.
    """
    if dtype == "float16":
        limit = float(np.finfo(np.float16).max)
        large = [key for key, value in tensors.items() if value.size and np.abs(value).max() > limit]
        if large:
            raise ValueError(f"dtype=float16 holds values up to {limit:.0f}, larger ones are in {listing(large)}")
    return {key: mx.array(value).astype(getattr(mx, dtype)) for key, value in tensors.items()}


def listing(names: Iterable[str], most: int = 20, separator: str = ", ") -> str:
    """The first `most` names, joined by the separator, and the number of further ones."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + rest
