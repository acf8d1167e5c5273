"""The rows of the table: each way from a held-out sentence to a text, and how much of the sentence is in that text."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..checks import is_blank
from ..config import RunConfig
from ..data.source import PairData
from ..data.teacher import Teacher
from ..models.energy_flow import EnergyFlow
from ..models.shapes import unit_rows
from ..models.through_model import ThroughModel
from ..text.scores import TextScores, scores_by_length
from ..text.search import Search
from ..train.evaluation import Floats
from .sentences import held_out, nearest_targets


@dataclass(frozen=True)
class Recovery:
    """What came back. `scores`: of each way, by the length of the wanted text as in `text.scores`. `left_out`: pairs of the test split, by
    reason. `too_long`: sentences of more tokens than the run reads of a text, `text_max_length`, which it cannot have learned to end."""

    data: str
    sentences: int
    too_long: int
    left_out: dict[str, int]
    scores: dict[str, dict[str, TextScores]]


def recover(
    model: EnergyFlow, data: PairData, teacher: Teacher | None, search: Search, config: RunConfig, *, rounds: int = 0,
    most: int, batch_size: int,
) -> Recovery:  # fmt: skip
    """How much of held-out sentences a model brings back.

    Args:
        model: with a text decoder, in evaluation mode.
        data: the data that it was trained on.
        teacher: that of the data, which embeds what came back; None: there are no cosines.
        search: how texts are looked for.
        config: of the run; gives the seed and `text_max_length`.
        rounds: of correction, at most; takes a model with a text corrector, and a teacher. In the copy task what came through the lattice is
            corrected by `ThroughModel`.
        most: the most sentences.
        batch_size: sentences at a time.

    Raises:
        ValueError: the model has no text decoder, or with rounds no text corrector or no teacher; the data have no texts; or no sentence is left.
    """
    if data.tokeniser is None:
        raise ValueError(f"{data.name}: its pairs have no texts to bring back")
    numbers, left_out = held_out(data, most, config.seed)
    if not len(numbers):
        raise ValueError(f"{data.name}: no sentence of its {len(data.test)} test pairs is left: {listed(left_out)}")
    lattice: EnergyFlow | ThroughModel = model
    if config.pairs == "copy" and teacher is not None:  # without a teacher `EnergyFlow.correct` refuses
        lattice = ThroughModel(model, lambda texts: model.predict(texts, teacher), batch_size)
    came: dict[str, list[str]] = defaultdict(list)
    wanted, predicted = [], []
    with tqdm(total=len(numbers), unit="sentence", disable=None, dynamic_ncols=True) as bar:  # None: on a terminal only
        for at in range(0, len(numbers), batch_size):
            batch = data.test.batch(numbers[at : at + batch_size])
            out = model(batch.input_embedding)
            ways = {  # what the decoder reads, the embedding that the text is to have, and what corrects it
                "through the lattice": (out.surface, out.embedding, lattice),
                "from the teacher's embedding": (model.map_to_surface(batch.target_embedding), batch.target_embedding, model),
            }
            for name, (surface, meant, correcting) in ways.items():
                back = model.decode(surface, search=search)
                came[name] += back
                if rounds:
                    came[f"{name}, corrected"] += correcting.correct(back, meant, teacher, rounds=rounds, search=search)
            wanted.append(batch.target_embedding)
            predicted.append(np.array(out.embedding))
            bar.update(len(batch.indices))
    came["nearest training sentence"] = nearest_targets(np.concatenate(predicted), data.train)
    texts = [data.test.texts(int(number)).target for number in numbers]
    targets = np.concatenate(wanted)
    scores = {name: scores_by_length(texts, back, cosines(targets, back, teacher)) for name, back in came.items()}
    too_long = data.tokeniser.encode(texts, config.text_max_length + 1).attention_mask.all(axis=1).sum()
    return Recovery(data.name, len(texts), int(too_long), left_out, scores)


def cosines(wanted: Floats, came: Sequence[str], teacher: Teacher | None) -> list[float] | None:
    """Between N embeddings [N, E] and those of N texts; 0 for a text that is empty. None without a teacher."""
    if teacher is None:
        return None
    products = np.sum(unit_rows(wanted) * unit_rows(teacher.embed(came)), axis=1)
    return [0.0 if is_blank(text) else float(product) for text, product in zip(came, products, strict=True)]


def listed(left_out: dict[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count) or "none"


def table(recovery: Recovery) -> str:
    """A recovery as plain text: a line for each way and length."""
    lines = [f"{recovery.sentences:,} held-out sentences of {recovery.data}; left out: {listed(recovery.left_out)}"]
    if recovery.too_long:
        lines.append(f"{recovery.too_long:,} of them have more tokens than the run reads of a text (text_max_length)")
    width = max(map(len, recovery.scores))
    columns: dict[str, Callable[[TextScores], str]] = {
        "texts": lambda score: f"{score.texts:,}",
        "exact": lambda score: f"{score.exact:.1%}",
        "token F1": lambda score: f"{score.token_f1:.3f}",
        "BLEU": lambda score: "" if score.bleu is None else f"{score.bleu:.1f}",
        "cosine": lambda score: "" if score.cosine is None else f"{score.cosine:.4f}",
    }
    shown = [name for name, cell in columns.items() if any(cell(score) for rows in recovery.scores.values() for score in rows.values())]
    lines.append(" " * width + f"  {'words':7}" + "".join(f"  {name:>8}" for name in shown))
    for way, rows in recovery.scores.items():
        for number, (length, score) in enumerate(rows.items()):
            cells = "".join(f"  {columns[name](score):>8}" for name in shown)
            lines.append(f"{'' if number else way:{width}}  {length:7}{cells}")
    return "\n".join(lines)
