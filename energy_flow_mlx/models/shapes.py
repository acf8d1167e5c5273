"""Arguments as arrays, shape checks whose errors name the argument, and rows of length 1."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Array = Any  # mx.array, np.ndarray, or nested lists of numbers


def as_array(name: str, values: Array) -> mx.array:
    """`values` in MLX; of NumPy arrays and lists, numbers with a fraction become float32.

    Raises:
        TypeError: they are no numbers, or lists of several lengths; names the argument. Of texts it names the calls that take them.
    """
    if isinstance(values, mx.array):
        return values
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind == "U":
        raise TypeError(
            f"{name}: texts came, accepted are numbers; model.trace(texts) and model.text_encoder.encode(texts) take texts, and a "
            "teacher's embed(texts) makes embeddings of them"
        )
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: {type(values).__name__} came, accepted is an array of numbers: of MLX, of NumPy, or lists of one length")
    return mx.array(array.astype(np.float32) if array.dtype.kind == "f" else array)


def expect_rows(name: str, array: mx.array) -> None:
    """Raise ValueError if a batch holds nothing."""
    if array.ndim and array.shape[0] == 0:
        raise ValueError(f"{name}: shape {tuple(array.shape)} came, accepted is a batch of at least one row")


def expect_shape(name: str, array: mx.array, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless the array has this shape; None accepts any size. Costs no synchronisation."""
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {tuple(array.shape)} came, accepted is ({wanted})")


def as_rows(name: str, surface: Array, width: int, height: int) -> mx.array:
    """A surface [B, W*H] or [B, H, W] as rows [B, W*H]; any other shape, and a batch of none, is a ValueError."""
    surface = as_array(name, surface)
    expect_rows(name, surface)
    if surface.ndim == 3:
        expect_shape(name, surface, (None, height, width))
        return surface.reshape(surface.shape[0], height * width)
    if surface.ndim != 2 or surface.shape[1] != width * height:
        raise ValueError(
            f"{name}: shape {tuple(surface.shape)} came, accepted are (B, {width * height}) and (B, {height}, {width})"
        )
    return surface


def unit_rows(rows: Array) -> NDArray[np.float32]:
    """Rows [N, E] scaled to length 1; a row of zeros stays one, so that its cosine is 0."""
    found = np.array(rows, dtype=np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-8)
