"""Reading safetensors files as memory-mapped arrays, and writing them."""

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
    """Memory-map the arrays of a safetensors file read-only, in the shapes that its header gives.

    Args:
        path: the file.
        required, optional: name -> dtype in the file: F32, I64, U32 or U8. Other arrays are ignored.

    Returns:
        The arrays by name, and the file's metadata.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is damaged, or an array is missing or of another dtype. Checked before any array is mapped.
    """
    try:
        header = read_header(path)
    except ValueError as error:  # the message names the file
        raise DataError(str(error), "damaged") from error
    missing = [name for name in required if name not in header.shapes]
    if missing:
        raise DataError(
            f"{path}: has no {', '.join(missing)}; it holds {', '.join(header.shapes) or 'nothing'}", "damaged"
        )
    dtypes = {name: dtype for name, dtype in {**required, **(optional or {})}.items() if name in header.shapes}
    wrong = [
        f"{name} is {header.dtypes[name]}, not {dtype}"
        for name, dtype in dtypes.items()
        if header.dtypes[name] != dtype
    ]
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}", "damaged")
    return {name: _map(path, header, name) for name in dtypes}, dict(header.metadata)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of any shape to a safetensors file, through a copy in memory; equal arrays give equal bytes."""
    # Not save_file, which creates a file that only its owner can read.
    path.write_bytes(save(dict(arrays), dict(metadata or {})))


def _map(path: Path, header: Header, name: str) -> NDArray[Any]:
    shape, dtype = header.shapes[name], np.dtype(_TYPES[header.dtypes[name]])
    if math.prod(shape) == 0:  # mmap refuses an empty range
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=header.offsets[name], shape=shape)
