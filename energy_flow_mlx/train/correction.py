"""Training a text corrector: what the decoder wrote, embedded by the teacher, and the text that it should have written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..bar import Bar
from ..config import NOTHING, ConfigError, EnergyConfig
from ..data.corpus import TextPair
from ..data.source import ArrayPairs, PairData, PairDataset
from ..data.target_tokens import WithTargetTokens
from ..data.teacher import Teacher
from ..dataset.teacher import teacher_of_run
from ..files import resolve, write_aside
from ..models.energy_flow import EnergyFlow
from ..models.text_corrector import CorrectorSettings, TextCorrector
from ..nn.mode import evaluating
from ..strict_json import read_json, write_json
from ..text.rows import framing
from ..text.search import Search
from .checkpoint import HYPOTHESES, CheckpointError
from .decoding import TEXTS_DECODED
from .evaluation import batches
from .loss import energy_flow_loss, number

_ROWS = 256


@dataclass(frozen=True)
class Corrected:
    """Of a corrector on validation pairs: the mean loss; and of the first TEXTS_DECODED, after one round of one candidate, the mean cosine with
    what was wanted and the share that is the wanted text. exact_before: that share of the hypotheses."""

    loss: float
    cosine: float
    exact: float
    exact_before: float


@dataclass(frozen=True)
class Lessons:
    """Pairs of a hypothesis and its text, to learn from and to validate on."""

    train: PairDataset
    validation: PairDataset
    teacher: Teacher

    def evaluate(self, model: EnergyFlow, config: EnergyConfig) -> Corrected:
        """The model's corrector in evaluation mode."""
        with evaluating(model):
            losses = [
                len(batch.indices) * number(energy_flow_loss(model, config, batch)[0]) for batch in batches(self.validation, config.batch_size)
            ]
        pairs = [self.validation.texts(at) for at in range(min(TEXTS_DECODED, len(self.validation)))]
        wanted = self.validation.batch(np.arange(len(pairs))).target_embedding
        search = Search(num_beams=1, max_length=config.text_max_length)
        texts = model.correct([pair.input for pair in pairs], mx.array(wanted), self.teacher, rounds=1, neighbours=0, search=search)
        return Corrected(
            loss=sum(losses) / len(self.validation),
            cosine=float((self.teacher.embed(texts) * wanted).sum(axis=1).mean()),
            exact=float(np.mean([text == pair.target for text, pair in zip(texts, pairs, strict=True)])),
            exact_before=float(np.mean([pair.input == pair.target for pair in pairs])),
        )


def add_corrector(model: EnergyFlow, config: EnergyConfig) -> None:
    """Give the model a corrector of random weights and of its decoder's sizes, if there is none.

    Raises:
        ConfigError: the model has no text decoder, its tokeniser does not fit, or there is a corrector of other sizes.
    """
    decoder = model.text_decoder
    if decoder is None:
        raise ConfigError(f"init_from={config.init_from}: its model has no text decoder to correct; train one first (--part decoder)")
    start, end = framing(decoder.fitting_tokeniser())
    settings = CorrectorSettings(
        embedding_dim=config.embedding_dim,
        max_length=config.text_max_length,
        adapter_dim=decoder.settings.adapter_dim,
        prefix=decoder.settings.prefix,
        t5=decoder.settings.t5,
        start=start,
        end=end,
    )
    if model.text_corrector is None:
        model.text_corrector = TextCorrector(settings)
    elif model.text_corrector.settings != settings:
        raise ConfigError(f"init_from={config.init_from} has a text corrector of other sizes:\n{model.text_corrector.settings}\n{settings}")


def open_lessons(model: EnergyFlow, data: PairData, config: EnergyConfig, folder: Path, *, resume: bool, quiet: bool = True) -> Lessons:
    """The hypotheses of a run, drawn and written to its folder, or those that a resumed run has there.

    Raises:
        ConfigError: nothing tells the run's teacher, or the data have no texts.
        CheckpointError: a resumed run has no hypotheses, or others than its data have texts.
    """
    if data.tokeniser is None:
        raise ConfigError(f"part=corrector is not accepted with {data.name}, which has no texts")
    spec = None if config.text_corrector_teacher == NOTHING else config.text_corrector_teacher
    try:
        teacher = teacher_of_run(folder, config, spec)
    except (ValueError, OSError) as error:
        raise ConfigError(f"text_corrector_teacher={config.text_corrector_teacher}: {error}") from error
    parts = {"train": data.train, "validation": data.validation}
    texts = {name: _Texts.of(part, config.text_corrector_pairs) for name, part in parts.items()}
    path = resolve(folder, HYPOTHESES)
    if resume:
        written = _read(path, {name: len(part.texts) for name, part in texts.items()})
    else:
        written = {name: list(_drawn(model, part, config, quiet)) for name, part in texts.items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda aside: write_json(aside, written))
    lessons = {name: part.lessons(written[name], teacher, model, config) for name, part in texts.items()}
    return Lessons(lessons["train"], lessons["validation"], teacher)


@dataclass(frozen=True)
class _Texts:
    """Both texts of pairs, with their embeddings [N, E]."""

    texts: list[str]
    embeddings: np.ndarray

    @classmethod
    def of(cls, data: PairDataset, most: int) -> "_Texts":
        batch = data.batch(np.arange(min(most, len(data))))
        pairs = [data.texts(int(index)) for index in batch.indices]
        texts = [pair.input for pair in pairs] + [pair.target for pair in pairs]
        embeddings = np.concatenate([batch.input_embedding, batch.target_embedding])
        there = np.array([bool(text) for text in texts])
        return cls([text for text in texts if text], embeddings[there])

    def lessons(self, written: list[str], teacher: Teacher, model: EnergyFlow, config: EnergyConfig) -> PairDataset:
        assert model.text_decoder is not None
        tokeniser, length = model.text_decoder.fitting_tokeniser(), config.text_max_length
        pairs = [TextPair(*pair) for pair in zip(written, self.texts, strict=True)]
        data = ArrayPairs(pairs, teacher.embed(written), self.embeddings, tokeniser.encode(written, length))
        return WithTargetTokens(data, tokeniser, length)


def _drawn(model: EnergyFlow, part: _Texts, config: EnergyConfig, quiet: bool) -> Iterator[str]:
    """What the decoder writes for each embedding, without flows, drawn with a temperature, so that it errs."""
    assert model.text_decoder is not None
    with Bar(total=len(part.texts), quiet=quiet, desc="hypotheses") as bar, evaluating(model):
        for at in range(0, len(part.texts), _ROWS):
            search = Search(num_beams=1, max_length=config.text_max_length, temperature=config.text_corrector_temperature, seed=at)
            yield from model.decode(embedding=mx.array(part.embeddings[at : at + _ROWS]), search=search)
            bar.update(min(_ROWS, len(part.texts) - at))


def _read(path: Path, counts: dict[str, int]) -> dict[str, list[str]]:
    try:
        written = read_json(path)
        held = {name: len(written[name]) for name in counts if isinstance(written[name], list)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the run's hypotheses: {error!r}") from error
    if held != counts or not all(isinstance(text, str) for name in held for text in written[name]):
        raise CheckpointError(f"{path} holds {held} texts, the run's data ask for {counts}")
    return {name: written[name] for name in counts}
