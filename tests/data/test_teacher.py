import os
import subprocess
import sys
import time

import numpy as np
import pytest

from energy_flow_mlx.data import HashedNgramTeacher, Teacher, generate_pairs

PARAPHRASES = [
    ("a man carries some bread under a bridge.", "some bread is carried by a man under a bridge."),
    ("the violinist plays a piano at the market.", "at the market, a violinist is playing the piano."),
    ("two dogs are chasing a red ball in the park.", "in the park two dogs chase a ball."),
    ("a chef slowly cooks three onions.", "three onions are cooked slowly by a cook."),
]


@pytest.fixture(scope="module")
def teacher() -> HashedNgramTeacher:
    return HashedNgramTeacher()


def test_shape_type_and_length(teacher):
    embeddings = teacher.embed(["a cat.", "two dogs run", "guitar"])
    assert embeddings.shape == (3, 768) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert teacher.embed([]).shape == (0, 768)
    assert HashedNgramTeacher(dim=7).embed(["a"]).shape == (1, 7)


def test_is_a_teacher(teacher):
    protocol: Teacher = teacher
    assert (protocol.dim, protocol.name) == (768, "hashed-ngram-768-seed0")


def test_paraphrases_are_closer_than_unrelated_texts(teacher):
    first = teacher.embed([pair[0] for pair in PARAPHRASES])
    second = teacher.embed([pair[1] for pair in PARAPHRASES])
    cosine = first @ second.T
    unrelated = cosine[~np.eye(len(PARAPHRASES), dtype=bool)]
    assert np.diag(cosine).min() > unrelated.max() + 0.1


def test_neighbouring_words_and_letters_count(teacher):
    dog, same, swapped = teacher.embed(["dog bites man", "Dog  bites MAN!", "man bites dog"])
    np.testing.assert_array_equal(dog, same)
    assert 0.5 < dog @ swapped < 0.99
    violin, violinist, tractor = teacher.embed(["violin", "violinist", "tractor"])
    assert violin @ violinist > violin @ tractor + 0.2


def test_empty_text_is_embedded_as_the_word_empty(teacher):
    empty = teacher.embed(["empty", "", " \t\n"])
    np.testing.assert_array_equal(empty[0], empty[1])
    np.testing.assert_array_equal(empty[0], empty[2])


ODD_TEXTS = ["!!!", "\x00", "日本語の文", "\ufb01ne", "e\u0301", "\u200b", "🎻 🎻", "_", "word " * 3000, "x" * 20_000]
ODD_TEXTS.append(" ".join(str(number) for number in range(6000)))  # more distinct words than one gather takes


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_any_text_has_a_unit_vector(teacher, text):
    assert np.linalg.norm(teacher.embed([text])) == pytest.approx(1, abs=1e-5)


def test_rows_do_not_depend_on_their_company_or_on_the_cache(teacher):
    texts = [pair.input for pair in generate_pairs(300, 1)]
    together = teacher.embed(texts)
    alone = np.concatenate([HashedNgramTeacher().embed([text]) for text in texts[:3]])
    np.testing.assert_array_equal(together[:3], alone)
    np.testing.assert_array_equal(together, teacher.embed(texts))


def test_seed_decides_the_rows():
    first, again, other = (HashedNgramTeacher(32, seed).embed(["a cat"]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(float((first @ other.T)[0, 0])) < 0.7


def test_embeddings_are_pinned():
    """A change here changes every data set that anybody has embedded."""
    np.testing.assert_allclose(HashedNgramTeacher(4).embed(["a red guitar."])[0], PINNED, atol=1e-6)


def test_every_process_gives_the_same_bits():
    code = "from energy_flow_mlx.data import HashedNgramTeacher as T;"
    code += (
        "print(T(16).embed(['a tired violinist from paris slowly carries one red guitar to the sea']).tobytes().hex())"
    )
    runs = set()
    for seed in "123":
        environment, command = {**os.environ, "PYTHONHASHSEED": seed}, [sys.executable, "-c", code]
        runs.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert len(runs) == 1 and len(runs.pop()) == 16 * 8


def test_twenty_thousand_sentences_in_seconds(teacher):
    texts = [pair.input for pair in generate_pairs(20_000, 2)]
    start = time.process_time()
    teacher.embed(texts)
    assert time.process_time() - start < 15  # about 1 s on one core; the margin is for a loaded CI machine


@pytest.mark.parametrize(
    ("texts", "error", "text"),
    [
        ("a cat", TypeError, "texts must be a list of strings, got str"),
        (iter(["a"]), TypeError, "texts must be a list of strings"),
        (["a", 3], TypeError, r"texts\[1\] must be a string, got int"),
        (["a", "b", None], TypeError, r"texts\[2\] must be a string, got NoneType"),
        (["\ud800"], ValueError, r"texts\[0\] is not valid Unicode"),
    ],
)
def test_embed_refuses(teacher, texts, error, text):
    with pytest.raises(error, match=text):
        teacher.embed(texts)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be an integer of 1 or more, got 0"),
        ({"dim": 2.0}, TypeError, "dim must be an integer"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0 to 4294967295"),
    ],
)
def test_teacher_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        HashedNgramTeacher(**arguments)


PINNED = [-0.7574865818, -0.6169203520, -0.2053739876, -0.0586926416]
