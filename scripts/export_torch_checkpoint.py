"""Export a checkpoint or a data pack of the PyTorch energy-flow trainer to safetensors and JSON.

    python export_torch_checkpoint.py CKPT.pt OUT/ [--mapper FILE]
    python export_torch_checkpoint.py PACK.pt OUT/

Needs only torch (2.1 or later) and safetensors, not even NumPy: copy this file beside the PyTorch code. It never runs
pickled code. It writes to OUT

| file | contents |
|---|---|
| `model.safetensors` | neuron.*, carrier.*, and if present text_encoder.*, text_decoder.*, input_mapper.*, output_collector.* |
| `optimizer.safetensors` | AdamW's `<key>.exp_avg`, `<key>.exp_avg_sq`, `<key>.step`, if the checkpoint has them |
| `config.json` | the checkpoint's configuration, dtypes as text |
| `training.json` | the other entries: epoch, step, parameter groups, scheduler, history; tied tensors; key order |

`python -m energy_flow_mlx.convert OUT/ --to DIR` converts these without torch. For a data pack it writes
`pack.safetensors`, which `python -m energy_flow_mlx.dataset` reads.
"""

from __future__ import annotations  # the PyTorch code may run on Python 3.9

import argparse
import ctypes
import json
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

REQUIRED = ("config", "model_state_dict")
# Checkpoint entry -> prefix of its keys in the export, in the order in which the trainer's optimiser numbers them.
PARTS = {"model_state_dict": "", "text_encoder_state_dict": "text_encoder.", "text_decoder_state_dict": "text_decoder."}
TIED_TO = "text_decoder.t5_model.shared.weight"
TIED = tuple(
    f"text_decoder.t5_model.{name}.weight" for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
)
MAPPER = ("input_mapper.", "output_collector.")
# Safetensors' names of the dtypes of weights, moments, step counts and texts.
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8",
}  # fmt: skip
WARN_BYTES = 2 * 2**30
RESAVE = (
    "No code was run. If you trust the file, load it in the PyTorch code with weights_only=False and save it again with only tensors, "
    "numbers, text, lists and dicts (float(best_loss) instead of a NumPy scalar, dict(config) instead of a config object)."
)


class Exported(NamedTuple):
    """The contents of a checkpoint.

    tensors: in their own shapes, by prefixed key.
    moments: `<key>.exp_avg` and `<key>.exp_avg_sq` in the tensor's shape, `<key>.step` one number.
    config: the configuration; training: the other entries.
    """

    tensors: Tensors
    moments: Tensors
    config: dict[str, Any]
    training: dict[str, Any]


def load_checkpoint(path: Path, with_optimizer: bool = True) -> Exported:
    """Read a checkpoint without running pickled code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a checkpoint, is cut off, contains code, or lacks an entry; the message says which.
    """
    return take_checkpoint(path, load_pickle(path), with_optimizer)


def take_checkpoint(path: Path, loaded: dict[str, Any], with_optimizer: bool = True) -> Exported:
    """Extract a checkpoint from the contents of the `.pt` file at `path`. Raises as `load_checkpoint`."""
    missing = [name for name in REQUIRED if not isinstance(loaded.get(name), dict)]
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}; it holds {', '.join(map(str, loaded))}")
    tensors: Tensors = {}
    order: list[str] = []
    lengths = []  # length of `order` after each part: the possible numbers of parameters in the optimiser
    ties: dict[str, str] = {}
    for entry, prefix in PARTS.items():
        for name, tensor in state_dict(path, entry, loaded.get(entry) or {}).items():
            key = prefix + name
            if key in TIED and TIED_TO in tensors and torch.equal(tensor, tensors[TIED_TO]):
                ties[key] = TIED_TO
            else:
                tensors[key] = tensor
                order.append(key)
        lengths.append(len(order))
    rest = {
        name: plain(value) for name, value in loaded.items() if name not in (*PARTS, *REQUIRED, "optimizer_state_dict")
    }
    training = {**rest, "tied": ties, "key_order": order}
    moments: Tensors = {}
    optimizer = loaded.get("optimizer_state_dict")
    if optimizer and with_optimizer:
        moments = name_moments(path, optimizer, order, lengths, tensors)
        training["param_groups"] = plain(optimizer["param_groups"])
    return Exported(tensors, moments, plain(loaded["config"]), training)


class Pack(NamedTuple):
    """A data pack.

    tensors: input_embeddings and target_embeddings [N, E] and, if there are texts, texts [bytes], UTF-8 of input,
        target, input, ..., and text_offsets [2N + 1], where each text begins and the last ends.
    info: the pack's generation_info.
    """

    tensors: Tensors
    info: dict[str, Any]


def is_pack(loaded: dict[str, Any]) -> bool:
    """Whether the contents of a `.pt` file are a data pack."""
    return "input_embeddings" in loaded or "target_embeddings" in loaded


def load_pack(path: Path) -> Pack:
    """Read a data pack without running pickled code. Raises as `load_checkpoint`."""
    return take_pack(path, load_pickle(path))


def take_pack(path: Path, loaded: dict[str, Any]) -> Pack:
    """Extract a pack from the contents of the `.pt` file at `path`. Raises ValueError if its parts are inconsistent."""
    tensors: Tensors = {}
    for name in ("input_embeddings", "target_embeddings"):
        value = loaded.get(name)
        if not isinstance(value, torch.Tensor) or value.ndim != 2 or not value.is_floating_point():
            got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{path}: {name} must be a floating tensor [N, E], got {got}")
        tensors[name] = value.float().contiguous()
    pairs = loaded.get("text_pairs") or []
    if not isinstance(pairs, (list, tuple)):
        raise ValueError(f"{path}: text_pairs must be a list of pairs of texts, got {type(pairs).__name__}")
    if pairs:
        texts = [text for pair in pairs if isinstance(pair, (list, tuple)) for text in pair if isinstance(text, str)]
        count = len(tensors["input_embeddings"])
        if len(pairs) != count or len(texts) != 2 * count:
            raise ValueError(
                f"{path}: text_pairs must be {count} pairs of texts, one per embedding, got {len(pairs)} entries"
            )
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: text_pairs holds a text that is not valid Unicode: {error}") from error
        tensors["texts"] = torch.tensor(bytearray(b"".join(encoded)), dtype=torch.uint8)
        tensors["text_offsets"] = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    info = loaded.get("generation_info")
    return Pack(tensors, plain(info) if isinstance(info, dict) else {})


def load_mapper(path: Path) -> Tensors:
    """Read a state dict with keys input_mapper.* and output_collector.*, from `.pt` or safetensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, empty, or has other keys; names them.
    """
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: is damaged or not a safetensors file: {error}") from error
    else:
        tensors = state_dict(path, "the file", load_pickle(path))
    unknown = [key for key in tensors if not key.startswith(MAPPER)]
    if unknown or not tensors:
        raise ValueError(
            f"{path}: unknown keys {', '.join(unknown[:8]) or '(it is empty)'}; "
            "accepted are input_mapper.* and output_collector.*"
        )
    return tensors


def load_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a `.pt` file, with tensors on the CPU. Raises as `load_checkpoint`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        magic = file.read(4)
    zipped = magic == b"PK\x03\x04"
    if not zipped and magic[:1] != b"\x80":
        raise ValueError(f"{path}: is not a PyTorch file (it starts with {magic!r})")
    if zipped and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: is cut off ({path.stat().st_size} bytes, and its table of contents at the end is missing)"
        )
    if path.stat().st_size > WARN_BYTES:
        print(
            f"warning: {path} is {path.stat().st_size / 2**30:.1f} GiB; reading it may need as much memory",
            file=sys.stderr,
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            reason = str(error).split("Please file")[0].split("\n\t(1)")[-1].strip().splitlines()
            raise ValueError(f"{path}: holds objects other than tensors and plain values, which cannot be loaded without running code. "
                             f"{RESAVE} torch's error: {' '.join(reason[:6])}") from error  # fmt: skip
        raise ValueError(f"{path}: is damaged or not a PyTorch file: {error}") from error
    except Exception as error:  # torch raises many kinds of errors for damaged files
        raise ValueError(f"{path}: is damaged or not a PyTorch file: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: holds a {type(loaded).__name__}, accepted is a dictionary")
    return loaded


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def state_dict(path: Path, entry: str, values: dict[str, Any]) -> Tensors:
    """Check that `values`, the state dict in `entry`, holds only dense tensors whose storage is in the file.

    Raises:
        ValueError: a value is not a tensor, is sparse, or is larger than its storage; names it.
    """
    others = [str(name) for name, value in values.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"{path}: {entry} is not a state dict: {', '.join(others[:8])} are not tensors")
    # An expanded (stride 0) or sparse tensor takes few bytes in the file, but can have any size in memory.
    oversized = [
        str(name)
        for name, tensor in values.items()
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ]
    if oversized:
        raise ValueError(
            f"{path}: {entry}: {', '.join(oversized[:8])} are sparse or larger than their data in the file; "
            "accepted are tensors saved after .to_dense().contiguous()"
        )
    return dict(values)


def name_moments(
    path: Path, optimizer: dict[str, Any], order: list[str], lengths: list[int], tensors: Tensors
) -> Tensors:
    """Name the entries of AdamW's state dict, which numbers parameters in the order of the modules.

    Args:
        path: the file, for messages.
        optimizer: the state dict.
        order: the keys of the tensors, in the order of the modules.
        lengths: the accepted numbers of parameters.
        tensors: by key; moments must have their shapes.

    Returns:
        `<key>.exp_avg` and `<key>.exp_avg_sq` in the tensor's shape, `<key>.step` one number.

    Raises:
        ValueError: the state dict does not fit the tensors.
    """
    try:
        count = sum(len(group["params"]) for group in optimizer["param_groups"])
        state = {int(index): values for index, values in optimizer["state"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: optimizer_state_dict is not that of a torch optimiser: {error!r}") from error
    if count not in lengths:
        raise ValueError(
            f"{path}: the optimiser has {count} parameters, the modules have {', '.join(map(str, lengths))} (adding one state dict at "
            "a time), so its moments cannot be named; --without-optimizer leaves them out"
        )
    moments: Tensors = {}
    faults = []
    for index, values in state.items():
        key = order[index] if 0 <= index < count else None
        for name in ("exp_avg", "exp_avg_sq", "step"):
            value = values.get(name)
            if key is None or value is None:
                faults.append(
                    f"parameter {index} ({key}) has no {name}" if key else f"parameter {index} is not in a group"
                )
                continue
            value = torch.as_tensor(value)
            if name != "step" and value.shape != tensors[key].shape:
                faults.append(f"{key}: {name} has shape {tuple(value.shape)}, the weight {tuple(tensors[key].shape)}")
            moments[f"{key}.{name}"] = value
    if faults:
        raise ValueError(
            f"{path}: optimizer_state_dict does not fit: {'; '.join(faults[:8])}; --without-optimizer leaves it out"
        )
    return moments


def plain(value: Any) -> Any:
    """Convert a value to JSON's types; dtypes and devices become text, tensors (of any shape) nested lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def write_safetensors(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any shape to a safetensors file, one at a time. The library's own writer would need NumPy.

    Raises:
        ValueError: a tensor's dtype is not in `DTYPES`; names it.
    """
    unsupported = [f"{key} ({tensor.dtype})" for key, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if unsupported:
        raise ValueError(f"{', '.join(unsupported[:8])}: accepted are {', '.join(DTYPES.values())}")
    # Largest item size first, so that each tensor is aligned to its item size.
    keys = sorted(tensors, key=lambda key: -tensors[key].element_size())
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key in keys:
        begin, end = end, end + tensors[key].numel() * tensors[key].element_size()
        header[key] = {
            "dtype": DTYPES[tensors[key].dtype],
            "shape": list(tensors[key].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in keys:
            tensor = tensors[key].detach().contiguous()
            if tensor.numel():
                size = tensor.numel() * tensor.element_size()
                file.write((ctypes.c_ubyte * size).from_address(tensor.data_ptr()))


def write_pack(pack: Pack, folder: Path) -> None:
    """Write pack.safetensors into a folder, which must be new or empty."""
    with new_folder(folder) as aside:
        write_safetensors(pack.tensors, aside / "pack.safetensors", {"generation_info": json.dumps(pack.info)})


def write_export(exported: Exported, folder: Path) -> None:
    """Write the files of a checkpoint into a folder, which must be new or empty."""
    with new_folder(folder) as aside:
        write_safetensors(exported.tensors, aside / "model.safetensors")
        if exported.moments:
            write_safetensors(exported.moments, aside / "optimizer.safetensors")
        for name, values in (("config.json", exported.config), ("training.json", exported.training)):
            (aside / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `folder` at the end of the `with` block. Raises ValueError if that has files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and is not empty; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        aside.chmod(0o755)
        yield aside
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 1 for an invalid file."""
    parser = argparse.ArgumentParser(
        description="Export a PyTorch energy-flow checkpoint or data pack to safetensors and JSON."
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt or a data pack of the PyTorch trainer")
    parser.add_argument("out", type=Path, help="the new folder")
    parser.add_argument(
        "--mapper", type=Path, help="state dict of input_mapper.* and output_collector.* (.pt or safetensors)"
    )
    parser.add_argument("--without-optimizer", action="store_true", help="do not export the optimiser's moments")
    options = parser.parse_args(arguments)
    try:
        loaded = load_pickle(options.checkpoint)
        if is_pack(loaded):
            pack = take_pack(options.checkpoint, loaded)
            write_pack(pack, options.out)
            texts = "with" if "texts" in pack.tensors else "without"
            print(f"{options.out}: {len(pack.tensors['input_embeddings'])} pairs of embeddings, {texts} texts")
            return 0
        exported = take_checkpoint(options.checkpoint, loaded, not options.without_optimizer)
        if options.mapper:
            mapper = load_mapper(options.mapper)
            duplicates = sorted(mapper.keys() & exported.tensors.keys())
            if duplicates:
                raise ValueError(f"{options.mapper}: {', '.join(duplicates[:8])} are in {options.checkpoint} too")
            exported.tensors.update(mapper)
        write_export(exported, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    moments = len(exported.moments) // 3
    print(
        f"{options.out}: {len(exported.tensors)} tensors, moments of {moments} parameters, {len(exported.config)} config fields"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
