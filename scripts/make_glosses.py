"""Pairs of WordNet: the gloss of a synset -> the gloss of its hypernym, split by subtrees of the hierarchy.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python scripts/make_glosses.py --wordnet wordnet/usr/share/wordnet --to glosses

`data.noun` and `data.verb` are of the form that the manual page wndb(5WN) gives. A synset counts as a child of its first
hypernym alone, so that the hierarchy is a tree and each synset is in one part of it.
"""

import argparse
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from text_pairs import TextPair, report, run, within, write_parts

SHORTEST, LONGEST = 5, 15  # words a side
HELD_OUT = 1000  # pairs in validation and in test, at least
_POINTER_WORDS = 4  # symbol, offset, part of speech, source and target


FILES = {"data.noun": 1, "data.verb": 2, "data.adj": 3, "data.adv": 4}
_EXAMPLE = re.compile(r'"([^"]+)"')


class Synset(NamedTuple):
    """A synset's definition, the key of its first hypernym, None at a root, and sentences in which its words are used."""

    gloss: str
    parent: int | None
    examples: tuple[str, ...] = ()


def read_synsets(folder: Path, files: Sequence[str] = ("data.noun", "data.verb")) -> dict[int, Synset]:
    """Synsets by key: the offset in their file, and before it the file's number in FILES, as in WordNet's own numbers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line is not of the form of wndb(5WN); names file and line.
    """
    synsets = {}
    for name in files:
        path, code = folder / name, FILES[name]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("  "):  # the licence
                continue
            try:
                key, synset = _synset(line, code)
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}, line {number}: must be a synset as in wndb(5WN): {error}") from error
            synsets[key] = synset
    return synsets


def _synset(line: str, code: int) -> tuple[int, Synset]:
    fields, bar, gloss = line.partition(" | ")
    if not bar:
        raise ValueError("has no gloss")
    data = fields.split()
    pointers = 4 + 2 * int(data[3], 16)  # behind offset, file, type, and the words with their ids
    parent = None
    for start in range(pointers + 1, pointers + 1 + int(data[pointers]) * _POINTER_WORDS, _POINTER_WORDS):
        symbol, offset = data[start], int(data[start + 1])
        if symbol == "@":  # "@i", an instance's class, is none: names of persons and places say little of their class
            parent = code * 10**8 + offset
            break
    definition, _, rest = gloss.partition('; "')
    examples = tuple(" ".join(example.split()) for example in _EXAMPLE.findall(f'"{rest}'))
    return code * 10**8 + int(data[0]), Synset(" ".join(definition.split()), parent, examples)


def make_pairs(synsets: Mapping[int, Synset]) -> tuple[list[TextPair], Counter[str]]:
    """Each synset with its hypernym, where both glosses are sentences to learn from."""
    pairs, left_out = [], Counter[str]()
    for key, synset in synsets.items():
        if synset.parent is None:
            left_out["synsets without a hypernym"] += 1
            continue
        pair = TextPair(key, synset.gloss, synsets[synset.parent].gloss)
        if within(pair.input, SHORTEST, LONGEST) and within(pair.target, SHORTEST, LONGEST):
            pairs.append(pair)
        else:
            left_out[f"with a side of under {SHORTEST} or over {LONGEST} words"] += 1
    return pairs, left_out


def subtrees(synsets: Mapping[int, Synset], weight: Mapping[int, int], most: int) -> dict[int, int]:
    """The subtree of each synset, by the key of its top: the largest ones that weigh at most `most`.

    Synsets above those are missing; they stand over several subtrees.

    Raises:
        ValueError: the hypernyms run in a circle.
    """
    children: dict[int | None, list[int]] = defaultdict(list)
    for key, synset in synsets.items():
        children[synset.parent].append(key)
    order = list(children[None])
    for key in order:  # grows while it is read: parents before children
        order.extend(children[key])
    if len(order) < len(synsets):
        raise ValueError(f"{len(synsets) - len(order)} synsets are under no root: their hypernyms run in a circle")
    total = {key: weight.get(key, 0) for key in synsets}
    for key in reversed(order):
        parent = synsets[key].parent
        if parent is not None:
            total[parent] += total[key]
    top: dict[int, int] = {}
    for key in order:
        parent = synsets[key].parent
        if parent in top:
            top[key] = top[parent]
        elif total[key] <= most:
            top[key] = key
    return top


def split(
    pairs: Sequence[TextPair], synsets: Mapping[int, Synset], held_out: int, seed: int
) -> dict[str, list[TextPair]]:
    """The pairs by part. Whole subtrees are drawn for test and validation until each has `held_out` pairs.

    Pairs whose hypernym lies above the subtrees go to training, and those that lead there from a subtree that is held out
    to no part: their target is a training text.
    """
    top = subtrees(synsets, Counter(pair.key for pair in pairs), max(1, held_out // 4))
    members: dict[int, list[TextPair]] = defaultdict(list)
    parts: dict[str, list[TextPair]] = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        if pair.key in top:
            members[top[pair.key]].append(pair)
        else:
            parts["train"].append(pair)
    drawn = sorted(members)
    random.Random(seed).shuffle(drawn)
    for subtree in drawn:
        inside = [pair for pair in members[subtree] if pair.key != subtree]
        part = next((name for name in ("test", "validation") if len(parts[name]) < held_out), "train")
        parts[part] += members[subtree] if part == "train" else inside
    return {name: sorted(part) for name, part in parts.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, metavar="FOLDER", help="holds data.noun and data.verb")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for train, validation, test .jsonl")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the drawn subtrees (default: 0)")
    return run(_make, parser.parse_args(argv))


def _make(options: argparse.Namespace) -> str:
    synsets = read_synsets(options.wordnet)
    pairs, left_out = make_pairs(synsets)
    parts = split(pairs, synsets, HELD_OUT, options.seed)
    left_out["from the top of a subtree that is held out"] = len(pairs) - sum(map(len, parts.values()))
    write_parts(options.to, parts)
    return report(options.to, parts, left_out)


if __name__ == "__main__":
    sys.exit(main())
