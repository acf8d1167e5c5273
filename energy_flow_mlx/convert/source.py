"""Reading the source of a conversion: an exported folder, a safetensors file, or a `.pt` checkpoint."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..strict_json import read_json
from ..tensors import check_finite, check_memory, read_header, read_tensors
from .training import check_training

EXPORT_HINT = (
    "reading a .pt file needs torch: pip install torch, or run scripts/export_torch_checkpoint.py on a machine with "
    "torch and convert the folder that it writes"
)


class Source(NamedTuple):
    """A torch checkpoint in NumPy.

    tensors: float32, by prefixed torch key, in torch's shapes.
    moments: `<key>.exp_avg` and `<key>.exp_avg_sq` in the tensor's shape, `<key>.step` one number.
    config: torch's configuration; training: the other entries of the checkpoint.
    low_precision: the half-precision dtypes in the file.
    """

    tensors: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    config: dict[str, Any]
    training: dict[str, Any]
    low_precision: tuple[str, ...]


def read_source(path: Path, mapper: Path | None, config: Path | None, with_optimizer: bool) -> Source:
    """Read a torch checkpoint and, if given, the mapper file.

    Args:
        path: a folder written by the export script, a .safetensors file, or a PyTorch checkpoint.
        mapper: a file with the tensors input_mapper.* and output_collector.*; .pt or .safetensors.
        config: the torch configuration as JSON; None: the one in the checkpoint, or config.json beside the file.
        with_optimizer: read the moments too.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, holds NaN or infinity, or repeats a tensor; names file and tensors.
    """
    if path.is_dir():
        source = _read_folder(path, config, with_optimizer)
    elif path.name == "model.safetensors" and path.with_name("training.json").is_file():
        # A file in an exported folder: the other files belong to it.
        source = _read_folder(path.parent, config, with_optimizer)
    elif path.suffix == ".safetensors":
        source = _read_file(path, config)
    else:
        source = _read_checkpoint(path, config, with_optimizer)
    if mapper is not None:
        more, low = _read_mapper(mapper)
        unknown = [key for key in more if not key.startswith(("input_mapper.", "output_collector."))]
        if unknown:
            raise ValueError(
                f"{mapper}: unknown keys {', '.join(unknown)}; accepted are input_mapper.* and output_collector.*"
            )
        duplicates = sorted(more.keys() & source.tensors.keys())
        if duplicates:
            raise ValueError(f"{mapper}: {', '.join(duplicates)} are in {path} too")
        source.tensors.update(more)
        source = source._replace(low_precision=tuple(sorted({*source.low_precision, *low})))
    check_finite(str(path), source.tensors)
    check_finite(f"{path}, optimiser", source.moments)
    return source


def _low(dtypes: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted({dtype for dtype in dtypes.values() if dtype in ("F16", "BF16")}))


def _read_folder(path: Path, config: Path | None, with_optimizer: bool) -> Source:
    missing = [name for name in ("model.safetensors", "config.json") if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {' and '.join(missing)} missing; a folder written by the export script holds both"
        )
    if "untrained_parts" in read_json(path / "config.json"):
        raise ValueError(f"{path}: is a model folder of this package already; --to-torch converts it back")
    source = _read_file(path / "model.safetensors", config)
    optimizer, training = path / "optimizer.safetensors", path / "training.json"
    moments = read_tensors(optimizer) if with_optimizer and optimizer.is_file() else {}
    record = read_json(training) if training.is_file() else None
    return source._replace(moments=moments, training=check_training(training, record))


def _read_file(path: Path, config: Path | None) -> Source:
    low = _low(read_header(path).dtypes)
    config = config or path.with_name("config.json")
    if not config.is_file():
        raise FileNotFoundError(
            f"{config}: no such file; put the torch configuration beside {path.name}, or name it with --config"
        )
    return Source(read_tensors(path), {}, read_json(config), {}, low)


def _read_checkpoint(path: Path, config: Path | None, with_optimizer: bool) -> Source:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    require_torch(path)
    check_memory(path, 2 * path.stat().st_size)
    from ..export_torch_checkpoint import load_checkpoint

    exported = load_checkpoint(path, with_optimizer)
    # The tensors are only memory-mapped so far; as float32, those of a half-precision file take twice its size.
    numbers = sum(tensor.numel() for part in (exported.tensors, exported.moments) for tensor in part.values())
    check_memory(path, 8 * numbers)
    low = _low_torch(exported.tensors)
    values = exported.config if config is None else read_json(config)
    training = check_training(path, exported.training)
    return Source(_to_numpy(exported.tensors), _to_numpy(exported.moments), values, training, low)


def _read_mapper(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    if path.suffix == ".safetensors":
        return read_tensors(path), _low(read_header(path).dtypes)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    require_torch(path)
    from ..export_torch_checkpoint import load_mapper

    tensors = load_mapper(path)
    return _to_numpy(tensors), _low_torch(tensors)


def require_torch(path: Path, hint: str = EXPORT_HINT) -> None:
    """Raise ValueError with a hint if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"{path}: {hint}")


def _to_numpy(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        key: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for key, tensor in tensors.items()
    }


def _low_torch(tensors: dict[str, Any]) -> tuple[str, ...]:
    names = {"torch.float16": "F16", "torch.bfloat16": "BF16"}
    return tuple(sorted({names[str(tensor.dtype)] for tensor in tensors.values() if str(tensor.dtype) in names}))
