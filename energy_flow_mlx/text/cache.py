"""An LRU cache of surfaces by text, in memory, which can be saved to a file."""

import hashlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..checks import check_int
from ..files import write_aside
from ..strict_json import parse_json, to_json
from ..tensors import read_metadata, read_tensors

Surface = NDArray[np.float32]
DEFAULT_BYTES = 256 * 2**20
_FORMAT = "energy-flow text cache 1"
_OVERHEAD = 256  # estimated bytes of Python objects per entry
_TENSORS = {"surfaces": "f4", "surface_sizes": "i8", "texts": "u1", "text_sizes": "i8", "models": "i8"}


class _Key(NamedTuple):
    """Holds the text itself rather than a hash of it, so that no two texts can collide."""

    model: str
    text: str


class TextCache:
    """The surfaces of the most recently used texts, bounded in bytes.

    Args:
        max_bytes: of surfaces and texts together; the least recently used entries are evicted first.

    Raises:
        TypeError, ValueError: `max_bytes` is not an integer of at least 1.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = check_int("max_bytes", max_bytes, 1)
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[_Key, Surface] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def hit_rate(self) -> float:
        """Share of the texts requested from this object that needed no computation; 0 before any request."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else 0.0

    def __repr__(self) -> str:
        requests = self.hits + self.misses
        return (
            f"TextCache({len(self)} texts, {self.bytes / 2**20:.1f} of {self.max_bytes / 2**20:.1f} MiB, "
            f"hit rate {self.hit_rate:.1%} of {requests})"
        )

    def surfaces(self, model: str, texts: Sequence[str], compute: Callable[[list[str]], Surface]) -> Surface:
        """The surfaces of texts; those that are not cached are computed and added.

        Args:
            model: a fingerprint of everything else that a surface depends on.
            texts: N texts, at least one. A repeated text is computed once, and its repetitions count as hits.
            compute: maps M distinct texts to their surfaces [M, S].

        Returns:
            [N, S] in float32.

        Raises:
            ValueError: the result of `compute` is not [M, S] or not finite; then none of it is cached.
        """
        found: dict[str, Surface] = {}
        missing: list[str] = []
        for text in dict.fromkeys(texts):
            surface = self._entries.get(_Key(model, text))
            if surface is None:
                missing.append(text)
            else:
                found[text] = surface
        if missing:
            computed = np.array(compute(missing), dtype=np.float32)
            if computed.ndim != 2 or len(computed) != len(missing) or not np.isfinite(computed).all():
                raise ValueError(f"compute must return {len(missing)} finite surfaces, got {list(computed.shape)}")
            found.update(zip(missing, computed, strict=True))
        self.misses += len(missing)
        self.hits += len(texts) - len(missing)
        rows = np.stack([found[text] for text in texts])
        for text, surface in found.items():
            self._keep(_Key(model, text), surface)
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write every entry to a safetensors file atomically: to a temporary file, which is then renamed."""
        models = {key.model: None for key in self._entries}
        numbers = {model: number for number, model in enumerate(models)}
        texts = [key.text.encode() for key in self._entries]
        surfaces = list(self._entries.values())
        tensors = {
            "surfaces": np.concatenate([np.empty(0, np.float32), *surfaces]),
            "surface_sizes": np.array([surface.size for surface in surfaces], dtype=np.int64),
            "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "text_sizes": np.array([len(text) for text in texts], dtype=np.int64),
            "models": np.array([numbers[key.model] for key in self._entries], dtype=np.int64),
        }
        listed = to_json(list(models), indent=None)
        metadata = {"format": _FORMAT, "models": listed, "digest": _digest(tensors, listed)}
        write_aside(path, lambda aside: aside.write_bytes(save(tensors, metadata)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], max_bytes: int = DEFAULT_BYTES) -> "TextCache":
        """Load a saved cache; an empty one if there is no file.

        A damaged file is renamed to NAME.damaged (NAME.damaged-2, …) with a warning, and the cache starts empty. If the
        file exceeds `max_bytes`, the most recently used entries are kept.
        """
        path = Path(path)
        cache = cls(max_bytes)
        if not path.exists():
            return cache
        try:
            entries = list(_read(path))
        except ValueError as error:
            kept = _aside(path)
            os.replace(path, kept)
            warnings.warn(
                f"the text cache {path} is damaged and starts empty; the old file is kept as {kept.name}: {error}",
                stacklevel=2,
            )
            return cache
        for key, surface in entries:
            cache._keep(key, surface)
        return cache

    def _keep(self, key: _Key, surface: Surface) -> None:
        """Make this the most recently used entry, and evict others until the cache fits `max_bytes`."""
        if key not in self._entries:
            # A copy: a view would keep the whole batch in memory.
            self._entries[key] = surface.copy()
            self.bytes += _size(key, surface)
        self._entries.move_to_end(key)
        while self.bytes > self.max_bytes:
            self.bytes -= _size(*self._entries.popitem(last=False))


class ModelFingerprint:
    """A hash of a model's weights, recomputed only when they have changed."""

    def __init__(self) -> None:
        self._seen: dict[str, mx.array] = {}
        self._value = ""

    def of(self, parameters: Mapping[str, mx.array]) -> str:
        """The hash of names, dtypes, shapes and values of `parameters`, arrays of any shape."""
        if not self._same(parameters):
            digest = hashlib.blake2b(digest_size=16)
            for name, array in parameters.items():
                digest.update(f"{name} {array.dtype} {array.shape} ".encode())
                exact = array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array  # NumPy has no bfloat16
                digest.update(np.array(exact).data)
            # New handles: an update such as array[0] = 1 rebinds the caller's handle and leaves these unchanged.
            self._seen = {name: mx.array(array) for name, array in parameters.items()}
            self._value = digest.hexdigest()
        return self._value

    def _same(self, parameters: Mapping[str, mx.array]) -> bool:
        if {name: (array.dtype, array.shape) for name, array in parameters.items()} != {
            name: (array.dtype, array.shape) for name, array in self._seen.items()
        }:
            return False
        equal = [mx.array_equal(array, self._seen[name], equal_nan=True) for name, array in parameters.items()]
        return all(np.array(mx.stack(equal)))


def _size(key: _Key, surface: Surface) -> int:
    return int(surface.nbytes) + len(key.text.encode()) + _OVERHEAD


def _digest(tensors: dict[str, np.ndarray], models: str) -> str:
    digest = hashlib.blake2b(models.encode(), digest_size=16)
    for name in _TENSORS:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _read(path: Path) -> Iterator[tuple[_Key, Surface]]:
    """The entries of a file, least recently used first. Raises ValueError if the file is damaged."""
    metadata = read_metadata(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, accepted is {_FORMAT!r}")
    tensors = read_tensors(path)
    kinds = {name: array.dtype.str[1:] for name, array in tensors.items()}
    if kinds != _TENSORS or any(array.ndim != 1 for array in tensors.values()):
        raise ValueError(f"it holds {kinds}, accepted are {_TENSORS}, in one dimension each")
    # A matching digest means that the file is exactly what `save` wrote, so the rest needs no checks.
    if metadata.get("digest") != _digest(tensors, metadata.get("models", "")):
        raise ValueError("its contents do not have the hash that it was saved with")
    models = parse_json(metadata["models"])
    texts = tensors["texts"].tobytes()
    spans = zip(_spans(tensors["text_sizes"]), _spans(tensors["surface_sizes"]), tensors["models"], strict=True)
    for (text_start, text_end), (start, end), model in spans:
        yield _Key(models[int(model)], texts[text_start:text_end].decode()), tensors["surfaces"][start:end]


def _spans(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    return pairwise(accumulate((int(size) for size in sizes), initial=0))


def _aside(path: Path) -> Path:
    kept, number = path.with_name(f"{path.name}.damaged"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    return kept
