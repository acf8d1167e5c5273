"""The files of a text corrector: text_corrector.json, its sizes, and text_corrector.safetensors. Its tokeniser is the text decoder's."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..checks import MOST, check_int
from ..config import read_mapping
from ..files import resolve
from ..nn.bert import ACTIVATIONS
from ..nn.t5 import MOST_DISTANCE, T5Settings
from ..strict_json import write_json
from ..tensors import buildable, check_shapes, load_arrays, read_header, save_arrays
from .text_corrector import CorrectorSettings, TextCorrector

RECORD, TENSORS = "text_corrector.json", "text_corrector.safetensors"


def read_corrector(folder: Path) -> TextCorrector | None:
    """The corrector in a model folder, in evaluation mode; None if the folder holds none. Weights are read when they are first used.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, or they do not fit each other; names the file, and the fields or tensors.
    """
    record_file, path = (resolve(folder, name) for name in (RECORD, TENSORS))
    there = [file.is_file() for file in (record_file, path)]
    if not any(there):
        return None
    if not all(there):
        raise FileNotFoundError(f"{folder / (RECORD, TENSORS)[there.index(False)]} is missing: a text corrector has {RECORD} and {TENSORS}")
    settings = _settings(record_file, read_mapping(record_file))
    shapes = read_header(path).shapes
    layers = {name.split(".")[2] for name in shapes if name.startswith("decoder.layers.")}
    if len(layers) != settings.t5.layers:  # before they are built
        raise ValueError(f"{path} does not fit its {RECORD}: layers is {settings.t5.layers}, the file has {len(layers)}")
    with buildable(record_file):
        corrector = TextCorrector(settings)
    check_shapes(path, shapes, {name: array.shape for name, array in _parameters(corrector).items()}, RECORD)
    tensors, _ = load_arrays(path)
    corrector.load_weights(list(tensors.items()))
    corrector.eval()
    return corrector


def corrector_writers(corrector: TextCorrector) -> dict[str, Callable[[Path], Any]]:
    """What writes the corrector's files, by their names, for `files.write_folder`."""
    record = dataclasses.asdict(corrector.settings)
    return {
        TENSORS: lambda path: save_arrays(path, _parameters(corrector), {"format": "mlx"}),
        RECORD: lambda path: write_json(path, record),
    }


def _parameters(corrector: TextCorrector) -> dict[str, Any]:
    return dict(tree_flatten(corrector.parameters()))


def _settings(path: Path, record: Mapping[str, Any]) -> CorrectorSettings:
    try:
        values = dict(record)
        t5 = T5Settings(**values.pop("t5"))
        settings = CorrectorSettings(**values, t5=t5)
        for part in (settings, t5):
            for each in dataclasses.fields(part):
                if each.type is int:
                    check_int(each.name, getattr(part, each.name), 0 if each.name in ("start", "end") else 1, MOST_DISTANCE if each.name == "max_distance" else MOST)
        if t5.activation not in ACTIVATIONS or max(settings.start, settings.end) >= t5.vocab_size or not 0 <= t5.dropout < 1:
            raise ValueError("activation, start, end or dropout is out of range")
        if not all(isinstance(value, bool) for value in (t5.gated, t5.tied)) or not isinstance(t5.eps, float) or not 0 < t5.eps < 1:
            raise ValueError("gated, tied or eps is out of range")
        if t5.dim % t5.heads or not t5.max_distance > t5.buckets // 2 > 0:
            raise ValueError("heads do not divide dim, or buckets and max_distance do not fit")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a text corrector: {error}") from error
    return settings
