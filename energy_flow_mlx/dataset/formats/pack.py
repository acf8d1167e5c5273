"""The `.pt` pack of the PyTorch code, and `pack.safetensors`, to which the export script converts it without loss.

| | `.pt` | `pack.safetensors` |
|---|---|---|
| embeddings | `input_embeddings`, `target_embeddings` [N, E] | the same |
| texts | `text_pairs`: N pairs | `texts` [bytes], UTF-8 of input, target, input, ...; `text_offsets` [2N + 1] |
| origin | `generation_info` | the same, as JSON in the metadata |

Only `.pt` needs torch.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...strict_json import parse_json, to_json
from ..arrays import open_arrays, save_arrays
from ..records import DataError, Place, Placed, Record, check_file

HOLDS = frozenset({"input", "target", "input_embedding", "target_embedding"})


class Pack(NamedTuple):
    """The arrays of a pack."""

    inputs: NDArray[Any]  # [N, E]
    targets: NDArray[Any]  # [N, E]
    texts: NDArray[np.uint8]  # [bytes], UTF-8 of input, target, input, ...
    offsets: NDArray[np.int64] | None  # [2N + 1], where each text begins, and the end of the last; None: no texts
    info: dict[str, Any]


def read(path: Path) -> Iterator[Placed]:
    """Iterate over the pairs of a pack of either format. Raises as `load`."""
    pack = load(path)
    for index in range(len(pack.inputs)):
        place = Place(path, "row", index + 1)
        texts: tuple[str | None, str | None] = (None, None)
        if pack.offsets is not None:
            try:
                first, second = (_text(pack, 2 * index + part) for part in (0, 1))
            except UnicodeDecodeError as error:
                raise place.error("broken UTF-8", f"the text is not UTF-8: {error.reason}") from error
            texts = first, second
        yield (
            place,
            Record(
                *texts,
                input_embedding=np.asarray(pack.inputs[index], dtype=np.float32),
                target_embedding=np.asarray(pack.targets[index], dtype=np.float32),
            ),
        )


def load(path: Path) -> Pack:
    """Load the arrays of a pack; those of a safetensors file are memory-mapped.

    Raises:
        FileNotFoundError: no such file.
        DataError: torch is needed but not installed, the file is damaged, or the shapes of its arrays contradict each
            other.
    """
    check_file(path)
    pack = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    shapes = pack.inputs.shape, pack.targets.shape
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise DataError(
            f"{path}: input_embeddings {list(shapes[0])} and target_embeddings {list(shapes[1])} must both be [N, E]",
            "shapes",
        )
    if pack.offsets is not None:
        offsets, count = pack.offsets, 2 * len(pack.inputs) + 1
        if (
            offsets.shape != (count,)
            or offsets[0] != 0
            or offsets[-1] != len(pack.texts)
            or (np.diff(offsets) < 0).any()
        ):
            raise DataError(
                f"{path}: text_offsets must be [{count}], ascending from 0 to the {len(pack.texts)} bytes of texts, got {list(offsets.shape)}",
                "shapes",
            )
    return pack


def write(path: Path, records: Iterable[Placed], info: Mapping[str, Any], suffix: str) -> int:
    """Write a pack; returns the number of pairs. `suffix` is .pt or .safetensors. All pairs are held in memory.

    Raises:
        DataError: a record has no embedding of its input or its target, or torch is needed but not installed.
    """
    if suffix == ".pt":
        _require_torch(path)
    inputs: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.float32]] = []
    texts: list[tuple[str | None, str | None]] = []
    for place, record in records:
        if record.input_embedding is None or record.target_embedding is None:
            name = "input" if record.input_embedding is None else "target"
            raise place.error(
                "no embedding",
                f"has no embedding of its {name}, which a pack needs: build a dataset with a teacher and convert it",
            )
        inputs.append(record.input_embedding)
        targets.append(record.target_embedding)
        texts.append((record.input, record.target))
    has_texts = [input is not None and target is not None for input, target in texts]
    if any(has_texts) and not all(has_texts):
        raise DataError(
            f"{path}: {has_texts.count(False)} of {len(texts)} pairs lack a text; a pack stores all texts or none",
            "no text",
        )
    values: dict[str, Any] = (
        {"input_embeddings": np.stack(inputs), "target_embeddings": np.stack(targets)} if inputs else {}
    )
    if not values:
        return 0
    if suffix == ".pt":
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in values.items()}
        with path.open("wb") as file:  # given a path, torch does not say why it cannot write
            torch.save({**tensors, "text_pairs": texts if all(has_texts) else [], "generation_info": dict(info)}, file)
    else:
        if all(has_texts):
            values["texts"], values["text_offsets"] = join_texts(text or "" for pair in texts for text in pair)
        save_arrays(path, values, {"generation_info": to_json(dict(info), indent=None)})
    return len(texts)


def join_texts(texts: Iterable[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Concatenate n texts: their UTF-8 bytes [bytes], and offsets [n + 1] where each begins and the last ends."""
    encoded = [text.encode() for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in encoded], dtype=np.int64)]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def _text(pack: Pack, index: int) -> str:
    assert pack.offsets is not None
    return pack.texts[pack.offsets[index] : pack.offsets[index + 1]].tobytes().decode()


def _load_safetensors(path: Path) -> Pack:
    arrays, metadata = open_arrays(
        path, {"input_embeddings": "F32", "target_embeddings": "F32"}, {"texts": "U8", "text_offsets": "I64"}
    )
    try:
        info = parse_json(metadata.get("generation_info", "{}"))
    except ValueError as error:
        raise DataError(f"{path}: generation_info in its metadata is not JSON: {error}", "shapes") from error
    texts = arrays.get("texts", np.zeros(0, np.uint8))
    return Pack(arrays["input_embeddings"], arrays["target_embeddings"], texts, arrays.get("text_offsets"), info)


def _load_torch(path: Path) -> Pack:
    _require_torch(path)
    from ...export_torch_checkpoint import load_pack

    try:
        pack = load_pack(path)
    except ValueError as error:  # the message names the file
        raise DataError(str(error), "no pack") from error
    tensors = {name: tensor.numpy() for name, tensor in pack.tensors.items()}
    texts = tensors.get("texts", np.zeros(0, np.uint8))
    return Pack(
        tensors["input_embeddings"], tensors["target_embeddings"], texts, tensors.get("text_offsets"), pack.info
    )


def _require_torch(path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise DataError(
            f"{path}: a .pt pack needs torch: pip install torch, or run scripts/export_torch_checkpoint.py PACK.pt OUT on a machine "
            "with torch and use OUT/pack.safetensors",
            "no torch",
        )
