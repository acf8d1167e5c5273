"""Scores of texts that came back, against values computed by hand and sacrebleu's own."""

import math
import sys

import pytest

from energy_flow_mlx.text.scores import NO_BLEU, TextScores, bleu, scores_by_length, token_f1, words


@pytest.mark.parametrize(
    ("wanted", "came", "f1"),
    [
        ("a dog runs.", "A  dog\u200b runs .", 1),
        ("a dog runs.", "", 0),
        ("", "a dog", 0),
        ("a b c d", "a b x", 2 * 2 / 7),
        ("the the cat", "the dog", 2 * 1 / 5),  # each of a token's occurrences counts
        ("the cat", "the the the cat", 2 * 2 / 6),
        ("the dog's bone!", "the dog's bone?", 2 * 3 / 8),  # dog's is one token, a mark another
        ("one two", "two one", 1),
    ],
)
def test_token_f1(wanted: str, came: str, f1: float) -> None:
    assert token_f1(wanted, came) == pytest.approx(f1, abs=1e-12)


def test_words_are_counted_without_marks() -> None:
    assert [words(text) for text in ("", "?!", "it's five, or: 5.0 o\u2019clock", "héron — 猫")] == [0, 0, 6, 2]


def test_a_text_is_equal_whatever_its_case_and_spaces() -> None:
    (score,) = {*scores_by_length(["Ein Weg.", "ein Weg."], ["ein\u00a0weg.", "ein Weg"]).values()}
    assert score.texts == 2 and score.exact == 0.5 and score.cosine is None


def test_lengths() -> None:
    texts = [" ".join(["w"] * count) + "." for count in (1, 5, 6, 8, 9, 12, 13, 16, 17, 40)]
    came = [text if at % 2 else "x" for at, text in enumerate(texts)]
    found = scores_by_length(texts, came, [at / 10 for at in range(10)])
    assert list(found) == ["up to 5", "6-8", "9-12", "13-16", "over 16", "all"]
    assert [score.texts for score in found.values()] == [2, 2, 2, 2, 2, 10]
    assert [score.exact for score in found.values()] == [0.5] * 6 and [score.token_f1 for score in found.values()] == [0.5] * 6
    assert [score.cosine for score in found.values()] == pytest.approx([0.05, 0.25, 0.45, 0.65, 0.85, 0.45])
    assert list(scores_by_length(texts[:1], came[:1])) == ["up to 5", "all"]


def test_bleu_by_hand() -> None:
    pytest.importorskip("sacrebleu", reason=NO_BLEU)
    # n-grams that came: 5, 4, 3, 2; of them wanted: 4, 3, 2, 1; no shorter than wanted.
    assert bleu(["a b c d e"], ["A b c d x"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    # All of it right, but 4 tokens where 6 were wanted: exp(1 - 6 / 4).
    assert bleu(["a b c d e f"], ["a b c d"]) == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert bleu(["a b"], ["a b"]) == pytest.approx(100)  # no longer n-grams than there are
    # A corpus adds its n-grams up: it is no mean of its texts.
    assert bleu(["a b c d e", "p q r s"], ["a b c d x", "p q r s"]) == pytest.approx(100 * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** (1 / 4))


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason=NO_BLEU)
    wanted = ["the dog, which runs, isn't red.", "a man reads 5.0 books in the park .", "two cats sleep on the warm mat"] * 40
    came = ["the dog, that runs, isn't red.", "a man reads 5.1 books in a park .", "two dogs sleep on the warm mat"] * 40
    assert bleu(wanted, came) == pytest.approx(sacrebleu.corpus_bleu(came, [wanted], force=True).score, abs=1e-9)
    assert scores_by_length(wanted, came)["all"].bleu == bleu(wanted, came)


def test_without_sacrebleu_there_is_no_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert scores_by_length(["a b"], ["a b"]) == dict.fromkeys(["up to 5", "all"], TextScores(1, 1.0, 1.0, None, None))


@pytest.mark.parametrize(("wanted", "came", "cosines"), [(["a"], [], None), ([], [], None), (["a"], ["a"], [1, 1])])
def test_what_does_not_fit_is_refused(wanted: list[str], came: list[str], cosines: list[float] | None) -> None:
    with pytest.raises(ValueError, match="must be as many, and one at least, got .*'came': "):
        scores_by_length(wanted, came, cosines)
