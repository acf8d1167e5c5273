"""Safetensors files mapped into memory: an array is read from disk where it is touched. And how they are written."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..tensors import Header, read_header
from .records import DataError

_TYPES = {"F32": "<f4", "I64": "<i8", "U32": "<u4", "U8": "u1"}


def open_arrays(
    path: Path, required: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a safetensors file, read-only and mapped, and its metadata.

    Args:
        path: the file.
        required, optional: names of the arrays with their dtypes in the file: F32, I64, U32 or U8. Others are ignored.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is damaged, or an array is missing or of another dtype; nothing is read before that.
    """
    try:
        header = read_header(path)
    except ValueError as error:  # its text names the file
        raise DataError(str(error), "damaged") from error
    missing = [name for name in required if name not in header.shapes]
    if missing:
        raise DataError(
            f"{path}: has no {', '.join(missing)}; it holds {', '.join(header.shapes) or 'nothing'}", "damaged"
        )
    wanted = {name: dtype for name, dtype in {**required, **(optional or {})}.items() if name in header.shapes}
    wrong = [
        f"{name} is {header.dtypes[name]}, not {dtype}"
        for name, dtype in wanted.items()
        if header.dtypes[name] != dtype
    ]
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}", "damaged")
    return {name: _map(path, header, name) for name in wanted}, dict(header.metadata)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, which holds a copy of the arrays in memory; equal arrays give equal bytes."""
    path.write_bytes(
        save(dict(arrays), dict(metadata or {}))
    )  # save_file would make a file that its owner alone may read


def _map(path: Path, header: Header, name: str) -> NDArray[Any]:
    shape, dtype = header.shapes[name], np.dtype(_TYPES[header.dtypes[name]])
    if math.prod(shape) == 0:  # an empty range cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=header.offsets[name], shape=shape)
