"""Records and files for the tests of readers and writers."""

import struct
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from energy_flow_mlx.dataset.formats import read_file
from energy_flow_mlx.dataset.records import Faults, Place, Placed, Record

SOMEWHERE = Place(Path("test"), "record", 1)


def placed(records: list[Record]) -> list[Placed]:
    return [(SOMEWHERE._replace(number=number), record) for number, record in enumerate(records, 1)]


def read(path: Path, faults: Faults | None = None) -> list[Record]:
    return [record for _, record in read_file(path, faults or Faults())]


def full_records(count: int, dim: int = 5, seed: int = 0) -> list[Record]:
    """Records that have everything."""
    random = np.random.default_rng(seed)
    return [
        Record(
            f"the input {number}, \"quoted\", Ünïcode 猫\t",
            f"target {number}\nsecond line",
            random.integers(0, 2**32, number % 4, dtype=np.uint32),
            np.ones(number % 4, np.uint8),
            random.normal(size=dim).astype(np.float32),
            random.normal(size=dim).astype(np.float32),
        )
        for number in range(count)
    ]


def assert_same(first: list[Record], second: list[Record]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name, value, again in zip(Record._fields, one, other, strict=True):
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, again, err_msg=name, strict=True)
            else:
                assert value == again, name


def efb(samples: int, dim: int, body: bytes, magic: bytes = b"EFB1", flags: int | None = None) -> bytes:
    return magic + struct.pack("<II", samples, dim) + (b"" if flags is None else struct.pack("<I", flags)) + body


@st.composite
def records(draw, size: int = 6):
    """Lists of records of one embedding size that every format can hold."""
    dim = draw(st.integers(1, 4))
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

    def one() -> Record:
        ids = draw(st.lists(st.integers(0, 2**32 - 1), max_size=4))
        mask = draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids)))
        rows = [np.array(draw(st.lists(number, min_size=dim, max_size=dim)), np.float32) for _ in range(2)]
        return Record(draw(text), draw(text), np.array(ids, np.uint32), np.array(mask, np.uint8), *rows)

    return [one() for _ in range(draw(st.integers(1, size)))]
