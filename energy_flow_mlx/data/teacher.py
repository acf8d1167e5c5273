"""Teachers embed texts; the model learns to map input embeddings to target embeddings."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .encoder_teacher import EncoderTeacher
from .hashed_ngram import HashedNgramTeacher

__all__ = ["EncoderTeacher", "HashedNgramTeacher", "Teacher", "open_teacher"]

BUILT_IN = "builtin"
_BUILT_IN_DIM = 768


class Teacher(Protocol):
    """Anything that embeds texts."""

    @property
    def dim(self) -> int:
        """Size of an embedding, E."""
        ...

    @property
    def name(self) -> str:
        """A human-readable name. It is not unique: two teachers of the same name may have different weights."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the embeddings depend on, equal across processes and machines."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed N texts as [N, E], finite. Rows have length 1 unless the teacher was opened with `normalise=False`."""
        ...


def open_teacher(
    spec: str | os.PathLike[str],
    *,
    dim: int | None = None,
    pooling: str | None = None,
    normalise: bool = True,
    dtype: str = "float32",
    max_length: int | None = None,
) -> Teacher:
    """Open the teacher that `spec` names.

    Args:
        spec: "builtin" (HashedNgramTeacher), the path of a Hugging Face folder with a BERT or DistilBERT encoder
            (config.json, model.safetensors, tokenizer.json), or the hub id of one, such as "distilbert-base-uncased".
            Hub files are cached and then used without network access. In a folder of sentence-transformers
            (modules.json) the pooling, Dense and Normalize modules, the length and the default prompt are that library's.
        dim: E. For "builtin" the size to use (None: 768); for an encoder the size that the caller expects (None: any).
        pooling: "mean" over the tokens of the text, "cls" (the first token), "max", "mean_sqrt_len_tokens" (the sum over the
            root of their number), "weightedmean" (weights 1, 2, 3, … along the text), "lasttoken", or several joined by
            +, such as "cls+mean". None: the folder's, else "mean".
        normalise: scale each embedding to length 1. False also leaves out a Normalize at the end of the folder's modules.
        dtype: of weights and matrix products: "float32", "float16" or "bfloat16".
        max_length: tokens of a text; longer texts are truncated. None: the folder's, if it has a modules.json, else 128.
            "builtin" has no tokens and never truncates.

    Raises:
        FileNotFoundError: no such folder, and the download failed; says what to download and where to put it.
        TypeError, ValueError: an argument is not accepted, files are damaged or of another model type, or `dim` is not
            the encoder's. The message names the argument or file, its value and what is accepted.
    """
    spec = os.fspath(spec)
    if spec != BUILT_IN:
        teacher = EncoderTeacher.open(spec, pooling=pooling, normalise=normalise, dtype=dtype, max_length=max_length)
        if dim is not None and dim != teacher.dim:
            raise ValueError(f"dim={dim} is not the embedding size of {teacher.name}, which is {teacher.dim}")
        return teacher
    for argument, value, accepted in (
        ("pooling", pooling or "mean", "mean"),
        ("normalise", normalise, True),
        ("dtype", dtype, "float32"),
    ):
        if value != accepted:
            raise ValueError(f"{argument}={value!r} is not accepted with the teacher {BUILT_IN}: it takes {accepted!r}")
    return HashedNgramTeacher(_BUILT_IN_DIM if dim is None else dim)
