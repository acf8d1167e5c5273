"""How many sentences come back as text: a run, its text decoder and its corrector, trained and measured in one go.

    python scripts/benchmarks/text_recovery.py --to recovery --seed 0                       # built-in sentences, hashed teacher
    python scripts/benchmarks/text_recovery.py --to recovery --seed 0 --data minilm --embedding 384 --teacher $minilm    # a dataset folder
    python scripts/benchmarks/text_recovery.py --to small --preset tiny --flow-steps 450 --flow-batch 16 --decoder-steps 60 --steps 400 --dim 128 --layers 2 --batch 64 --pairs 5000 --beams 4

The run learns the copy task: its target is its input, and no residual carries that past the flows. The table is that of
`python -m energy_flow_mlx.recover` with 20 rounds, for held-out sentences that occur in no training text. The defaults are for minutes of
an H100 a seed, the last call is for a CPU. Stages that are done are not trained again: a second call with the same --to measures, or goes
on where the first one stopped.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import mlx.core as mx

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.dataset.open import data_of_run
from energy_flow_mlx.dataset.teacher import teacher_of_run
from energy_flow_mlx.files import resolve, write_aside
from energy_flow_mlx.recover.recovery import recover, table
from energy_flow_mlx.strict_json import write_json
from energy_flow_mlx.text.search import Search
from energy_flow_mlx.train import command

ROUNDS = 20
SIZE = 128  # texts at a time


def main() -> int:
    options = _parser().parse_args()
    widths = {"text_decoder_dim": options.dim, "text_decoder_layers": options.layers, "text_decoder_prefix": options.prefix}
    common = {"batch_size": options.batch, "learning_rate": options.rate, "validation_interval": 1000}
    data = {"data": options.data} if options.data else {"train_pairs": options.pairs}
    copy = {
        "preset": options.preset, "pairs": "copy", "training_steps": options.flow_steps, "batch_size": options.flow_batch,
        "learning_rate": options.flow_rate, "input_embedding_dim_from_teacher": options.embedding, "seed": options.seed,
    }  # fmt: skip
    flows, decoder, corrector = (options.to / f"seed{options.seed}-{name}" for name in ("flows", "decoder", "corrector"))
    teacher = {"text_corrector_teacher": options.teacher} if options.teacher else {}
    shared = {"memory_budget": options.memory_budget} if options.memory_budget else {}
    seconds = {}
    for folder, fields in (
        (flows, copy | data | shared),
        (decoder, {"init_from": flows, "part": "decoder", "text_decoder_flow_share": options.flow_share, "training_steps": options.decoder_steps, **widths, **common, **shared}),
        (corrector, {"init_from": decoder, "part": "corrector", "text_corrector_pairs": options.pairs, "training_steps": options.steps, **common, **teacher, **shared}),
    ):
        began = time.perf_counter()
        if code := _trained(folder, fields):
            return code
        seconds[folder.name] = round(time.perf_counter() - began)
    began = time.perf_counter()
    mx.clear_cache()  # of the trainings
    model, config = EnergyFlow.from_pretrained(corrector), EnergyConfig.from_json(corrector / "config.json")
    found = recover(
        model, data_of_run(config, model.text_encoder.tokeniser), teacher_of_run(corrector, config, options.teacher),
        Search(num_beams=options.beams, max_length=config.text_max_length), config, rounds=ROUNDS, most=options.texts, batch_size=SIZE,
    )  # fmt: skip
    seconds["recovery"] = round(time.perf_counter() - began)
    print(table(found), seconds, sep="\n")
    result = {"seconds": seconds, "options": {name: str(value) for name, value in vars(options).items()}, "recovery": dataclasses.asdict(found)}
    write_aside(options.to / f"seed{options.seed}.json", lambda aside: write_json(aside, result))
    return 0


def _trained(folder: Path, fields: dict[str, object]) -> int:
    """Train, or go on with, the run in a folder; returns the exit code."""
    if resolve(folder, "trainer.json").is_file():
        return command.main(["--resume", str(folder)])
    flags = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    residual = ["--no-input-residual"] if "preset" in fields else []  # the other stages have the run's
    return command.main(["--out", str(folder), *flags, *residual])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder of the runs and of the result")
    for name, default, words in (
        ("seed", 0, "of everything"), ("flow_steps", 5000, "steps of the run"), ("flow_batch", 64, "pairs of each"), ("decoder_steps", 2000, "of the decoder"), ("steps", 2000, "of the corrector"),
        ("batch", 256, "sentences"),
        ("dim", 256, "width of decoder and corrector"), ("layers", 4, "of each"), ("prefix", 8, "vectors of a surface"),
        ("pairs", 100_000, "training sentences"), ("texts", 500, "held-out sentences"), ("beams", 8, "beams"),
        ("embedding", 768, "numbers of the teacher's embeddings"),
    ):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{words} (default: {default})")
    parser.add_argument("--flow-share", type=float, default=0.5, help="of the decoder's loss, from surfaces that flows leave (default: 0.5)")
    for name, of in (("--flow-rate", "the run"), ("--rate", "decoder and corrector")):
        parser.add_argument(name, type=float, default=1e-3, help=f"learning rate of {of} (default: 0.001)")
    parser.add_argument("--memory-budget", type=float, help="GB of the device for each stage, where several programs share it")
    parser.add_argument("--preset", default="debug", help="of the run (default: debug)")
    parser.add_argument("--data", help="a dataset folder in place of the built-in sentences")
    parser.add_argument("--teacher", help="its teacher, where it is not the built-in one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
