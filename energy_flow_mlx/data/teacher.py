"""Teachers: what turns a text into the embedding that the model learns from."""

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
        """Says which teacher this is, for people: two teachers of one name may differ in their weights."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the embeddings depend on; the same in every process and on every machine."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, E], finite; each row of length 1, unless the teacher was opened with `normalise=False`."""
        ...


def open_teacher(
    spec: str | os.PathLike[str],
    *,
    dim: int | None = None,
    pooling: str = "mean",
    normalise: bool = True,
    dtype: str = "float32",
    max_length: int = 128,
) -> Teacher:
    """The teacher that `spec` names.

    Args:
        spec: "builtin" (HashedNgramTeacher), the path of a Hugging Face folder with a BERT or DistilBERT encoder
            (config.json, model.safetensors, tokenizer.json), or the hub id of one, such as "distilbert-base-uncased".
            Hub files are cached and then used without network.
        dim: E. "builtin" makes this size (None: 768); of an encoder it is what the caller expects (None: any).
        pooling: "mean" over the tokens of the text, or "cls", the first one.
        normalise: scale each embedding to length 1.
        dtype: of weights and products inside: "float32", "float16" or "bfloat16".
        max_length: tokens of a text; longer ones are cut. "builtin" has no tokens and reads every text whole.

    Raises:
        FileNotFoundError: no such folder, and not to be had from the hub; says what to download and where to put it.
        TypeError, ValueError: an argument is not accepted, files are damaged or of another kind of model, or `dim` is not
            the encoder's. Names the argument or file, what came and what is accepted.
    """
    spec = os.fspath(spec)
    if spec != BUILT_IN:
        teacher = EncoderTeacher.open(spec, pooling=pooling, normalise=normalise, dtype=dtype, max_length=max_length)
        if dim is not None and dim != teacher.dim:
            raise ValueError(f"dim={dim} came, the embeddings of {teacher.name} have {teacher.dim} numbers")
        return teacher
    for argument, value, accepted in (
        ("pooling", pooling, "mean"),
        ("normalise", normalise, True),
        ("dtype", dtype, "float32"),
    ):
        if value != accepted:
            raise ValueError(f"{argument}={value!r} is not accepted with the teacher {BUILT_IN}: it takes {accepted!r}")
    return HashedNgramTeacher(_BUILT_IN_DIM if dim is None else dim)
