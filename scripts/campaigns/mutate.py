"""Mutations of files that keep most of a format's structure, so that a reader gets past its first check."""

import argparse
import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 5, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -1, -2)
TEXTS = (
    "", " ", "\0", "a", "NaN", "Infinity", "null", "true", "-", "ä猫", "\ud800", "\u200b", "\ufeff", "a" * 300, "../x", "[CLS]", "1e999",
    "F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F4", "C64",
)  # fmt: skip
VALUES = (None, True, False, 0.5, -0.0, 1e308, 1e-320, float("inf"), float("nan"), 10**400, [], {}, [[]], [None], {"": 0}, *NUMBERS, *TEXTS)
COLUMNS = ("text", "target", "target_text", "premise", "hypothesis", "label", "gold_label", "input_ids", "attention_mask", "input_embedding", "x")
SAMPLES: dict[pyarrow.DataType, tuple[Any, ...]] = {
    pyarrow.string(): ("a", "", "\u200b", "contradiction", "-"), pyarrow.large_string(): ("ä",), pyarrow.binary(): (b"a", b"\xff"),
    pyarrow.int64(): (0, 1, -1, 2**62), pyarrow.float64(): (0.0, 1.5, float("nan")), pyarrow.bool_(): (True,), pyarrow.null(): (None,),
    pyarrow.list_(pyarrow.float32()): ([], [1.0], [1.0, 2.0], [float("inf")]), pyarrow.list_(pyarrow.int64()): ([1], [-1], [2**40]),
    pyarrow.list_(pyarrow.list_(pyarrow.int8())): ([[1]], []), pyarrow.list_(pyarrow.string()): (["a"],),
    pyarrow.struct([("a", pyarrow.int8())]): ({"a": 1},), pyarrow.timestamp("ns"): (1, 2**62), pyarrow.decimal128(5, 2): (1,),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.string()): ("a", "b"), pyarrow.map_(pyarrow.string(), pyarrow.int8()): ([("a", 1)],),
}  # fmt: skip
KINDS = tuple(SAMPLES)
ARGUMENTS = (  # a system gives neither a zero byte nor half a pair of surrogates, but bytes that are no UTF-8
    *(text for text in TEXTS if text not in ("\0", "\ud800")), "\udcff", *map(str, NUMBERS), "9" * 5000, "1e400", "0.5", "nan", "inf", "builtin", "builtin:3", "/proc/x/y", "owner/name", "1,2", "a=b", "--", ".",
)  # fmt: skip
NAMES = (
    b"argparse\nNamespace", b"builtins\nbytearray", b"collections\nCounter", b"collections\nOrderedDict", b"torch\nBFloat16Storage",
    b"torch\nFloatStorage", b"torch\nFloatTensor", b"torch\nLongStorage", b"torch\nQInt8Storage", b"torch\nSize", b"torch\nUntypedStorage",
    b"torch\nfloat32", b"torch\nqint8", b"torch._utils\n_rebuild_meta_tensor_no_storage", b"torch._utils\n_rebuild_nested_tensor",
    b"torch._utils\n_rebuild_parameter", b"torch._utils\n_rebuild_qtensor", b"torch._utils\n_rebuild_sparse_tensor",
    b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_wrapper_subclass", b"torch.serialization\n_get_layout",
)  # fmt: skip


def some_bytes(random: random.Random, data: bytes) -> bytes:
    """A few changes anywhere: bits, numbers, pieces left out, doubled, moved or cut off."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        size = len(content)
        place, piece = random.randrange(size + 1), random.randrange(1, 17)
        kind = random.randrange(7)
        if kind == 0 and size:
            content[place % size] ^= 1 << random.randrange(8)
        elif kind == 1:
            content[place : place + piece] = random.randbytes(random.randrange(17))
        elif kind == 2:
            del content[place : place + piece]
        elif kind == 3:
            content[place:place] = content[place : place + piece]
        elif kind == 4:
            del content[place:]
        elif kind == 5:
            code = random.choice(["<I", "<Q", "<H", "<f"])
            value = random.choice(NUMBERS) % 2 ** (8 * struct.calcsize(code))
            packed = struct.pack(code, random.choice((1.0, float("nan"), 1e38)) if code == "<f" else value)
            content[place : place + len(packed)] = packed
        else:
            other = random.randrange(size + 1)
            content[place:place] = content[other : other + 4 * piece]
    return bytes(content)


def changed(random: random.Random, value: Any) -> Any:
    """A JSON value with one of its parts replaced, left out, doubled or wrapped."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        kind = random.randrange(8)
        rest = {name: item for name, item in value.items() if name != key or kind > 0}
        if kind == 1:
            rest[random.choice(TEXTS)] = value[key]
        elif kind == 2:
            rest[random.choice(list(value))] = value[key]
        elif kind > 2:
            rest[key] = changed(random, value[key])
        return rest
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        kind = random.randrange(5)
        new = [] if kind == 0 else [value[place]] * 2 if kind == 1 else [changed(random, value[place])]
        return [*value[:place], *new, *value[place + 1 :]]
    if random.random() < 0.1:
        return random.choice(([value], {"a": value}, str(value)))
    if isinstance(value, int) and random.random() < 0.5:
        return value + random.choice((-1, 1, 2, 1000, -value))
    return random.choice(VALUES)


def json_text(random: random.Random, data: bytes) -> bytes:
    """A JSON text with changed values, in another encoding at times, or deeply nested."""
    if random.random() < 0.15:
        return some_bytes(random, data)
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = changed(random, value)
    text = json.dumps(value)
    if random.random() < 0.01:
        text = "[" * 3000 + text + "]" * 3000
    return text.encode(random.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16")))


def json_lines(random: random.Random, data: bytes) -> bytes:
    """JSON lines with one of them changed."""
    lines = data.splitlines()
    place = random.randrange(len(lines))
    lines[place] = json_text(random, lines[place]).replace(b"\n", b"") if lines[place].strip() else b""
    return random.choice((b"\n",) * 6 + (b"\r\n", b"\n\n", b"\r", b"\n\xef\xbb\xbf")).join(lines)


def cells(separator: bytes) -> Mutation:
    """Changes to the cells of a table."""

    def mutate(random: random.Random, data: bytes) -> bytes:
        if random.random() < 0.3:
            return some_bytes(random, data)
        rows = [line.split(separator) for line in data.split(b"\n")]
        row = random.choice(rows)
        place = random.randrange(len(row))
        new = random.choice((*TEXTS, '"', '""', '"a', 'a"b', ",", "\t", ";", "\r", "\n", "\r\n", '"a\nb"', "premise", "label", "-1", "0.0"))
        row[place : place + random.choice((0, 1, 1, 1, 2))] = [new.encode("utf-8", "surrogatepass")]
        text = b"\n".join(separator.join(row) for row in rows)
        return random.choice((text,) * 9 + (b"\xef\xbb\xbf" + text, text.decode("utf-8", "replace").encode("utf-16"), text.replace(b",", b";")))

    return mutate


def safetensors(random: random.Random, data: bytes) -> bytes:
    """A safetensors file with a changed header, or with changed data."""
    if random.random() < 0.3:
        return some_bytes(random, data)
    length = struct.unpack("<Q", data[:8])[0]
    text = json_text(random, data[8 : 8 + length]) if random.random() < 0.9 else some_bytes(random, data[8 : 8 + length])
    return struct.pack("<Q", len(text) if random.random() < 0.97 else random.choice(NUMBERS) % 2**64) + text + data[8 + length :]


def efb(random: random.Random, data: bytes) -> bytes:
    """An EFB file with another number in its header or in front of a sample, or with changed bytes."""
    if random.random() < 0.5:
        return some_bytes(random, data)
    place = 4 * random.randrange(1, max(2, min(8, len(data) // 4)))
    return data[:place] + struct.pack("<I", random.choice(NUMBERS) % 2**32) + data[place + 4 :]


def parquet(random: random.Random, data: bytes) -> bytes:
    """A Parquet file with changed bytes, or a new one with columns of any type under the names that are read."""
    if random.random() < 0.5:
        return some_bytes(random, data)
    rows = random.randrange(4)
    columns = {}
    for name in random.sample(COLUMNS, random.randrange(1, 5)):
        kind = random.choice(KINDS)
        values = [None if random.random() < 0.2 else random.choice(SAMPLES[kind]) for _ in range(rows)]
        columns[name] = pyarrow.array(values, kind)
    names = [random.choice(COLUMNS) if random.random() < 0.05 else name for name in columns]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(list(columns.values()), names), buffer, compression=random.choice(("none", "snappy", "zstd")))
    return buffer.getvalue()


def pickle_ops(random: random.Random, data: bytes) -> bytes:
    """A pickle with changed operations: numbers, texts and names replaced, operations left out, doubled or exchanged."""
    starts = [(op, place) for op, _, place in pickletools.genops(data)]
    ends = [place for _, place in starts[1:]] + [len(data)]
    ops = [data[place:end] for (_, place), end in zip(starts, ends, strict=True)]
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(ops))
        name, kind = starts[min(place, len(starts) - 1)][0].name, random.randrange(6)
        if name.startswith("BININT") and kind:
            ops[place] = b"J" + struct.pack("<i", random.choice((0, 1, 2, 3, 7, 100, 2**16, 2**31 - 1, -1, -(2**31))))
        elif name == "GLOBAL" and kind:
            ops[place] = b"c" + random.choice(NAMES) + b"\n"
        elif name == "BINUNICODE" and kind > 1:
            text = random.choice(TEXTS).encode("utf-8", "surrogatepass")
            ops[place] = b"X" + struct.pack("<I", len(text)) + text
        elif kind < 2:
            ops[place] = b""
        elif kind == 2:
            ops[place] = ops[place] * 2
        elif kind == 3:
            ops[place] = random.choice((b"N", b"\x88", b")", b"]", b"}", b"K\x05", b"G" + struct.pack(">d", random.choice((0.5, float("nan"), 1e308)))))
        else:
            other = random.randrange(len(ops))
            ops[place], ops[other] = ops[other], ops[place]
    return b"".join(ops)


def torch_file(random: random.Random, data: bytes) -> bytes:
    """A file of torch.save with a changed pickle, other records, or changed bytes."""
    if random.random() < 0.2:
        return some_bytes(random, data)
    if not data.startswith(b"PK"):
        return _legacy(random, data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        entries = [(name, source.read(name)) for name in source.namelist()]
    which = random.choice([name for name, _ in entries]) if random.random() < 0.2 else next(name for name, _ in entries if name.endswith("data.pkl"))
    method = zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in entries:
            if name == which and name.endswith("data.pkl"):
                content = pickle_ops(random, content)
            elif name == which and random.random() < 0.3:
                continue
            elif name == which:
                content = some_bytes(random, content)
            target.writestr(zipfile.ZipInfo(name), content, method)  # of 1980: equal seeds give equal bytes
    return buffer.getvalue()


def _legacy(random: random.Random, data: bytes) -> bytes:
    """The fourth pickle of a legacy file holds its contents."""
    start = 0
    for _ in range(3):
        start += next(place for op, _, place in pickletools.genops(data[start:]) if op.name == "STOP") + 1
    end = start + next(place for op, _, place in pickletools.genops(data[start:]) if op.name == "STOP") + 1
    return data[:start] + pickle_ops(random, data[start:end]) + data[end:]


class Option(NamedTuple):
    """A flag of a command, and values that it may take: those that its help names, and numbers. None: it takes no value."""

    flag: str
    values: tuple[str, ...] | None


def options(parser: argparse.ArgumentParser) -> list[Option]:
    """What a command takes besides its positional arguments."""
    found = []
    for action in parser._actions:
        words = re.findall(r"[\w.-]+", f"{action.metavar} {action.help} {' '.join(map(str, action.choices or ()))}")
        values = None if action.nargs == 0 else (*map(str, NUMBERS), *words)
        found += [Option(flag, values) for flag in action.option_strings if flag.startswith("--") and flag != "--help"]
    return found


def arguments(random: random.Random, argv: list[str], options: Sequence[Option]) -> list[str]:
    """A command line with flags and values added, replaced or left out."""
    words = list(argv)
    for _ in range(random.choice((1, 1, 2, 3))):
        kind, place = random.randrange(8), random.randrange(len(words) + 1)
        flag, values = random.choice(options)
        value = random.choice(values if values and random.random() < 0.7 else (*ARGUMENTS, *argv))
        if kind == 0:
            words[place : place + 1] = [value]
        elif kind == 1:
            del words[place : place + 1]
        elif kind == 2:
            words[place:place] = random.choice(([flag], [flag, value], [f"{flag}={value}"]))
        elif values is None:
            words.append(flag)
        else:
            words += random.choice(([flag, value], [f"{flag}={value}"]))
    return words
