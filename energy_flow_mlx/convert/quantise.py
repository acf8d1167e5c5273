"""Model folders with quantised weights, for inference."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..files import resolve, write_folder
from ..models.energy_flow import EnergyFlow
from ..nn.quantised import QuantisedMatrix
from ..tensors import as_dtype
from .source import read_json
from .to_mlx import check_empty


def is_model_folder(path: Path) -> bool:
    """Whether this is a model folder of this package, rather than an export of a torch checkpoint."""
    config = resolve(path, "config.json")
    return config.is_file() and "untrained_parts" in read_json(config)


def quantise_folder(source: Path, folder: Path, bits: int, dtype: str) -> tuple[list[str], list[str]]:
    """Write the model in the folder `source` with quantised weights to `folder`.

    Args:
        bits: see `EnergyFlow.quantise`.
        dtype: of the other weights, and of the scales.

    Returns:
        Notes, and the names of the written files.

    Raises:
        FileNotFoundError, ValueError: `source` is incomplete or quantised already, or `folder` is not empty.
    """
    check_empty(folder)
    model = EnergyFlow.from_pretrained(source)
    if model.quantised_bits:
        raise ValueError(f"{source}: its weights are quantised already, to {model.quantised_bits} bits")
    weights = {name: np.array(array.astype(mx.float32)) for name, array in model.flow_parameters().items()}
    model.load_weights(list(as_dtype(weights, dtype).items()), strict=False)
    notes = [quantised(model, bits)]
    writers = model.writers()
    record = resolve(source, "conversion.json")
    if record.is_file():  # of a checkpoint that came from PyTorch
        writers[record.name] = lambda path: shutil.copyfile(record, path)
    write_folder(folder, writers)
    return notes, list(writers)


def quantised(model: EnergyFlow, bits: int) -> str:
    """Quantise a model in place, and say what it saves."""
    before = _bytes(model)
    model.quantise(bits)
    matrices = sum(isinstance(module, QuantisedMatrix) for module in model.modules())
    return f"quantised: {matrices} matrices to {bits} bits; weights of {before / 1e6:.2f} MB take {_bytes(model) / 1e6:.2f} MB"


def _bytes(model: EnergyFlow) -> int:
    return sum(array.nbytes for array in model.flow_parameters().values())
