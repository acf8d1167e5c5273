"""The words of the built-in corpus: what each word is, and what it entails.

This module only holds data. A class name is the hypernym of its members ("guitar" -> "instrument"), a frame's general
verb is entailed by each of its verbs ("devours" -> "eats"). Every member belongs to one class only, so that a hypernym
is a function of the word.
"""

from typing import NamedTuple


class Verb(NamedTuple):
    """The three forms that the grammar writes."""

    base: str
    third: str
    participle: str


class Frame(NamedTuple):
    """Verbs that entail one general verb, and the classes of objects that they take."""

    general: Verb
    verbs: tuple[Verb, ...]
    classes: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


def _frame(general: str, verbs: str, classes: str) -> Frame:
    return Frame(Verb(*general.split()), tuple(Verb(*verb.split()) for verb in _phrases(verbs)), _phrases(classes))


AGENTS: dict[str, tuple[str, ...]] = {
    "musician": _words("violinist pianist drummer guitarist cellist trumpeter organist harpist"),
    "athlete": _words("swimmer runner boxer gymnast skier wrestler goalkeeper sprinter"),
    "artist": _words("painter sculptor illustrator potter engraver"),
    "builder": _words("carpenter plumber bricklayer roofer welder plasterer"),
    "doctor": _words("surgeon dentist cardiologist psychiatrist radiologist"),
    "scientist": _words("chemist biologist physicist astronomer geologist botanist"),
    "child": _words("boy girl toddler schoolboy schoolgirl"),
    "teacher": _words("professor lecturer tutor headmaster instructor"),
    "performer": _words("juggler clown acrobat magician ballerina comedian"),
    "soldier": _words("sergeant corporal gunner paratrooper infantryman"),
    "relative": _words("aunt uncle cousin niece nephew grandmother grandfather"),
    "writer": _words("poet novelist journalist playwright biographer"),
}

OBJECTS: dict[str, tuple[str, ...]] = {
    "instrument": _words("guitar violin piano flute cello trumpet harp banjo"),
    "fruit": _words("apple pear banana peach plum mango cherry lemon"),
    "vegetable": _words("carrot onion potato cabbage turnip leek radish"),
    "tool": _words("hammer wrench saw chisel shovel rake drill"),
    "flower": _words("rose tulip daisy lily orchid poppy sunflower"),
    "garment": _words("shirt jacket coat scarf skirt sweater dress"),
    "book": _words("novel cookbook textbook biography atlas dictionary"),
    "vehicle": _words("truck van taxi tractor bus jeep ambulance"),
    "container": _words("basket bucket crate jar barrel suitcase"),
    "toy": _words("doll kite puppet rattle frisbee teddy"),
    "ball": _words("football basketball baseball softball volleyball"),
    "piece of furniture": _words("chair table sofa desk wardrobe bench stool"),
    "device": _words("laptop radio camera telephone printer clock"),
    "boat": _words("canoe kayak ferry yacht gondola"),
    "tree": _words("oak maple willow birch pine"),
    "bird": _words("sparrow eagle hawk owl crow parrot pigeon"),
    "dog": _words("poodle terrier spaniel beagle collie greyhound"),
    "insect": _words("beetle butterfly moth ant bee wasp grasshopper"),
}

# Objects that are not found indoors.
OUTDOOR_CLASSES = frozenset({"vehicle", "boat", "tree"})

FRAMES: tuple[Frame, ...] = (
    _frame(
        "eat eats eaten",
        "devour devours devoured, nibble nibbles nibbled, munch munches munched, gobble gobbles gobbled",
        "fruit, vegetable",
    ),
    _frame(
        "cook cooks cooked",
        "fry fries fried, boil boils boiled, roast roasts roasted, grill grills grilled",
        "vegetable, fruit",
    ),
    _frame(
        "cut cuts cut",
        "slice slices sliced, chop chops chopped, trim trims trimmed",
        "vegetable, fruit, flower, tree",
    ),
    _frame(
        "get gets got",
        "buy buys bought, purchase purchases purchased, borrow borrows borrowed, steal steals stolen",
        "instrument, book, garment, tool, toy, device, vehicle, boat",
    ),
    _frame(
        "repair repairs repaired",
        "fix fixes fixed, mend mends mended, restore restores restored",
        "instrument, vehicle, device, piece of furniture, boat, toy",
    ),
    _frame(
        "clean cleans cleaned",
        "scrub scrubs scrubbed, wash washes washed, wipe wipes wiped, polish polishes polished",
        "vehicle, container, tool, piece of furniture, instrument, boat",
    ),
    _frame(
        "move moves moved",
        "push pushes pushed, pull pulls pulled, drag drags dragged, lift lifts lifted",
        "piece of furniture, container, boat",
    ),
    _frame(
        "hold holds held",
        "grip grips gripped, clutch clutches clutched, grasp grasps grasped, cradle cradles cradled",
        "tool, flower, ball, toy, book",
    ),
    _frame(
        "throw throws thrown",
        "toss tosses tossed, hurl hurls hurled, fling flings flung",
        "ball, toy, fruit",
    ),
    _frame(
        "make makes made",
        "build builds built, assemble assembles assembled, design designs designed",
        "toy, piece of furniture, container, boat",
    ),
    _frame(
        "depict depicts depicted",
        "sketch sketches sketched, paint paints painted, photograph photographs photographed",
        "bird, flower, insect, tree, dog, boat",
    ),
    _frame(
        "see sees seen",
        "spot spots spotted, notice notices noticed, observe observes observed, watch watches watched",
        "bird, insect, dog, vehicle, boat, tree",
    ),
    _frame(
        "touch touches touched",
        "stroke strokes stroked, pat pats patted, tickle tickles tickled",
        "dog, bird, insect",
    ),
    _frame(
        "read reads read",
        "skim skims skimmed, study studies studied, browse browses browsed",
        "book",
    ),
)

ANIMALS: dict[str, tuple[str, ...]] = {
    **{name: OBJECTS[name] for name in ("bird", "dog", "insect")},
    "cat": _words("tabby siamese persian manx"),
    "horse": _words("stallion mare foal pony"),
    "fish": _words("salmon trout carp pike"),
    "snake": _words("cobra python viper adder"),
}

_ANY_ANIMAL = ", ".join(ANIMALS)

ANIMAL_FRAMES: tuple[Frame, ...] = (
    _frame("see sees seen", "spot spots spotted, notice notices noticed, watch watches watched", _ANY_ANIMAL),
    _frame("follow follows followed", "chase chases chased, pursue pursues pursued, stalk stalks stalked", _ANY_ANIMAL),
    _frame("hurt hurts hurt", "bite bites bitten, wound wounds wounded, maul mauls mauled", _ANY_ANIMAL),
    _frame("avoid avoids avoided", "evade evades evaded, dodge dodges dodged, shun shuns shunned", _ANY_ANIMAL),
)

AGENT_ADJECTIVES = _words(
    "young old tall tired cheerful quiet busy friendly hungry nervous proud clever shy patient bored famous"
)
OBJECT_ADJECTIVES = _words(
    "red blue green yellow white black brown small large heavy clean dirty strange ugly pretty damp"
)
ADVERBS = _words("slowly quickly carefully quietly happily calmly eagerly gently clumsily silently")
NUMBERS = _words("two three four five six seven eight nine ten eleven twelve")

# place -> what it entails
PLACES: dict[str, str] = {
    **dict.fromkeys(
        _phrases(
            "in the kitchen, in the library, in a classroom, in the museum, in the hallway, in a bedroom, "
            "in the attic, in a corridor, in the cellar, in an office, in the lobby, in the bathroom"
        ),
        "indoors",
    ),
    **dict.fromkeys(
        _phrases(
            "on the beach, in a meadow, in the forest, in the desert, by the river, on a hill, in a field, "
            "by the lake, on the street, on the lawn, in the orchard, by the sea"
        ),
        "outdoors",
    ),
}

TIMES: dict[str, str] = {
    **dict.fromkeys(_phrases("on monday, on tuesday, on wednesday, on thursday, on friday"), "on a weekday"),
    **dict.fromkeys(_phrases("on saturday, on sunday"), "at the weekend"),
    **dict.fromkeys(_phrases("at noon, at midday"), "during the day"),
    "at midnight": "at night",
}

COUNTRIES: dict[str, tuple[str, ...]] = {
    "france": _words("paris lyon marseille bordeaux"),
    "italy": _words("rome milan naples turin"),
    "england": _words("london leeds liverpool bristol"),
    "germany": _words("berlin munich hamburg cologne"),
    "spain": _words("madrid seville valencia bilbao"),
    "japan": _words("tokyo osaka kyoto nagoya"),
    "canada": _words("toronto montreal ottawa calgary"),
    "india": _words("mumbai delhi chennai kolkata"),
    "brazil": _words("brasilia salvador recife manaus"),
    "egypt": _words("cairo alexandria luxor aswan"),
}

IRREGULAR_PLURALS: dict[str, str] = {
    "child": "children",
    "infantryman": "infantrymen",
    "piece of furniture": "pieces of furniture",
}
