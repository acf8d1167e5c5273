"""scripts/make_glosses.py on a made-up WordNet."""

import json
from pathlib import Path

import make_glosses
import pytest
from make_glosses import Synset, read_synsets, split, subtrees
from text_pairs import TextPair

LICENCE = "  1 This software and database is being provided to you  \n"


def line(offset: int, gloss: str, *pointers: str, kind: str = "n") -> str:
    joined = "".join(f"{pointer} {kind} 0000 " for pointer in pointers)
    return f"{offset:08d} 03 {kind} 0b {'word 0 ' * 11}{len(pointers):03d} {joined}| {gloss}  \n"  # 0b: 11 words


def wordnet(folder: Path, nouns: str, verbs: str = line(1, "to go from one place to another", kind="v")) -> Path:
    (folder / "data.noun").write_text(LICENCE + nouns)
    (folder / "data.verb").write_text(LICENCE + verbs)
    return folder


def forest(kinds: int, members: int) -> str:
    """A root, `kinds` synsets below it, and `members` synsets below each of these."""
    lines = [line(1, "that which is known to be here")]
    for kind in range(10, 10 + kinds):
        lines.append(line(kind, f"a thing that is of the kind k{chr(87 + kind)}", "@ 00000001", "~ 00000001"))
        lines += [
            line(
                kind * 1000 + n,
                f'one of those of kind k{chr(87 + kind)} and form f{chr(97 + n)}; "an example"',
                f"@ {kind:08d}",
            )
            for n in range(members)
        ]
    return "".join(lines)


def test_lines_are_read(tmp_path):
    nouns = line(1, "a root (of all)") + line(
        2, 'its child; red or green; "so it is"; "it  is so" - A. Nother', "~ 00000003", "@ 00000001", "@ 00000009"
    )
    found = read_synsets(wordnet(tmp_path, nouns + line(3, "an instance", "@i 00000002")))
    assert found == {
        100000001: Synset("a root (of all)", None),
        100000002: Synset("its child; red or green", 100000001, ("so it is", "it is so")),
        100000003: Synset("an instance", None),
        200000001: Synset("to go from one place to another", None),
    }


def test_parts_share_no_subtree_and_no_target(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_glosses, "HELD_OUT", 40)
    wordnet(tmp_path, forest(kinds=20, members=9))
    assert make_glosses.main(["--wordnet", str(tmp_path), "--to", str(tmp_path / "out")]) == 0
    parts = {
        name: [json.loads(text) for text in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "test")
    }
    # 9 pairs in a subtree, so 5 of them for each held-out part; the pairs of their tops are in none.
    assert {name: len(part) for name, part in parts.items()} == {"train": 100, "validation": 45, "test": 45}
    texts = {name: {pair[side] for pair in part for side in ("input", "target")} for name, part in parts.items()}
    assert (
        not texts["train"] & texts["validation"]
        and not texts["train"] & texts["test"]
        and not texts["test"] & texts["validation"]
    )
    assert all(pair["input"].split()[-4] == pair["target"].split()[-1] for pair in parts["test"])
    told = capsys.readouterr().out
    assert "left out: 2 synsets without a hypernym" in told
    assert "left out: 10 from the top of a subtree that is held out" in told


def test_glosses_of_other_lengths_are_left_out(tmp_path):
    nouns = line(1, "a root with words enough") + line(2, "too short", "@ 00000001") + line(3, "x " * 16, "@ 00000001")
    nouns += line(4, "a child with words enough", "@ 00000001")
    pairs, left_out = make_glosses.make_pairs(read_synsets(wordnet(tmp_path, nouns)))
    assert pairs == [TextPair(100000004, "a child with words enough", "a root with words enough")]
    assert left_out == {"synsets without a hypernym": 2, "with a side of under 5 or over 15 words": 2}


def test_subtrees_are_the_largest_that_weigh_at_most_so_much():
    parents = {1: None, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 6}
    synsets = {key: Synset("", parent) for key, parent in parents.items()}
    weight = dict.fromkeys(parents, 1)
    assert subtrees(synsets, weight, 7) == dict.fromkeys(parents, 1)
    assert subtrees(synsets, weight, 3) == {2: 2, 4: 2, 5: 2, 3: 3, 6: 3, 7: 3}
    assert subtrees(synsets, weight, 2) == {4: 4, 5: 5, 6: 6, 7: 6}


def test_another_seed_draws_other_subtrees(tmp_path):
    synsets = read_synsets(wordnet(tmp_path, forest(kinds=20, members=9)))
    pairs, _ = make_glosses.make_pairs(synsets)
    one, again, other = (split(pairs, synsets, 40, seed)["test"] for seed in (0, 0, 1))
    assert one == again != other


def test_errors_name_file_and_line(tmp_path, capsys):
    command = ["--wordnet", str(tmp_path), "--to", str(tmp_path / "out")]
    assert make_glosses.main(command) == 2 and "data.noun" in capsys.readouterr().err
    wordnet(tmp_path, line(1, "a root") + "00000002 03 n | no counts\n")
    assert make_glosses.main(command) == 2
    assert "data.noun, line 3: must be a synset as in wndb(5WN)" in capsys.readouterr().err
    wordnet(tmp_path, line(1, "a root"))
    assert make_glosses.main(command) == 2
    assert "nothing is left for train, validation, test" in capsys.readouterr().err
    with pytest.raises(ValueError, match="2 synsets are under no root"):
        subtrees({1: Synset("", 2), 2: Synset("", 1)}, {}, 1)
