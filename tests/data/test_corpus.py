import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from energy_flow_mlx.data import TextPair, corpus_size, generate_pairs, lexicon, split_pairs
from energy_flow_mlx.data.corpus import _patterns, _shares
from energy_flow_mlx.data.permute import permuted

DIGEST = "import hashlib; from energy_flow_mlx.data import generate_pairs; "
DIGEST += "print(hashlib.sha256(repr([tuple(p) for p in generate_pairs(500, 7)]).encode()).hexdigest())"


@pytest.fixture(scope="module")
def pairs() -> list[TextPair]:
    return generate_pairs(50_000, 0)


def test_fifty_thousand_pairs_have_distinct_premises_and_never_repeat_them(pairs):
    assert len({pair.input for pair in pairs}) == len(pairs) == 50_000
    assert all(pair.input != pair.target for pair in pairs)
    assert len({pair.target for pair in pairs}) > 25_000


def test_the_grammar_makes_far_more_than_asked_for():
    assert corpus_size() >= 100_000
    with pytest.raises(ValueError, match=f"count must be at most {corpus_size()}.*got {corpus_size() + 1}"):
        generate_pairs(corpus_size() + 1, 0)


def test_same_seed_same_pairs_in_a_process_with_another_hash_seed():
    expected = hashlib.sha256(repr([tuple(pair) for pair in generate_pairs(500, 7)]).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected
    assert generate_pairs(500, 8) != generate_pairs(500, 7)


def test_the_pairs_of_a_seed_are_pinned():
    """A change here changes every run that anybody has trained on the built-in data."""
    assert generate_pairs(3, 0) == PINNED


def test_every_pattern_has_an_equal_share():
    shares = _shares(1000, [10, 10_000, 500, 10_000])
    assert shares == [10, 330, 330, 330]
    assert _shares(20, [10, 5, 5]) == [10, 5, 5]


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000])
def test_permutation_reaches_every_index_once(size):
    for key in (0, 1, 2**63):
        assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


def test_different_choices_write_different_premises():
    """Distinct premises rest on this: within a pattern by its slots, between patterns by their wording."""
    seen: set[str] = set()
    for pattern in _patterns():
        step = max(1, pattern.size // 4001)
        premises = [pattern.pair(index).input for index in range(0, pattern.size, step)]
        premises += [pattern.pair(index).input for index in range(1, min(pattern.size, 3000))]
        indices = {*range(0, pattern.size, step), *range(1, min(pattern.size, 3000))}
        assert len(set(premises)) == len(indices)
        assert not seen & set(premises)
        seen.update(premises)


def test_lexicon_words_have_one_class_each():
    for classes in (lexicon.AGENTS, lexicon.OBJECTS, lexicon.ANIMALS, lexicon.COUNTRIES):
        members = Counter(name for names in classes.values() for name in names)
        assert max(members.values()) == 1
        assert not set(members) & set(classes)
    for words in (lexicon.AGENT_ADJECTIVES, lexicon.OBJECT_ADJECTIVES, lexicon.ADVERBS, lexicon.NUMBERS):
        assert len(set(words)) == len(words)
    verbs = [(verb, kind) for frame in lexicon.FRAMES for verb in frame.verbs for kind in frame.classes]
    assert len(set(verbs)) == len(verbs)
    assert {kind for frame in lexicon.FRAMES for kind in frame.classes} == set(lexicon.OBJECTS)


HYPERNYM = {
    **{
        name: kind
        for classes in (lexicon.AGENTS, lexicon.OBJECTS, lexicon.ANIMALS)
        for kind in classes
        for name in classes[kind]
    },
    **{city: country for country, cities in lexicon.COUNTRIES.items() for city in cities},
    **{
        getattr(verb, form): getattr(frame.general, to)
        for frame in (*lexicon.FRAMES, *lexicon.ANIMAL_FRAMES)
        for verb in frame.verbs
        for form, to in (("base", "base"), ("third", "third"), ("participle", "third"))
    },
}
CONSTANT = {"a", "an", "the", "and", "some", "two", "in", "from", "of", "on", "at", "lives", "during", "day", "night"}
CONSTANT |= {"weekday", "weekend", "indoors", "outdoors"}


def test_every_word_of_the_hypothesis_comes_from_the_premise(pairs):
    """Each content word stands in the premise or generalises one that does (plurals compared by their stem)."""

    def stem(word: str) -> str:
        return {"children": "child", "infantrymen": "infantryman", "pieces": "piece"}.get(word, re.sub(r"s$", "", word))

    for premise, hypothesis in pairs[:5000]:
        words = re.findall(r"\w+", premise)
        known = {stem(word) for word in words}
        for word in words:
            for key in (word, stem(word)):
                known.update(stem(part) for part in HYPERNYM.get(key, "").split())
        missing = {word for word in re.findall(r"\w+", hypothesis) if stem(word) not in known} - CONSTANT
        assert not missing, (premise, hypothesis)


def test_articles_and_case(pairs):
    for text in (text for pair in pairs[:5000] for text in pair):
        assert re.fullmatch(r"[a-z ,]+\.", text) and "  " not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_patterns_write_the_example_of_their_docstring():
    def occurs(choice, text: str) -> bool:
        if isinstance(choice, str):
            return choice in text
        if hasattr(choice, "verb"):
            return choice.object in text and any(form in text for form in choice.verb)
        return choice.name in text if hasattr(choice, "name") else all(occurs(part, text) for part in choice)

    for pattern in _patterns():
        example = TextPair(*(pattern.write.__doc__ or "").split(" -> "))
        slots = [[choice for choice in slot if occurs(choice, " ".join(example))] for slot in pattern.slots]
        assert example in [pattern.write(*choices) for choices in itertools.product(*slots)]


def test_split_sizes_and_disjoint_premises(pairs):
    splits = split_pairs(pairs[:5000], validation=300, test=200, seed=3)
    assert [len(part) for part in splits] == [4500, 300, 200]
    premises = [{pair.input for pair in part} for part in splits]
    assert not premises[0] & premises[1] and not premises[0] & premises[2] and not premises[1] & premises[2]
    assert sorted(pair for part in splits for pair in part) == sorted(pairs[:5000])
    assert split_pairs(pairs[:5000], 300, 200, 3) == splits
    assert split_pairs(pairs[:5000], 300, 200, 4) != splits


def test_split_keeps_the_pairs_of_a_premise_together():
    pairs = [TextPair(f"premise {number // 3}", f"hypothesis {number}") for number in range(300)]
    splits = split_pairs(pairs, validation=20, test=31, seed=0)
    assert [len(part) for part in splits[1:]] == [20, 31]
    assert 300 - 51 - 2 * 2 <= len(splits.train) <= 300 - 51  # at most two surplus pairs are left out for each part
    premises = [{pair.input for pair in part} for part in splits]
    assert not premises[0] & premises[1] and not premises[0] & premises[2] and not premises[1] & premises[2]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, 0), ValueError, "count must be an integer of 1 or more, got 0"),
        ((1.5, 0), TypeError, "count must be an integer"),
        ((True, 0), TypeError, "count must be an integer"),
        ((1, -1), ValueError, "seed must be an integer from 0 to 4294967295, got -1"),
        ((1, 2**32), ValueError, "seed must be"),
    ],
)
def test_generate_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        generate_pairs(*arguments)


def test_split_refuses():
    pairs = generate_pairs(10, 0)
    with pytest.raises(ValueError, match=r"validation \(6\) and test \(4\) leave nothing to train on: got 10 pairs"):
        split_pairs(pairs, 6, 4, 0)
    with pytest.raises(ValueError, match="test must be an integer of 0 or more, got -1"):
        split_pairs(pairs, 1, -1, 0)


PINNED = [
    TextPair("twelve cousins pull a brown ferry on monday.", "some relatives pull a ferry on a weekday."),
    TextPair("a cellist from rome buys a pretty jacket.", "a musician from italy gets a jacket."),
    TextPair("the busy organist who observes a spaniel lives in milan.", "a busy musician lives in italy."),
]
