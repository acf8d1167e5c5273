"""Whether a model, a tokeniser and a data set go together."""

from .fields import ConfigError
from .model import ModelConfig


def check_fit(
    config: ModelConfig,
    source: str,
    *,
    vocab_size: int | None = None,
    embedding_dim: int | None = None,
    surface_dim: int | None = None,
) -> None:
    """Refuse what a model of this configuration cannot take. Sizes that are None are not checked.

    Args:
        config: of the model.
        source: what the sizes are of, for the error: "the data set runs/snli", "tokenizer.json".
        vocab_size: one more than the largest id of the tokeniser or of stored tokens. A smaller one fits.
        embedding_dim: numbers of an embedding, E.
        surface_dim: cells of a surface, S.

    Raises:
        ConfigError: names every size that does not fit, with the value on both sides.
    """
    faults = _misfits(config.text_vocab_size, config.embedding_dim, vocab_size, embedding_dim)
    if surface_dim is not None and surface_dim != config.surface_dim:
        faults.append(
            f"it has surfaces of {surface_dim} cells, lattice_width {config.lattice_width} times lattice_height "
            f"{config.lattice_height} is {config.surface_dim}"
        )
    _refuse(source, faults)


def check_data_fit(
    text_vocab_size: int, dim: int, source: str, *, vocab_size: int | None = None, embedding_dim: int | None = None
) -> None:
    """`check_fit` for data, which know of a model its `text_vocab_size` and its E, `dim`, alone."""
    _refuse(source, _misfits(text_vocab_size, dim, vocab_size, embedding_dim))


def _misfits(text_vocab_size: int, dim: int, vocab_size: int | None, embedding_dim: int | None) -> list[str]:
    faults = []
    if vocab_size is not None and vocab_size > text_vocab_size:
        faults.append(
            f"it has {vocab_size} vocabulary entries, text_vocab_size is {text_vocab_size}; accepted are "
            f"up to {text_vocab_size}"
        )
    if embedding_dim is not None and embedding_dim != dim:
        faults.append(f"it has embeddings of {embedding_dim} numbers, input_embedding_dim_from_teacher is {dim}")
    return faults


def _refuse(source: str, faults: list[str]) -> None:
    if faults:
        raise ConfigError(f"{source} does not fit the model: " + "; ".join(faults))
