"""The built-in corpus: premise -> entailed hypothesis, composed from the words of the lexicon.

A pattern fixes the shape of the premise and what the hypothesis keeps, drops and generalises, so the hypothesis follows
from the premise and is a function of it. No two choices of words write the same premise; hypotheses do repeat, because
many premises entail the same sentence. All sentences are lower case and end in a full stop.

The same arguments give the same pairs on every platform and Python version.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from ..checks import check_int
from . import lexicon
from .permute import mix, permuted, shuffle

MAX_SEED = (1 << 32) - 1


class TextPair(NamedTuple):
    """`target` is entailed by `input`."""

    input: str
    target: str


class Splits(NamedTuple):
    """Three parts that share no premise, and so no pair."""

    train: list[TextPair]
    validation: list[TextPair]
    test: list[TextPair]


class _Action(NamedTuple):
    verb: lexicon.Verb
    general: lexicon.Verb
    object: str
    kind: str  # the object's class


class _Agent(NamedTuple):
    name: str
    kind: str


class _Pattern(NamedTuple):
    """`write(*choices)` makes a pair from one choice of every slot; different choices write different premises."""

    slots: tuple[Sequence[Any], ...]
    write: Callable[..., TextPair]

    @property
    def size(self) -> int:
        return math.prod(len(slot) for slot in self.slots)

    def pair(self, index: int) -> TextPair:
        """The pair number `index` in 0..size-1: the digits of the index in the mixed radix of the slots."""
        choices = []
        for slot in self.slots:
            index, digit = divmod(index, len(slot))
            choices.append(slot[digit])
        return self.write(*choices)


def _a(*words: str) -> str:
    """The words with their article. The first letter decides it: the lexicon has no word such as "hour" or "unit"."""
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _plural(noun: str) -> str:
    if noun in lexicon.IRREGULAR_PLURALS:
        return lexicon.IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def _actions(frames: Sequence[lexicon.Frame], objects: dict[str, tuple[str, ...]]) -> list[_Action]:
    return [
        _Action(verb, frame.general, thing, kind)
        for frame in frames
        for verb in frame.verbs
        for kind in frame.classes
        for thing in objects[kind]
    ]


def _agents(classes: dict[str, tuple[str, ...]]) -> list[_Agent]:
    return [_Agent(name, kind) for kind, names in classes.items() for name in names]


def _fits(action: _Action, place: str) -> bool:
    return action.kind not in lexicon.OUTDOOR_CLASSES or lexicon.PLACES[place] == "outdoors"


# The patterns. Each takes one choice per slot. Its docstring is an example: premise -> entailed hypothesis.


def _drop_adjective(adjective: str, agent: _Agent, action: _Action) -> TextPair:
    """a tired violinist devours an apple. -> a musician devours an apple."""
    return TextPair(
        f"{_a(adjective, agent.name)} {action.verb.third} {_a(action.object)}.",
        f"{_a(agent.kind)} {action.verb.third} {_a(action.object)}.",
    )


def _generalise_action(agent: _Agent, adverb: str, adjective: str, action: _Action) -> TextPair:
    """the violinist slowly devours a red apple. -> the violinist eats a fruit."""
    return TextPair(
        f"the {agent.name} {adverb} {action.verb.third} {_a(adjective, action.object)}.",
        f"the {agent.name} {action.general.third} {_a(action.kind)}.",
    )


def _front_place(located: tuple[_Action, str], agent: _Agent) -> TextPair:
    """in the kitchen, a violinist devours an apple. -> a violinist devours a fruit indoors."""
    action, place = located
    return TextPair(
        f"{place}, {_a(agent.name)} {action.verb.third} {_a(action.object)}.",
        f"{_a(agent.name)} {action.verb.third} {_a(action.kind)} {lexicon.PLACES[place]}.",
    )


def _make_active(located: tuple[_Action, str], adjective: str, agent: _Agent) -> TextPair:
    """an apple is devoured by a tired violinist in the kitchen. -> a violinist eats an apple."""
    action, place = located
    return TextPair(
        f"{_a(action.object)} is {action.verb.participle} by {_a(adjective, agent.name)} {place}.",
        f"{_a(agent.name)} {action.general.third} {_a(action.object)}.",
    )


def _blur_number(number: str, agent: _Agent, adjective: str, action: _Action, time: str) -> TextPair:
    """seven violinists devour a red apple on monday. -> some musicians devour an apple on a weekday."""
    return TextPair(
        f"{number} {_plural(agent.name)} {action.verb.base} {_a(adjective, action.object)} {time}.",
        f"some {_plural(agent.kind)} {action.verb.base} {_a(action.object)} {lexicon.TIMES[time]}.",
    )


def _generalise_agents(agents: tuple[_Agent, _Agent], action: _Action) -> TextPair:
    """a violinist and a surgeon devour an apple. -> a musician and a doctor eat an apple."""
    first, second = agents
    return TextPair(
        f"{_a(first.name)} and {_a(second.name)} {action.verb.base} {_a(action.object)}.",
        f"{_a(first.kind)} and {_a(second.kind)} {action.general.base} {_a(action.object)}.",
    )


def _count_objects(adjective: str, agent: _Agent, actions: tuple[_Action, str]) -> TextPair:
    """a tired violinist devours an apple and a pear. -> a violinist devours two fruits."""
    action, other = actions
    return TextPair(
        f"{_a(adjective, agent.name)} {action.verb.third} {_a(action.object)} and {_a(other)}.",
        f"{_a(agent.name)} {action.verb.third} two {_plural(action.kind)}.",
    )


def _city_to_country(agent: _Agent, city: tuple[str, str], adjective: str, action: _Action) -> TextPair:
    """a violinist from paris devours a red apple. -> a musician from france eats an apple."""
    return TextPair(
        f"{_a(agent.name)} from {city[0]} {action.verb.third} {_a(adjective, action.object)}.",
        f"{_a(agent.kind)} from {city[1]} {action.general.third} {_a(action.object)}.",
    )


def _drop_clause(agent: _Agent, action: _Action, city: tuple[str, str], adjective: str) -> TextPair:
    """the tired violinist who devours an apple lives in paris. -> a tired musician lives in france."""
    return TextPair(
        f"the {adjective} {agent.name} who {action.verb.third} {_a(action.object)} lives in {city[0]}.",
        f"{_a(adjective, agent.kind)} lives in {city[1]}.",
    )


def _animals(adjective: str, agent: _Agent, action: _Action, place: str) -> TextPair:
    """a brown sparrow chases a cobra in the forest. -> a bird chases a snake outdoors."""
    return TextPair(
        f"{_a(adjective, agent.name)} {action.verb.third} {_a(action.object)} {place}.",
        f"{_a(agent.kind)} {action.verb.third} {_a(action.kind)} {lexicon.PLACES[place]}.",
    )


@cache
def _patterns() -> tuple[_Pattern, ...]:
    agents, animals = _agents(lexicon.AGENTS), _agents(lexicon.ANIMALS)
    actions = _actions(lexicon.FRAMES, lexicon.OBJECTS)
    animal_actions = _actions(lexicon.ANIMAL_FRAMES, lexicon.ANIMALS)
    people, things = lexicon.AGENT_ADJECTIVES, lexicon.OBJECT_ADJECTIVES
    places, times = list(lexicon.PLACES), list(lexicon.TIMES)
    cities = [(city, country) for country, names in lexicon.COUNTRIES.items() for city in names]
    outdoors = [place for place in places if lexicon.PLACES[place] == "outdoors"]
    located = [(action, place) for action in actions for place in places if _fits(action, place)]
    pairs_of_agents = [(first, second) for first in agents for second in agents if first.kind != second.kind]
    doubled = [
        (action, other) for action in actions for other in lexicon.OBJECTS[action.kind] if other != action.object
    ]
    return (
        _Pattern((people, agents, actions), _drop_adjective),
        _Pattern((agents, lexicon.ADVERBS, things, actions), _generalise_action),
        _Pattern((located, agents), _front_place),
        _Pattern((located, people, agents), _make_active),
        _Pattern((lexicon.NUMBERS, agents, things, actions, times), _blur_number),
        _Pattern((pairs_of_agents, actions), _generalise_agents),
        _Pattern((people, agents, doubled), _count_objects),
        _Pattern((agents, cities, things, actions), _city_to_country),
        _Pattern((agents, actions, cities, people), _drop_clause),
        _Pattern((things, animals, animal_actions, outdoors), _animals),
    )


def corpus_size() -> int:
    """The number of distinct pairs that the grammar can generate."""
    return sum(pattern.size for pattern in _patterns())


def _shares(count: int, sizes: Sequence[int]) -> list[int]:
    """Split `count` into shares that are as equal as `sizes`, their upper bounds, allow."""
    shares = [0] * len(sizes)
    remaining = count
    for done, number in enumerate(sorted(range(len(sizes)), key=lambda number: (sizes[number], number))):
        shares[number] = min(sizes[number], remaining // (len(sizes) - done))
        remaining -= shares[number]
    return shares


def generate_pairs(count: int, seed: int) -> list[TextPair]:
    """Generate `count` shuffled pairs with distinct premises, in equal shares from all patterns as far as sizes allow.

    Args:
        count: from 1 to `corpus_size()`.
        seed: from 0 to 2**32 - 1.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range.
    """
    seed = check_int("seed", seed, 0, MAX_SEED)
    count = check_int("count", count, 1)
    if count > corpus_size():
        raise ValueError(f"count must be at most {corpus_size()}, the pairs that the grammar can make, got {count}")
    patterns = _patterns()
    pairs = []
    for number, share in enumerate(_shares(count, [pattern.size for pattern in patterns])):
        pattern, key = patterns[number], mix(seed << 8 | number)
        pairs += [pattern.pair(permuted(index, pattern.size, key)) for index in range(share)]
    shuffle(pairs, seed)
    return pairs


def split_pairs(pairs: Sequence[TextPair], validation: int, test: int, seed: int) -> Splits:
    """Split by premise: all pairs that share a premise go to the same part.

    Args:
        pairs: the pairs; premises may repeat, as in SNLI.
        validation, test: pairs in these parts; `train` gets the rest. If the last premise of a part has more pairs
            than the part needs, the surplus is dropped, because no other part may hold that premise.
        seed: from 0 to 2**32 - 1.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range, or no training pairs remain.
    """
    sizes = {"validation": check_int("validation", validation, 0), "test": check_int("test", test, 0)}
    seed = check_int("seed", seed, 0, MAX_SEED)
    by_premise: dict[str, list[TextPair]] = {}
    for pair in pairs:
        by_premise.setdefault(pair.input, []).append(pair)
    groups = list(by_premise.values())
    shuffle(groups, seed)
    parts: dict[str, list[TextPair]] = {}
    for name, size in sizes.items():
        part: list[TextPair] = []
        while groups and len(part) < size:
            part += groups.pop()
        parts[name] = part[:size]
    train = [pair for group in groups for pair in group]
    if not train:
        raise ValueError(
            f"validation ({validation}) and test ({test}) leave nothing to train on: "
            f"got {len(pairs)} pairs with {len(by_premise)} distinct premises"
        )
    return Splits(train, parts["validation"], parts["test"])
