"""The files of a model: config.json and model.safetensors, and which others there may be; where a folder or the hub has them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..checks import MOST, whole_number
from ..config import ModelConfig
from ..files import resolve
from ..nn.quantised import BITS
from ..tensors import LOADED, load_arrays, read_metadata, save_arrays
from .corrector_files import RECORD as CORRECTOR_RECORD
from .corrector_files import TENSORS as CORRECTOR_TENSORS
from .decoder_files import RECORD, TENSORS, TOKENISER

FILES = ("config.json", "model.safetensors")
OPTIONAL_FILES = ("tokenizer.json", RECORD, TENSORS, TOKENISER, CORRECTOR_RECORD, CORRECTOR_TENSORS)

_LAYERS = {"carrier.gru.": "carrier_num_layers", "text_encoder.transformer_encoder.layers.": "text_num_layers"}


class Weights(NamedTuple):
    """What model.safetensors holds: arrays by name, not yet read; training steps; bits of a number in quantised matrices, 0: there is none."""

    arrays: Mapping[str, mx.array]
    trained_steps: int
    quantised_bits: int


def model_folder(spec: str | os.PathLike[str]) -> Path:
    """The folder of a model, `spec` itself or, for the hub id OWNER/NAME, the hub's cache.

    What lies beside folders that exist is a folder, not an id: a missing runs/tiny is not looked for on the hub if there is a runs/.

    Raises:
        FileNotFoundError: the folder or one of its files is missing, or the download failed.
        ValueError: the repository lacks a file.
    """
    from ..model_files import is_repository, locate

    name, folder = os.fspath(spec), Path(spec)
    if is_repository(name) and not folder.parent.exists():
        return locate("folder", name, FILES, optional=OPTIONAL_FILES)
    for file in FILES:
        if not resolve(folder, file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing: a model folder holds {' and '.join(FILES)}")
    return folder


def read_weights(path: Path, config: ModelConfig) -> Weights:
    """The weights in the file at `path`, of as many layers as `config` has.

    Raises:
        FileNotFoundError, ValueError: as `tensors.load_arrays`; or layers or metadata are not accepted.
    """
    quantised = read_metadata(path).get("quantised_bits")
    arrays, metadata = load_arrays(path, LOADED if quantised is None else (*LOADED, "U32"))
    _check_layers(path, config, arrays)
    told = metadata.get("trained_steps", "0")
    steps = whole_number(told)
    if steps is None or steps > MOST:
        raise ValueError(f"{path}: trained_steps in its metadata is {told[:80]!r}; accepted is a whole number up to {MOST}")
    return Weights(arrays, steps, 0 if quantised is None else _bits_in(path, quantised))


def save_weights(path: str | os.PathLike[str], weights: Weights) -> None:
    """Write model.safetensors. Raises as `tensors.save_arrays`."""
    metadata = {"format": "mlx", "trained_steps": str(weights.trained_steps)}
    if weights.quantised_bits:
        metadata["quantised_bits"] = str(weights.quantised_bits)
    save_arrays(path, weights.arrays, metadata)


def _check_layers(path: Path, config: ModelConfig, names: Iterable[str]) -> None:
    """Raise ValueError if the weights `names` in the file at `path` are of another number of layers than `config` has."""
    found = {prefix: {name.split(".")[prefix.count(".")] for name in names if name.startswith(prefix)} for prefix in _LAYERS}
    faults = [
        f"{field} is {getattr(config, field)}, the file has {len(found[prefix])} of {prefix}*"
        for prefix, field in _LAYERS.items()
        if len(found[prefix]) != getattr(config, field)
    ]
    if faults:
        raise ValueError(f"{path} does not fit its config.json: {'; '.join(faults)}")


def _bits_in(path: Path, text: str) -> int:
    accepted = [str(bits) for bits in BITS]
    if text not in accepted:
        raise ValueError(f"{path}: quantised_bits in its metadata is {text[:80]!r}; accepted are {', '.join(accepted)}")
    return int(text)
