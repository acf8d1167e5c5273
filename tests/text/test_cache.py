"""The text cache: exact keys, a bound, a file that survives damage, and the text encoder that uses it."""

import hashlib
import json
import random
import struct
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from train.small import small_config, small_data, small_model

from energy_flow_mlx import EnergyFlow, TextToCubeEncoder
from energy_flow_mlx.data import TextCache, Tokeniser


class Counted:
    """Surfaces that say their text, and how often each was computed."""

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.calls.append(texts)
        return np.array([surface(text, self.size) for text in texts])


def surface(text: str, size: int = 3) -> np.ndarray:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.random.default_rng(list(digest)).standard_normal(size).astype(np.float32)


def test_only_new_texts_are_computed_once() -> None:
    cache, compute = TextCache(), Counted()
    texts = ["a", "b", "a", "c"]
    np.testing.assert_array_equal(cache.surfaces("m", texts, compute), [surface(text) for text in texts])
    np.testing.assert_array_equal(cache.surfaces("m", ["c", "d", "c"], compute), [surface(text) for text in "cdc"])
    assert compute.calls == [["a", "b", "c"], ["d"]]
    assert (cache.hits, cache.misses) == (3, 4) and cache.hit_rate == 3 / 7
    assert "4 texts" in repr(cache) and "hit rate 42.9% of 7" in repr(cache)
    assert TextCache().hit_rate == 0


def test_keys_are_exact() -> None:
    """Texts of one bag of letters, of one hash sum, with one prefix; and one text under two models."""
    cache, compute = TextCache(), Counted()
    texts = ["ab", "ba", "a b", "ab ", "AB", "a\u0301b", "\u00e1b", "ab\x00", "", "x" * 1_000_000, "x" * 1_000_001]
    for model in ("m", "n"):
        np.testing.assert_array_equal(cache.surfaces(model, texts, compute), [surface(text) for text in texts])
    assert cache.misses == 2 * len(texts) == len(cache)


def test_the_bound_holds_and_the_oldest_go_first() -> None:
    entry = 3 * 4 + 1 + 256
    cache, compute = TextCache(3 * entry), Counted()
    cache.surfaces("m", ["a", "b", "c"], compute)
    cache.surfaces("m", ["a"], compute)
    cache.surfaces("m", ["d"], compute)
    assert len(cache) == 3 and cache.bytes == 3 * entry
    cache.surfaces("m", ["a", "c", "d"], compute)
    assert compute.calls == [["a", "b", "c"], ["d"]], "b was used longest ago"
    many = [str(number) for number in range(100)]
    np.testing.assert_array_equal(cache.surfaces("m", many, compute), [surface(text) for text in many])
    assert cache.bytes <= cache.max_bytes
    cache.surfaces("m", ["y" * 5000], compute)
    assert len(cache) == 0 and cache.bytes == 0, "what is over the bound alone is not kept"


def test_values_do_not_change_from_outside() -> None:
    cache, compute = TextCache(), Counted()
    cache.surfaces("m", ["a"], compute)[:] = 7
    np.testing.assert_array_equal(cache.surfaces("m", ["a"], compute), [surface("a")])


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.zeros(2), np.full((2, 3), np.nan)])
def test_bad_surfaces_are_not_kept(bad: np.ndarray) -> None:
    cache = TextCache()
    with pytest.raises(ValueError, match="compute must return 2 finite surfaces"):
        cache.surfaces("m", ["a", "b"], lambda texts: bad)
    assert len(cache) == 0 and cache.misses == 0


def filled() -> TextCache:
    cache = TextCache()
    cache.surfaces("m", ["a", "", "\u65e5\u672c", "two words"], Counted())
    cache.surfaces("n", ["a", "b"], Counted(size=5))
    cache.surfaces("m", ["a"], Counted())
    return cache


def contents(cache: TextCache) -> list[tuple[str, str, list[float]]]:
    return [(key.model, key.text, value.tolist()) for key, value in cache._entries.items()]


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    assert len(TextCache.load(path)) == 0
    TextCache().save(path)
    assert len(TextCache.load(path)) == 0
    cache = filled()
    cache.save(path)
    loaded = TextCache.load(path)
    assert contents(loaded) == contents(cache) and loaded.bytes == cache.bytes
    assert [name for _, name, _ in contents(loaded)][-1] == "a", "the order of use is kept"
    compute = Counted()
    loaded.surfaces("m", ["\u65e5\u672c"], compute)
    assert not compute.calls and (loaded.hits, loaded.misses) == (1, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["cache.safetensors"]
    small = TextCache.load(path, max_bytes=600)
    assert contents(small) == contents(cache)[-2:]


def test_damaged_files_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    filled().save(path)
    good = path.read_bytes()
    header = json.loads(good[8 : 8 + struct.unpack("<Q", good[:8])[0]])
    other = {**header, "__metadata__": {**header["__metadata__"], "format": "energy-flow text cache 2"}}
    packed = json.dumps(other).encode()
    cases = [b"", b"nonsense", good[:-1], good[:100], struct.pack("<Q", len(packed)) + packed + good[8:]]
    for number, data in enumerate(cases, 1):
        path.write_bytes(data)
        with pytest.warns(
            UserWarning, match=r"cache\.safetensors is damaged and starts empty; the old file is kept as"
        ):
            cache = TextCache.load(path)
        assert len(cache) == 0 and not path.exists()
        kept = path.with_name("cache.safetensors.damaged" + (f"-{number}" if number > 1 else ""))
        assert kept.read_bytes() == data
        cache.surfaces("m", ["a"], Counted())
        cache.save(path)
        assert len(TextCache.load(path)) == 1


def test_fuzzed_files_are_whole_or_put_aside(tmp_path: Path) -> None:
    """Cut off at every byte, and with changed bytes anywhere: what loads is what was saved."""
    path = tmp_path / "cache.safetensors"
    filled().save(path)
    good, expected = path.read_bytes(), contents(filled())
    draw = random.Random(0)
    cases = [good[:kept] for kept in range(len(good))]
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << draw.randrange(8)
        cases.append(bytes(changed))
    damaged = 0
    for case in cases:
        path.write_bytes(case)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cache = TextCache.load(path)
        aside = path.with_name("cache.safetensors.damaged")
        assert contents(cache) == ([] if caught else expected)
        assert aside.exists() == bool(caught)
        aside.unlink(missing_ok=True)
        damaged += bool(caught)
    assert damaged > 0.99 * len(cases)


@pytest.fixture
def encoder() -> TextToCubeEncoder:
    config = small_config()
    model = small_model(config)
    model.text_encoder.tokeniser = small_data(config).tokeniser
    return model.eval().text_encoder


TEXTS = ["a man eats an apple.", "", "two dogs run.", "a man eats an apple."]


def test_the_text_encoder_uses_it(encoder: TextToCubeEncoder) -> None:
    cache = TextCache()
    expected = np.array(encoder.encode(TEXTS, 16))
    np.testing.assert_allclose(np.array(encoder.encode(TEXTS, 16, cache)), expected, atol=1e-6)
    assert (cache.hits, cache.misses) == (1, 3)
    first = np.array(encoder.encode(TEXTS, 16, cache))
    assert (cache.hits, cache.misses) == (5, 3)
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_array_equal(np.array(encoder.encode(["empty"], 16, cache))[0], first[1])
    assert cache.misses == 3, "an empty text is the text empty"
    assert encoder.encode([], 16, cache).shape == encoder.encode([], 16).shape == (0, 6)


def test_a_million_characters_reach_the_cache_whole(encoder: TextToCubeEncoder, tmp_path: Path) -> None:
    cache = TextCache()
    long = ["word " * 200_000, "word " * 199_999 + "dog  "]
    encoder.encode(long, 16, cache)
    cache.save(tmp_path / "c.safetensors")
    loaded = TextCache.load(tmp_path / "c.safetensors")
    encoder.encode(long, 16, loaded)
    assert (loaded.hits, loaded.misses, len(loaded)) == (2, 0, 2)


def test_another_model_never_gets_its_surfaces(encoder: TextToCubeEncoder) -> None:
    cache = TextCache()
    prints = {encoder.fingerprint()}
    encoder.encode(TEXTS, 16, cache)

    def changed() -> None:
        before = cache.misses
        np.testing.assert_allclose(
            np.array(encoder.encode(TEXTS, 16, cache)), np.array(encoder.encode(TEXTS, 16)), atol=1e-6
        )
        assert cache.misses == before + 3
        prints.add(encoder.fingerprint())

    encoder.encode(TEXTS, 12, cache)
    assert cache.misses == 6, "another length is another surface"
    weight = encoder.token_embedding.weight
    weight[3] = weight[3] + 1  # in place: the same object with other values
    changed()
    encoder.surface_projection[0].weight = encoder.surface_projection[0].weight * 1.5
    changed()
    tokeniser = encoder.tokeniser
    encoder.tokeniser = Tokeniser.whitespace(TEXTS, 20)
    changed()
    assert len(prints) == 4
    encoder.tokeniser = tokeniser
    before = cache.misses
    encoder.encode(TEXTS, 16, cache)
    assert cache.misses == before, "a model that comes back finds what it left"


def test_the_fingerprint_survives_saving(encoder: TextToCubeEncoder, tmp_path: Path) -> None:
    config = small_config()
    model = EnergyFlow(config)
    model.text_encoder = encoder
    model.save_pretrained(tmp_path)
    assert EnergyFlow.from_pretrained(tmp_path).text_encoder.fingerprint() == encoder.fingerprint()


def test_low_precision_surfaces_come_back_exactly(encoder: TextToCubeEncoder) -> None:
    in_float32 = encoder
    encoder = TextToCubeEncoder(small_config(compute_dtype="float16"))
    encoder.update(in_float32.parameters())
    encoder.tokeniser = in_float32.tokeniser
    encoder.eval()
    cache = TextCache()
    first, second = (encoder.encode(TEXTS, 16, cache) for _ in range(2))
    assert first.dtype == second.dtype == encoder.encode(TEXTS, 16).dtype == mx.float16
    np.testing.assert_array_equal(np.array(first), np.array(second))


def test_refused(encoder: TextToCubeEncoder) -> None:
    with pytest.raises(ValueError, match="max_bytes must be an integer of 1 or more, got 0"):
        TextCache(0)
    with pytest.raises(ValueError, match="cache: surfaces vary in training mode"):
        encoder.train().encode(TEXTS, 16, TextCache())
    encoder.eval()
    encoder.tokeniser = Tokeniser.whitespace([f"word{number}" for number in range(500)], 400)
    with pytest.raises(ValueError, match="tokeniser: it has 400 vocabulary entries, the token embedding has 120"):
        encoder.encode(TEXTS, 16)
    encoder.tokeniser = None
    with pytest.raises(ValueError, match="tokeniser: None"):
        encoder.encode(TEXTS, 16, TextCache())
