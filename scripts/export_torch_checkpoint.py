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
| `training.json` | the other entries: epoch, step, parameter groups, scheduler, history; tied tensors; key order; `Infinity`, `-Infinity` and `NaN` as text |

`python -m energy_flow_mlx.convert OUT/ --to DIR` converts these without torch. For a data pack it writes
`pack.safetensors`, which `python -m energy_flow_mlx.dataset` reads.
"""

from __future__ import annotations  # the PyTorch code may run on Python 3.9

import argparse
import ctypes
import io
import json
import math
import mmap
import pickle
import re
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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
SLACK = 2**16  # bytes that a small file may take beyond its own size
DEEPEST = 100  # lists and dictionaries within each other
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before it wrote zip files
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
        raise ValueError(f"{path}: has no {', '.join(missing)}; it holds {', '.join(map(str, loaded))[:400]}")
    tensors: Tensors = {}
    order: list[str] = []
    lengths = []  # length of `order` after each part: the possible numbers of parameters in the optimiser
    ties: dict[str, str] = {}
    for entry, prefix in PARTS.items():
        for name, tensor in state_dict(path, entry, loaded.get(entry)).items():
            key = prefix + name
            if key in TIED and TIED_TO in tensors and same(tensor, tensors[TIED_TO]):
                ties[key] = TIED_TO
            else:
                tensors[key] = tensor
                order.append(key)
        lengths.append(len(order))
    record = Record(path)
    training = {
        str(name): record.plain(str(name), value)
        for name, value in loaded.items()
        if name not in (*PARTS, *REQUIRED, "optimizer_state_dict")
    }
    training |= {"tied": ties, "key_order": order}
    moments: Tensors = {}
    optimizer = loaded.get("optimizer_state_dict")
    if optimizer is not None and with_optimizer:
        moments = name_moments(path, optimizer, order, lengths, tensors)
        training["param_groups"] = record.plain("optimizer_state_dict", optimizer["param_groups"])
    check_total(path, {**tensors, **moments})
    return Exported(tensors, moments, record.plain("config", loaded["config"]), training)


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
        fault = fault_of(value)
        if fault:
            raise ValueError(f"{path}: {name} {fault}")
        tensors[name] = own(value).float().contiguous()
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
        if sum(map(len, texts)) > 2 * path.stat().st_size + SLACK:
            raise ValueError(f"{path}: text_pairs repeats texts to more than twice the file's size")
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: text_pairs holds a text that is not valid Unicode: {error}") from error
        tensors["texts"] = torch.tensor(bytearray(b"".join(encoded)), dtype=torch.uint8)
        tensors["text_offsets"] = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    info = loaded.get("generation_info")
    return Pack(tensors, Record(path).plain("generation_info", info) if isinstance(info, dict) else {})


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
            loaded = load_file(path)
        except (SafetensorError, AttributeError, KeyError) as error:  # the last two: a dtype that torch or the library lacks
            raise ValueError(f"{path}: is damaged or not a safetensors file: {error}") from error
    else:
        loaded = load_pickle(path)
    tensors = state_dict(path, "the file", loaded)
    check_total(path, tensors)
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
    if zipped and not is_whole_zip(path):
        raise ValueError(
            f"{path}: is cut off ({path.stat().st_size} bytes, and its table of contents at the end is missing)"
        )
    if path.stat().st_size > WARN_BYTES:
        print(
            f"warning: {path} is {path.stat().st_size / 2**30:.1f} GiB; reading it may need as much memory",
            file=sys.stderr,
        )
    check_claims(path, zipped)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            named = re.search(r"(?:GLOBAL|class|function|type) ([A-Za-z_][\w.]*\.\w+)", str(error))
            what = named[1] if named else "objects"
            raise ValueError(
                f"{path}: holds {what} besides tensors and plain values, which cannot be loaded without running code. {RESAVE}"
            ) from error
        raise ValueError(f"{path}: is damaged or not a PyTorch file: {first_line(error)}") from error
    except Exception as error:  # torch raises many kinds of errors for damaged files
        raise ValueError(f"{path}: is damaged or not a PyTorch file: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: holds a {type(loaded).__name__}, accepted is a dictionary")
    return loaded


def is_whole_zip(path: Path) -> bool:
    """Whether the file ends in the table of contents of one archive."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # part of several
        return False


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class Inert:
    """Stands for every class and function that a pickle names: takes whatever it is called with and does nothing."""

    def __new__(cls, *given: Any) -> Inert:
        if cls.__module__.startswith("torch") and cls.__name__.endswith(("Tensor", "Storage")):
            raise pickle.UnpicklingError(f"it calls {cls.__module__}.{cls.__name__}, which torch.save does not write")
        if cls.__name__ == "bytearray" and any(isinstance(value, int) for value in given):
            raise pickle.UnpicklingError("it calls bytearray with a size")
        if cls.__name__ == "_rebuild_qtensor":
            storage, _, shape = (*given, None, None, None)[:3]
            most = storage.size if isinstance(storage, Claims.Storage) else 0
            if not isinstance(shape, (tuple, list)) or not all(type(size) is int for size in shape) or math.prod(shape) > most:
                raise pickle.UnpicklingError(f"a quantised tensor of shape {shape} is larger than its data")
        return super().__new__(cls)

    def __init__(self, *given: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class Claims(pickle._Unpickler):
    """Reads a pickle of torch.save without running any of it, and notes the bytes of each storage that it refers to.

    The unpickler in Python: the one in C allocates as many places for remembered values as the file says.
    """

    dispatch: ClassVar[dict[int, Any]] = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}

    class Storage(NamedTuple):
        size: int  # bytes

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")  # as torch.load
        self.bytes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return type(name.rpartition(".")[2] or "nameless", (Inert,), {"__module__": module})

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no storage")
        kind, key, numbers = getattr(saved[1], "__name__", ""), saved[2], saved[4]
        known = getattr(torch, kind, None) if kind.endswith("Storage") else None
        if known is None or type(numbers) is not int or numbers < 0 or not isinstance(key, str):
            raise pickle.UnpicklingError(f"it refers to an impossible storage: {kind or saved[1]!r} of {numbers!r} numbers")
        size = numbers if kind == "UntypedStorage" else numbers * torch._utils._element_size(known._dtype)
        self.bytes[key] = max(size, self.bytes.get(key, 0))
        return self.Storage(size)


def check_claims(path: Path, zipped: bool) -> None:
    """Check that everything that a `.pt` file would make torch allocate is in the file.

    Raises:
        ValueError: it is no file of torch.save, is damaged, or refers to more data than it holds; says which.
    """
    try:
        fault = fault_of_zip(path) if zipped else fault_of_legacy(path)
    except Exception as error:  # zipfile and pickle raise many kinds of errors for damaged files
        raise ValueError(f"{path}: is damaged or not a PyTorch file: {first_line(error)}") from error
    if fault:
        raise ValueError(f"{path}: {fault}")


def fault_of_zip(path: Path) -> str | None:
    """What is wrong with the archive that torch.save writes; None if nothing is."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "constants.pkl" in entries:
            return "is a TorchScript archive (torch.jit.save); accepted are files of torch.save"
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size for entry in archive.infolist()):
            return f"is compressed, or claims more than its {size} bytes; torch.save stores data as they are"
        claims = Claims(io.BytesIO(archive.read(entries["data.pkl"])))
        claims.load()
    held = {key: entries[f"data/{key}"].file_size if f"data/{key}" in entries else 0 for key in claims.bytes}
    large = [f"{key} ({claimed} bytes of {held[key]})" for key, claimed in claims.bytes.items() if claimed > held[key]]
    return f"is damaged: its tensors refer to more data than it holds: {', '.join(large[:8])}" if large else None


def fault_of_legacy(path: Path) -> str | None:
    """What is wrong with the file that torch.save wrote before it wrote archives; None if nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        if Claims(whole).load() != LEGACY_MAGIC:
            return f"was written by pickle.dump, not torch.save. {RESAVE}"
        Claims(whole).load()  # the version of the format
        Claims(whole).load()  # the machine that wrote it
        claims = Claims(whole)
        claims.load()
    claimed = sum(claims.bytes.values())
    return f"is cut off: its tensors take {claimed} bytes, the file has {size}" if claimed > size else None


def fault_of(tensor: torch.Tensor) -> str | None:
    """Why a tensor's values cannot be taken as they are; None if they can."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}, accepted are plain tensors"
    if tensor.device.type != "cpu":
        return f"has no data in the file (its device is {tensor.device}); save it again with its values"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "is sparse or nested; accepted are tensors saved after .to_dense()"
    if tensor.is_quantized:
        return "is quantised; accepted are tensors saved after .dequantize()"
    # An expanded tensor (stride 0) takes few bytes in the file, but can have any size in memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "is larger than its data in the file; accepted are tensors saved after .contiguous()"
    return None


def own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without `fault_of` as the values that torch reads: no gradient, no conjugate or negative that is still to be taken."""
    return tensor.detach().resolve_conj().resolve_neg()


def same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of any shape and dtype are equal."""
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def check_total(path: Path, tensors: Tensors) -> None:
    """Raise ValueError if tensors that share storage take more than twice the file's size."""
    total, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if total > 2 * size + SLACK:
        raise ValueError(
            f"{path}: its tensors share storage and take {total} bytes, the file has {size}; save them again after .clone()"
        )


def state_dict(path: Path, entry: str, values: Any) -> Tensors:
    """The tensors of the state dict `values` in `entry`, as torch reads them; None is an empty one.

    Raises:
        ValueError: it is no dictionary of text to tensors, or a tensor is sparse, quantised, without data, larger than its storage or
            of a dtype that is not in `DTYPES`; names it.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {entry} must be a dictionary of tensors, got a {type(values).__name__}")
    others = [repr(name) for name in values if not isinstance(name, str)]
    if others:
        raise ValueError(f"{path}: {entry} is not a state dict: its keys {', '.join(others[:8])} are not text")
    others = [f"{name} ({type(value).__name__})" for name, value in values.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"{path}: {entry} is not a state dict: {', '.join(others[:8])} are not tensors")
    return {name: checked(path, f"{entry}: {name}", tensor) for name, tensor in values.items()}


def checked(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of weights or moments as torch reads it. Raises as `state_dict`."""
    fault = fault_of(tensor)
    if fault is None and tensor.dtype not in DTYPES:
        fault = f"is {tensor.dtype}; accepted are {', '.join(map(str, DTYPES))}"
    if fault:
        raise ValueError(f"{path}: {name} {fault}")
    return own(tensor)


def name_moments(
    path: Path, optimizer: Any, order: list[str], lengths: list[int], tensors: Tensors
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
        state = {int(index): dict(values) for index, values in optimizer["state"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
            if name == "step" and type(value) in (int, float):
                value = torch.tensor(float(value))
            if not isinstance(value, torch.Tensor):
                faults.append(f"{key}: {name} is a {type(value).__name__}, accepted is a tensor")
                continue
            value = checked(path, f"optimizer_state_dict: {key}.{name}", value)
            if name == "step" and value.numel() != 1:
                faults.append(f"{key}: step holds {value.numel()} numbers, accepted is one")
            if name != "step" and value.shape != tensors[key].shape:
                faults.append(f"{key}: {name} has shape {tuple(value.shape)}, the weight {tuple(tensors[key].shape)}")
            moments[f"{key}.{name}"] = value
    if faults:
        raise ValueError(
            f"{path}: optimizer_state_dict does not fit: {'; '.join(faults[:8])}; --without-optimizer leaves it out"
        )
    return moments


class Record:
    """Converts the entries of a file that are no weights to JSON's types."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # A pickle may refer to a value any number of times. Written out, the values take no more than their file.
        self._left = path.stat().st_size + SLACK

    def plain(self, name: str, value: Any, depth: int = 0) -> Any:
        """A value in JSON's types: dtypes, devices and numbers that are not finite become text, tensors (of any shape) nested lists.

        Raises:
            ValueError: it holds a tensor without values, refers to itself, is deeply nested, repeats values to more than the file's
                size, or has keys that are the same as text; names the entry.
        """
        self._left -= 1 + (len(value) if isinstance(value, str) else 0)
        if depth > DEEPEST or self._left < 0:
            what = f"is nested over {DEEPEST} deep" if depth > DEEPEST else "repeats values to more than the file's size"
            raise ValueError(f"{self._path}: {name[:100]} {what}")
        if isinstance(value, torch.Tensor):
            fault = fault_of(value)
            if fault:
                raise ValueError(f"{self._path}: {name} {fault}")
            return self.plain(name, own(value).tolist(), depth)
        if isinstance(value, dict):
            named = {str(key): self.plain(f"{name}.{key}", item, depth + 1) for key, item in value.items()}
            if len(named) < len(value):
                raise ValueError(f"{self._path}: {name} has keys that are the same as text, such as 1 and '1'")
            return named
        if isinstance(value, (list, tuple)):
            return [self.plain(name, item, depth + 1) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def write_safetensors(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any shape, without `fault_of`, to a safetensors file, one at a time. The library's own writer would need NumPy.

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
            tensor = own(tensors[key]).contiguous()
            if tensor.numel():
                size = tensor.numel() * tensor.element_size()
                file.write((ctypes.c_ubyte * size).from_address(tensor.data_ptr()))


def write_pack(pack: Pack, folder: Path) -> None:
    """Write pack.safetensors into a folder, which must be new or empty."""
    with new_folder(folder) as aside:
        write_safetensors(pack.tensors, aside / "pack.safetensors", {"generation_info": json.dumps(pack.info, allow_nan=False)})


def write_export(exported: Exported, folder: Path) -> None:
    """Write the files of a checkpoint into a folder, which must be new or empty."""
    with new_folder(folder) as aside:
        write_safetensors(exported.tensors, aside / "model.safetensors")
        if exported.moments:
            write_safetensors(exported.moments, aside / "optimizer.safetensors")
        for name, values in (("config.json", exported.config), ("training.json", exported.training)):
            (aside / name).write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


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
    """Run the command; returns the exit code: 0, or 2 for an invalid file."""
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
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename and error.strerror else error
        print(f"error: {told}", file=sys.stderr)
        return 2
    moments = len(exported.moments) // 3
    print(
        f"{options.out}: {len(exported.tensors)} tensors, moments of {moments} parameters, {len(exported.config)} config fields"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
