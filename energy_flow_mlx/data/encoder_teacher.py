"""A teacher that embeds texts with a BERT or DistilBERT encoder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..checks import check_int, check_texts
from ..model_files import locate
from ..nn.pooling import pool
from ..text.tokeniser import TokenBatch, Tokeniser
from .bert_folder import FILES, LoadedEncoder, load_encoder
from .sentence_folder import OPTIONAL, Modules, module_files, parse_pooling, read_modules

_VERSION = 1  # of the computation; part of the fingerprint
_CHUNK = 4096  # texts that are tokenised and grouped by length at a time
_BATCH = 64
_WIDTH = 8  # batch widths are multiples of it, which keeps the number of distinct shapes small


class EncoderTeacher:
    """Embeds a text as the pooled hidden states of its tokens.

    Texts of similar length are batched together to reduce padding. A text's embedding does not depend on the rest of
    its batch, up to rounding (about 1e-6 in float32).

    Args:
        loaded: the encoder.
        tokeniser: the encoder's tokeniser.
        name: a human-readable name of the encoder.
        modules: what surrounds the encoder.
        normalise: see `open_teacher`.

    Raises:
        TypeError, ValueError: an argument is not accepted, or the tokeniser has more entries than the encoder.
    """

    def __init__(self, loaded: LoadedEncoder, tokeniser: Tokeniser, name: str, *, modules: Modules, normalise: bool) -> None:
        settings = loaded.settings
        max_length = check_int("max_length", modules.max_length, 3)
        if max_length > settings.positions:
            raise ValueError(
                f"max_length={max_length} is over the {settings.positions} positions of {name}: "
                f"accepted are 3 to {settings.positions}"
            )
        if tokeniser.vocab_size > settings.vocab_size:
            raise ValueError(
                f"the tokeniser of {name} has {tokeniser.vocab_size} entries, its encoder has {settings.vocab_size}"
            )
        self._encoder = loaded.encoder
        self._tokeniser = tokeniser
        self._modules, self._normalise = modules, bool(normalise)
        dtype = str(loaded.encoder.token_embedding.weight.dtype).removeprefix("mlx.core.")
        length = "unit length" if normalise else "not normalised"
        self._name = f"{name} ({loaded.kind}, {modules.description}, {length}, {dtype}, {max_length} tokens)"
        pooling = "+".join(modules.pooling)
        parts = (_VERSION, loaded.digest, tokeniser.fingerprint, pooling, self._normalise, dtype, max_length)
        around = tuple(part for part in (modules.prompt, modules.digest) if part)
        self._fingerprint = hashlib.blake2b(repr((*parts, *around)).encode(), digest_size=16).hexdigest()

    @classmethod
    def open(
        cls, spec: str, *, pooling: str | None, normalise: bool, dtype: str, max_length: int | None
    ) -> "EncoderTeacher":
        """The teacher in a folder or of a hub id; see `open_teacher`."""
        modes = None if pooling is None else parse_pooling(pooling)
        folder = locate("teacher", spec, [*FILES, "tokenizer.json"], optional=OPTIONAL, further=module_files)
        # The last two components of a folder's path: many are called "model", and the full path depends on the machine.
        name = "/".join(folder.resolve().parts[-2:]) if Path(os.path.expanduser(spec)).is_dir() else spec
        tokeniser = Tokeniser.from_file(folder / "tokenizer.json")
        loaded = load_encoder(folder, dtype)
        settings = loaded.settings
        modules = read_modules(folder, settings.dim, settings.positions, pooling=modes, max_length=max_length)
        return cls(loaded, tokeniser, name, modules=modules, normalise=normalise)

    def __repr__(self) -> str:
        return f"<EncoderTeacher {self._name}: texts -> [N, {self.dim}]>"

    @property
    def dim(self) -> int:
        return self._modules.dim

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: N strings. An empty one is embedded as the text "empty", and the folder's prompt stands before each.

        Returns:
            [N, E] in float32.

        Raises:
            TypeError, ValueError: `texts` is not a list of valid strings, or an embedding is not finite (float16
                can overflow). The message names the index.
        """
        checked = check_texts("texts", texts)
        rows = {text: row for row, text in enumerate(dict.fromkeys(checked))}
        distinct = list(rows)
        embeddings = np.empty((len(distinct), self.dim), dtype=np.float32)
        for start in range(0, len(distinct), _CHUNK):
            embeddings[start : start + _CHUNK] = self._embed_chunk(distinct[start : start + _CHUNK])
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        usable = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
        if not usable.all():
            index = checked.index(distinct[int(np.argmin(usable))])
            raise ValueError(f"texts[{index}]: its embedding by {self._name} holds NaN or infinity, or is all zeros")
        if self._normalise:
            embeddings /= lengths
        return embeddings[[rows[text] for text in checked]]

    def _embed_chunk(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokeniser.encode([self._modules.prompt + text for text in texts], self._modules.max_length)
        pending = []
        for rows, batch in batches(tokens):
            pooled = self._pool(mx.array(batch.input_ids), mx.array(batch.attention_mask))
            mx.async_eval(pooled)  # the device computes while the next batch is prepared
            pending.append((rows, pooled))
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        for rows, pooled in pending:
            embeddings[rows] = np.array(pooled)[: len(rows)]
        return embeddings

    def _pool(self, input_ids: mx.array, mask: mx.array) -> mx.array:
        """Encode ids and mask [B, T], pool, and go through the layers: [B, E]. What follows the encoder is in float32."""
        x = pool(self._encoder(input_ids, mask).astype(mx.float32), mask, self._modules.pooling)
        for layer in self._modules.layers:
            x = layer(x)
        return x


def batches(tokens: TokenBatch) -> Iterator[tuple[NDArray[np.intp], TokenBatch]]:
    """Group rows of similar length into batches, each row once.

    A batch is as wide as its longest row, rounded up to a multiple of 8. It has 64 rows; the last batch of a width is
    padded to the next power of two with rows of one token.

    Args:
        tokens: ids and mask [N, T].

    Yields:
        The indices [n] of the rows, and their ids and mask [B, W] with n <= B and W <= T; rows n to B - 1 are padding.
    """
    lengths = np.maximum(tokens.attention_mask.sum(axis=1), 1)
    widths = np.minimum(-(-lengths // _WIDTH) * _WIDTH, tokens.input_ids.shape[1])
    for width in np.unique(widths):
        group = np.flatnonzero(widths == width)
        for start in range(0, len(group), _BATCH):
            rows = group[start : start + _BATCH]
            height = 1 << (len(rows) - 1).bit_length()
            ids = np.zeros((height, width), dtype=np.int32)
            mask = np.zeros((height, width), dtype=np.int32)
            mask[:, 0] = 1
            ids[: len(rows)] = tokens.input_ids[rows, :width]
            mask[: len(rows)] = tokens.attention_mask[rows, :width]
            yield rows, TokenBatch(ids, mask)
