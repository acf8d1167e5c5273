"""How many sentences come back from their embeddings: a run, its text decoder and its corrector, trained and measured in one go.

    python scripts/benchmarks/text_recovery.py --to recovery --seed 0                       # built-in sentences, hashed teacher
    python scripts/benchmarks/text_recovery.py --to recovery --seed 0 --data minilm         # a dataset folder; --teacher its teacher
    python scripts/benchmarks/text_recovery.py --to small --steps 300 --dim 64 --layers 1 --batch 32 --pairs 5000    # a CPU

Judged on held-out texts, inputs and targets, that occur in no training text, from the teacher's embedding, without flows: decoded greedily,
with beams, and after rounds of correction. The defaults are for five to ten minutes of an H100 a seed. Stages that are done are not
trained again: a second call with the same --to measures, or goes on where the first one stopped.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.checks import canonical
from energy_flow_mlx.data.teacher import Teacher
from energy_flow_mlx.dataset.open import data_of_run
from energy_flow_mlx.dataset.teacher import teacher_of_run
from energy_flow_mlx.files import resolve
from energy_flow_mlx.models.energy_flow import NEIGHBOURS
from energy_flow_mlx.recover.recovery import cosines
from energy_flow_mlx.recover.sentences import learned
from energy_flow_mlx.text.scores import TOTAL, scores_by_length
from energy_flow_mlx.text.search import Search
from energy_flow_mlx.train import command

ROUNDS = (1, 5, 20)
SIZE = 128  # texts at a time


def main() -> int:
    options = _parser().parse_args()
    widths = {"text_decoder_dim": options.dim, "text_decoder_layers": options.layers, "text_decoder_prefix": options.prefix}
    common = {"batch_size": options.batch, "training_steps": options.steps, "learning_rate": options.rate, "validation_interval": 1000}
    data = {"data": options.data} if options.data else {"train_pairs": options.pairs}
    flows, decoder, corrector = (options.to / f"seed{options.seed}-{name}" for name in ("flows", "decoder", "corrector"))
    teacher = {"text_corrector_teacher": options.teacher} if options.teacher else {}
    seconds = {}
    for folder, fields in (
        (flows, {"preset": options.preset, "seed": options.seed, "training_steps": options.flow_steps, "input_embedding_dim_from_teacher": options.embedding, **data}),
        (decoder, {"init_from": flows, "part": "decoder", "text_decoder_flow_share": 0, **widths, **common}),
        (corrector, {"init_from": decoder, "part": "corrector", "text_corrector_pairs": options.pairs, **common, **teacher}),
    ):
        began = time.perf_counter()
        if code := _trained(folder, fields):
            return code
        seconds[folder.name] = round(time.perf_counter() - began)
    rows = measure(corrector, options.texts, options.beams, options.teacher)
    print(json.dumps({"seconds": seconds, "rows": rows}))
    for name, row in rows.items():
        print(f"{name:56}" + "".join(f"  {kind} {value:.4f}" for kind, value in row.items()))
    (options.to / f"seed{options.seed}.json").write_text(json.dumps({"seconds": seconds, "rows": rows}, indent=1))
    return 0


def _trained(folder: Path, fields: dict[str, object]) -> int:
    """Train, or go on with, the run in a folder; returns the exit code."""
    if resolve(folder, "trainer.json").is_file():
        return command.main(["--resume", str(folder)])
    flags = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return command.main(["--out", str(folder), *flags])


def measure(run: Path, most: int, beams: int, spec: str | None) -> dict[str, dict[str, float]]:
    """Exact matches and cosines of what comes back for held-out texts, by the way that it was found."""
    model, config = EnergyFlow.from_pretrained(run), EnergyConfig.from_json(run / "config.json")
    data, teacher = data_of_run(config, model.text_encoder.tokeniser), teacher_of_run(run, config, spec)
    rows = {}
    for side in ("input", "target"):
        asked: dict[str, str] = {}
        for at in range(len(data.test)):
            text = getattr(data.test.texts(at), side)
            asked.setdefault(canonical(text), text)
        known = learned(asked.keys(), data.train)
        texts = [text for name, text in asked.items() if name and name not in known][:most]
        for name, search, rounds in (
            ("greedy", Search(num_beams=1, max_length=config.text_max_length), 0),
            (f"{beams} beams", Search(num_beams=beams, max_length=config.text_max_length), 0),
            *((f"{beams} beams, {rounds} rounds", Search(num_beams=beams, max_length=config.text_max_length), rounds) for rounds in ROUNDS),
        ):
            for neighbours in (0, NEIGHBOURS) if rounds else (0,):
                title = f"{len(texts)} {side}s, {name}" + (f", {neighbours} neighbours" if neighbours else "")
                rows[title] = _scores(model, teacher, texts, search, rounds, neighbours)
    return rows


def _scores(model: EnergyFlow, teacher: Teacher, texts: list[str], search: Search, rounds: int, neighbours: int) -> dict[str, float]:
    wanted, found = teacher.embed(texts), []
    for at in range(0, len(texts), SIZE):
        some = wanted[at : at + SIZE]
        found += model.decode(embedding=some, rounds=rounds, neighbours=neighbours, teacher=teacher, search=search)
    scores = scores_by_length(texts, found, cosines(wanted, found, teacher))[TOTAL]
    return {name: getattr(scores, name) for name in ("exact", "cosine")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder of the runs and of the result")
    for name, default, words in (
        ("seed", 0, "of everything"), ("flow_steps", 600, "steps of the run"), ("steps", 4000, "of decoder and corrector each"), ("batch", 256, "pairs, each of two texts"),
        ("dim", 256, "width of decoder and corrector"), ("layers", 4, "of each"), ("prefix", 8, "vectors of a surface"),
        ("pairs", 100_000, "training pairs"), ("texts", 500, "held-out texts a side"), ("beams", 8, "beams"),
        ("embedding", 768, "numbers of the teacher's embeddings"),
    ):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{words} (default: {default})")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of decoder and corrector (default: 0.001)")
    parser.add_argument("--preset", default="tiny", help="of the run (default: tiny)")
    parser.add_argument("--data", help="a dataset folder in place of the built-in sentences")
    parser.add_argument("--teacher", help="its teacher, where it is not the built-in one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
