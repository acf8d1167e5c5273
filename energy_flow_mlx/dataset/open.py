"""Opening training data: the built-in corpus, a dataset folder, or a data file."""

from pathlib import Path

from ..config import ConfigError, EnergyConfig
from ..data.copies import copied
from ..data.source import PairData, built_in_data
from ..data.target_tokens import with_target_tokens
from ..program import call_of
from ..text.tokeniser import Tokeniser
from .stream import file_data, folder_data


def data_of_run(config: EnergyConfig, tokeniser: Tokeniser | None = None) -> PairData:
    """Open the data that a configuration names, as the pairs that it names; `tokeniser` is the one saved with the model, if any.

    Raises:
        FileNotFoundError: a file is missing.
        ConfigError: the data does not exist, is damaged, or does not fit the model; the message names the field.
    """
    try:
        data = open_data(
            config.data,
            train=config.train_pairs,
            validation=config.validation_pairs,
            test=config.test_pairs,
            seed=config.seed,
            dim=config.embedding_dim,
            vocab_size=config.text_vocab_size,
            max_length=config.text_max_length,
            tokeniser=tokeniser,
        )
        data = copied(data) if config.pairs == "copy" else data
        return with_target_tokens(data, config.text_max_length) if config.text_decoder_loss_weight else data
    except ValueError as error:  # the message names the argument, which is a configuration field
        raise ConfigError(str(error)) from error


def open_data(
    spec: str,
    *,
    train: int,
    validation: int,
    test: int,
    seed: int,
    dim: int,
    vocab_size: int,
    max_length: int,
    tokeniser: Tokeniser | None = None,
) -> PairData:
    """Open the data that `spec` names; the other arguments are those of `built_in_data`.

    Args:
        spec: builtin; a dataset folder, with its parts as they are; or a data file, which is split with `validation`,
            `test` and `seed` (see `file_data`).

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: the data does not exist, is damaged, or does not fit the sizes; the message says what is accepted.
    """
    if spec == "builtin":
        return built_in_data(train, validation, test, seed, dim, vocab_size, max_length, tokeniser)
    path = Path(spec)
    if path.is_dir():
        return folder_data(path, dim=dim, vocab_size=vocab_size, max_length=max_length, tokeniser=tokeniser)
    if path.is_file():
        return file_data(
            path, validation=validation, test=test, seed=seed, dim=dim, vocab_size=vocab_size, max_length=max_length,
            tokeniser=tokeniser,
        )  # fmt: skip
    raise ValueError(
        f"data must be builtin, a folder built by `{call_of('dataset')} build`, or a data file, got {spec!r}"
    )
