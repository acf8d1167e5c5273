"""The fuzz campaign finds what it looks for, and makes the same inputs again."""

import argparse
import contextlib
import io
import json
import pickletools
import random
import struct
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import fuzz
import mutate
import pytest


def faults(read, size=10, refusals=(ValueError,), named=True):
    target = SimpleNamespace(name="reader", make=lambda random: (size, read), refusals=refusals, named=named)
    return [kind for kind, _, _ in fuzz._faults(target, "0:0:0", let_through=False)]


def fails(error):
    def read():
        raise error

    return read


def allocates(count):
    return lambda: bytes(bytearray(b"x") * count)


class Panic(BaseException):
    pass


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda: None, []),
        (fails(ValueError("input/a.pt: is cut off")), []),
        (fails(ValueError("is cut off")), ["traceback"]),  # names no file
        (fails(KeyError("input/a.pt")), ["traceback"]),
        (fails(Panic("in Rust")), ["traceback"]),
        (allocates(2**20), []),
        (allocates(2**26), ["memory"]),
    ],
)
def test_faults_are_told_from_refusals(read, found):
    assert faults(read) == found


def test_a_large_input_may_take_twice_its_size():
    assert faults(allocates(2**25), size=2**25) == []
    assert faults(fails(ValueError("width is 3")), named=False) == []


def test_slow_calls_are_found(monkeypatch):
    monkeypatch.setattr(fuzz, "SLOW", -1.0)
    assert faults(lambda: None) == ["slow"]


def test_a_call_is_not_slow_where_the_machine_became_so(monkeypatch):
    monkeypatch.setattr(fuzz, "SLOW", 0.02)
    monkeypatch.setattr(fuzz, "_usual_pace", lambda: 0.001)
    spin = lambda: sum(range(3_000_000))  # noqa: E731
    for now, found in ((0.001, ["slow"]), (1e6, [])):
        monkeypatch.setattr(fuzz, "pace", lambda now=now: now)
        assert faults(spin) == found


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x05s.")
        file.writestr("a/data/0", bytes(12))
    return buffer.getvalue()


HEADER = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
SEEDS = {
    "some_bytes": (mutate.some_bytes, bytes(range(60))),
    "json_text": (mutate.json_text, b'{"a": [1, {"b": "c"}], "d": null}'),
    "json_lines": (mutate.json_lines, b'{"a": 1}\n{"b": 2}\n'),
    "cells": (mutate.cells(b","), b"a,b\nc,d\n"),
    "safetensors": (mutate.safetensors, struct.pack("<Q", len(HEADER)) + HEADER + bytes(12)),
    "torch_file": (mutate.torch_file, archive()),
}


@pytest.mark.parametrize(("mutation", "seed"), SEEDS.values(), ids=SEEDS.keys())
def test_mutations_depend_on_their_seed_alone_and_mostly_change_the_file(mutation, seed):
    made = [mutation(random.Random(number), seed) for number in range(100)]
    again = [mutation(random.Random(number), seed) for number in range(100)]
    assert made == again
    assert sum(content != seed for content in made) > 80 and len(set(made)) > 50


def test_most_of_the_structure_stays():
    made = [mutate.json_text(random.Random(number), SEEDS["json_text"][1]) for number in range(200)]
    assert sum(parses(json.loads, content) for content in made) > 150
    made = [mutate.torch_file(random.Random(number), archive()) for number in range(200)]
    pickles = [pickle_in(content) for content in made]
    assert sum(content is not None and parses(lambda data: list(pickletools.genops(data)), content) for content in pickles) > 100


def parses(parse, content):
    try:
        parse(content)
    except (ValueError, RecursionError):
        return False
    return True


def test_arguments_are_mostly_values_that_their_flag_may_take():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, metavar="INT", help="cells along x")
    parser.add_argument("--quiet", action="store_true")
    options = mutate.options(parser)
    assert [option.flag for option in options] == ["--dtype", "--size", "--quiet"] and options[2].values is None
    assert {"float32", "bfloat16"} <= set(options[0].values) and "255" in options[1].values
    made = [mutate.arguments(random.Random(number), ["run"], options) for number in range(400)]
    assert made == [mutate.arguments(random.Random(number), ["run"], options) for number in range(400)]
    taken = [words for words in made if parses(lambda words: quietly(parser, words[1:]), words)]
    assert 100 < len(taken) < 350
    assert not any("\0" in word for words in made for word in words)


def quietly(parser, words):
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            parser.parse_args(words)
        except SystemExit:
            raise ValueError("refused") from None


@pytest.mark.parametrize("spin", [True, False])
def test_a_call_hangs_by_processor_time_or_by_waiting(spin, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "HANG", 0.2)
    monkeypatch.setattr(fuzz, "IDLE", 100.0 if spin else 0.1)
    worker = fuzz.Worker(tmp_path, None)
    work = "while True: pass" if spin else "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        (tmp_path / "at").write_bytes(struct.pack("<qd", 7, 1e-9))
        assert worker._wait(process) == ("hang", "")
        assert process.wait() == -9


def test_time_alone_is_no_hang(tmp_path, monkeypatch):
    """Nothing is being read: however long that lasts, the process is let be."""
    monkeypatch.setattr(fuzz, "HANG", -1.0)
    monkeypatch.setattr(fuzz, "IDLE", -1.0)
    monkeypatch.setattr(fuzz.select, "select", lambda *_: next(polls))
    polls = iter([([], [], [])] * 5 + [([1], [], [])])
    with subprocess.Popen([sys.executable, "-c", "print('said')"], stdout=subprocess.PIPE) as process:
        assert fuzz.Worker(tmp_path, None)._wait(process) == ("", "said\n")


def pickle_in(content):
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            return file.read("a/data.pkl")
    except Exception:
        return None
