"""Shape checks whose errors name the argument."""

import mlx.core as mx


def expect_shape(name: str, array: mx.array, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless the array has this shape; None accepts any size. Costs no synchronisation."""
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {tuple(array.shape)} came, accepted is ({wanted})")


def as_rows(name: str, surface: mx.array, width: int, height: int) -> mx.array:
    """A surface [B, W*H] or [B, H, W] as rows [B, W*H]; any other shape is a ValueError."""
    if surface.ndim == 3:
        expect_shape(name, surface, (None, height, width))
        return surface.reshape(surface.shape[0], height * width)
    if surface.ndim != 2 or surface.shape[1] != width * height:
        raise ValueError(
            f"{name}: shape {tuple(surface.shape)} came, accepted are (B, {width * height}) and (B, {height}, {width})"
        )
    return surface
