"""What the fuzz campaign feeds: every reader of the package and every command line, with the errors that each may raise."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mutate
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from mutate import Mutation

import energy_flow_mlx
from energy_flow_mlx import CubeToTextDecoder, EnergyConfig, EnergyFlow, Run, export_torch_checkpoint, model_files
from energy_flow_mlx import embed as embed_command
from energy_flow_mlx import evaluate as evaluate_command
from energy_flow_mlx import upload as upload_command
from energy_flow_mlx.__main__ import verbs
from energy_flow_mlx.benchmark import __main__ as benchmark_command
from energy_flow_mlx.cli import run_command
from energy_flow_mlx.compare import main as compare_main
from energy_flow_mlx.comparison import compare
from energy_flow_mlx.config import read_config
from energy_flow_mlx.convert import __main__ as convert_command
from energy_flow_mlx.convert import to_mlx
from energy_flow_mlx.convert.source import read_source
from energy_flow_mlx.convert.to_torch import convert_to_torch
from energy_flow_mlx.data.hashed_ngram import HashedNgramTeacher
from energy_flow_mlx.dataset import __main__ as dataset_command
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.folder import DatasetFolder, read_folder
from energy_flow_mlx.dataset.formats import read_file, write_file
from energy_flow_mlx.dataset.records import Faults, Place, Record
from energy_flow_mlx.doctor import __main__ as doctor_command
from energy_flow_mlx.generate import __main__ as generate_command
from energy_flow_mlx.models.text_corrector import TextCorrector
from energy_flow_mlx.models.trace import Trace
from energy_flow_mlx.recover import __main__ as recover_command
from energy_flow_mlx.results import Results
from energy_flow_mlx.scores import Evaluation, Scores
from energy_flow_mlx.text import TextCache, Tokeniser
from energy_flow_mlx.text.search import Search
from energy_flow_mlx.train import checkpoint, correction, decoding
from energy_flow_mlx.train import command as train_command
from energy_flow_mlx.train.optimiser import freeze_unreached, make_optimiser
from energy_flow_mlx.view import __main__ as view_command

SMALL = {
    "lattice_width": 3, "lattice_height": 2, "lattice_depth": 4, "input_embedding_dim_from_teacher": 8, "neuron_hidden_dim": 4,
    "neuron_output_dim": 4, "carrier_hidden_size": 8, "carrier_num_layers": 1, "text_vocab_size": 120, "text_model_dim": 8,
    "text_num_heads": 2, "text_feedforward_dim": 8, "text_num_layers": 1, "text_max_length": 16, "text_max_positions": 16,
    "training_steps": 6, "train_pairs": 40, "validation_pairs": 8, "test_pairs": 8, "batch_size": 4, "text_decoder_dim": 8,
    "text_decoder_heads": 2, "text_decoder_layers": 1, "text_decoder_prefix": 2,
}  # fmt: skip
FORMATS = {
    ".jsonl": mutate.json_lines, ".csv": mutate.cells(b","), ".tsv": mutate.cells(b"\t"), ".parquet": mutate.parquet,
    ".efb1": mutate.efb, ".efb2": mutate.efb, ".pt": mutate.torch_file, ".safetensors": mutate.safetensors,
}  # fmt: skip


@dataclass
class Target:
    """One reader. `weight`: how many inputs it gets beside the others; its speed decides.

    `make` writes an input; it returns its bytes, and what reads it and tidies up.
    """

    name: str
    weight: int
    make: Callable[[random.Random], tuple[int, Callable[[], Any]]]
    refusals: tuple[type[BaseException], ...]
    named: bool = True  # whether a refusal must name the file


def all_targets(folder: Path) -> list[Target]:
    """Every target; their files lie in `folder`, which is emptied of what they write."""
    warnings.simplefilter("ignore")
    seeds, place = folder / "seeds", folder / "input"
    seeds.mkdir(parents=True)
    place.mkdir()
    targets = [_data_file(suffix, seeds, place) for suffix in FORMATS]
    targets.append(_file("pack .pt, legacy", 4, _legacy_pack(seeds), "a.pt", mutate.torch_file, place, _read_data))
    tokeniser = Tokeniser.train(["a dog runs in the park", "prices fell"], 60)
    tokeniser.save(seeds / "tokenizer.json")
    targets.append(_file("tokenizer.json", 4, [(seeds / "tokenizer.json").read_bytes()], "tokenizer.json", mutate.json_text, place, _read_tokeniser))
    EnergyConfig.tiny().to_json(seeds / "config.json")
    config = (seeds / "config.json").read_bytes()
    targets.append(_file("config.json", 20, [config], "config.json", mutate.json_text, place, read_config))
    yaml = "".join(f"{name}: {json.dumps(value)}\n" for name, value in EnergyConfig.tiny().to_dict().items()).encode()
    targets.append(_file("config.yaml", 2, [yaml], "config.yaml", mutate.some_bytes, place, EnergyConfig.from_json))
    targets += [*_cache(seeds, place), *_models(seeds, place), *_datasets(seeds, place), *_commands(seeds, place)]
    return targets


def _file(name: str, weight: int, seeds: Sequence[bytes], file: str, mutation: Mutation, place: Path, read: Callable[[Path], Any]) -> Target:
    def make(random: random.Random) -> tuple[int, Callable[[], Any]]:
        content = mutation(random, random.choice(seeds))
        path = place / file
        path.unlink(missing_ok=True)  # a file that is mapped still must not change its length
        path.write_bytes(content)
        return len(content), lambda: read(path)

    return Target(name, weight, make, (ValueError, OSError))


def _read_data(path: Path) -> None:
    for skip in (False, True):
        with contextlib.suppress(ValueError) if skip else contextlib.nullcontext():
            for _ in read_file(path, Faults(skip)):
                pass


def _data_file(suffix: str, seeds: Path, place: Path) -> Target:
    random = np.random.default_rng(0)
    row = lambda: random.normal(size=3).astype(np.float32)  # noqa: E731
    records = [
        Record(f"input {n}, ä", f"target {n}", np.arange(n, dtype=np.uint32), np.ones(n, np.uint8), row(), row()) for n in range(4)
    ]
    path = seeds / f"a{suffix}"
    if suffix in (".csv", ".tsv"):
        comma = "," if suffix == ".csv" else "\t"
        contents = [comma.join(cells) for cells in (("premise", "hypothesis", "label"), ("a b", "c", "0"), ("d", '"e"', "1"), ("f", "g", "2"))]
        path.write_text("\n".join(contents) + "\n")
    elif suffix == ".parquet":
        table = pyarrow.table({"text": ["a", "b"], "target": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
        pyarrow.parquet.write_table(table, path)
    else:
        write_file(path, [(Place(Path("seed"), "record", n), record) for n, record in enumerate(records)])
    contents_ = [path.read_bytes()]
    if suffix == ".jsonl":
        contents_.append(b'{"text": "a", "target": "b"}\n{"sentence1": "c", "sentence2": "d", "gold_label": "neutral"}\n')
    weight = {".pt": 4, ".parquet": 8}.get(suffix, 20)
    return _file(f"data {suffix}", weight, contents_, f"a{suffix}", FORMATS[suffix], place, _read_data)


def _legacy_pack(seeds: Path) -> list[bytes]:
    pack = {"input_embeddings": torch.ones(2, 3), "target_embeddings": torch.ones(2, 3), "text_pairs": [("a", "b")] * 2}
    torch.save(pack, seeds / "legacy.pt", _use_new_zipfile_serialization=False)
    return [(seeds / "legacy.pt").read_bytes()]


def _read_tokeniser(path: Path) -> None:
    tokeniser = Tokeniser.from_file(path)
    with contextlib.suppress(ValueError):  # names the texts or ids, not the file
        tokeniser.decode(tokeniser.encode(["A dog runs.", "猫 \0"], 8).input_ids[0])


def _cache(seeds: Path, place: Path) -> Iterator[Target]:
    cache = TextCache()
    cache.surfaces("model", ["a", "bc", "ä"], lambda texts: np.ones((len(texts), 4), np.float32))
    cache.save(seeds / "cache.safetensors")

    def read(path: Path) -> None:
        TextCache.load(path)
        for kept in path.parent.glob("*.damaged*"):
            kept.unlink()

    target = _file("text cache", 10, [(seeds / "cache.safetensors").read_bytes()], "cache.safetensors", mutate.safetensors, place, read)
    target.refusals = ()  # it starts empty instead
    yield target


def _folder(
    name: str, weight: int, seed: Path, place: Path, read: Callable[[Path], Any], mutations: dict[str, Mutation], named: bool = True
) -> Target:
    """A folder of files, one of which is changed or missing."""
    copy = place / f"{name.replace(' ', '-')}.folder"
    originals = {path.name: path.read_bytes() for path in seed.iterdir()}
    shutil.copytree(seed, copy)

    def make(random: random.Random) -> tuple[int, Callable[[], Any]]:
        for file, content in originals.items():
            (copy / file).unlink(missing_ok=True)
            (copy / file).write_bytes(content)
        changed = random.choice([file for file in originals if file in mutations])
        (copy / changed).unlink()
        if random.random() < 0.99:
            (copy / changed).write_bytes(mutations[changed](random, originals[changed]))
        return sum(path.stat().st_size for path in copy.iterdir()), lambda: read(copy)

    return Target(name, weight, make, (ValueError, OSError), named)


def _models(seeds: Path, place: Path) -> Iterator[Target]:
    mx.random.seed(0)
    config = EnergyConfig.tiny().replace(**SMALL)
    model, optimiser = EnergyFlow(config), make_optimiser(config)
    model.text_encoder.tokeniser = Tokeniser.train(["a dog runs in the park", "prices fell"], 60)
    freeze_unreached(model, config)
    optimiser.init(model.trainable_parameters())
    run = seeds / "run"
    checkpoint.save(run, model, optimiser, config, checkpoint.TrainerState())
    checkpoint.append_metrics(run, {"step": 1, "loss": 0.5})
    scores = dataclasses.asdict(Scores(0.1, 0.2, 0.3))
    rows = {"input itself": Scores(**scores), "energy flow": Evaluation(**scores, loss=1.0, surface_mse=1.0, arrival=0.1, arrived=1.0, collisions=0.1, sideways=0.0)}
    Results("builtin (seed 0)", {"train": 40, "test": 8}, {"test": rows}, 0).save(run)
    model.trace(["a dog runs"]).save(seeds / "trace.safetensors")

    def resume(folder: Path) -> None:
        checkpoint.require(folder)
        model = EnergyFlow.from_pretrained(folder)
        freeze_unreached(model, model.config)
        checkpoint.load(folder, model, make_optimiser(EnergyConfig.from_json(folder / "config.json")))
        checkpoint.read_metrics(folder)

    changes = dict.fromkeys(("config.json", "tokenizer.json", "trainer.json"), mutate.json_text)
    changes |= dict.fromkeys(("model.safetensors", "optimizer.safetensors"), mutate.safetensors) | {"metrics.jsonl": mutate.json_lines}
    yield _folder("run folder", 2, run, place, resume, changes)

    def look(folder: Path) -> None:
        found = compare(folder, folder)
        str(found), found.to_dict(), Run.load(folder).metrics

    yield _folder("results.json", 8, run, place, look, {"results.json": mutate.json_text, "metrics.jsonl": mutate.json_lines})
    trace = (seeds / "trace.safetensors").read_bytes()
    yield _file("trace", 8, [trace], "trace.safetensors", mutate.safetensors, place, Trace.load)
    yield _writing(seeds, place, model)

    torch_folder = seeds / "torch"
    convert_to_torch(run, torch_folder, "float32", True)
    with contextlib.redirect_stdout(io.StringIO()):
        assert convert_command.main([str(torch_folder / "checkpoint.pt"), "--mapper", str(torch_folder / "mapper.pt"), "--to", str(seeds / "model")]) == 0
        mapper = str(torch_folder / "mapper.pt")
        assert export_torch_checkpoint.main([str(torch_folder / "checkpoint.pt"), str(seeds / "export"), "--mapper", mapper]) == 0

    def convert(path: Path) -> None:
        to_mlx.convert(read_source(path, torch_folder / "mapper.pt", None, True))

    source = [(torch_folder / "checkpoint.pt").read_bytes()]
    target = _file("checkpoint .pt", 2, source, "checkpoint.pt", mutate.torch_file, place, convert)
    target.named = False  # what does not fit is named as the configuration's field and the weights' key
    yield target
    yield _file("mapper .pt", 4, [(torch_folder / "mapper.pt").read_bytes()], "mapper.pt", mutate.torch_file, place, export_torch_checkpoint.load_mapper)
    changes = dict.fromkeys(("config.json", "training.json"), mutate.json_text)
    changes |= dict.fromkeys(("model.safetensors", "optimizer.safetensors"), mutate.safetensors)
    yield _folder("export folder", 2, seeds / "export", place, lambda folder: to_mlx.convert(read_source(folder, None, None, True)), changes, named=False)
    changes = dict.fromkeys(("config.json", "conversion.json"), mutate.json_text)
    changes |= dict.fromkeys(("model.safetensors", "optimizer.safetensors"), mutate.safetensors)

    def back(folder: Path) -> None:
        try:
            convert_to_torch(folder, place / "torch", "float32", True)
        finally:
            shutil.rmtree(place / "torch", ignore_errors=True)

    yield _folder("model folder to torch", 1, seeds / "model", place, back, changes, named=False)


def _writing(seeds: Path, place: Path, model: EnergyFlow) -> Target:
    """Give the model a text decoder and a text corrector, and save it as a run that reads what they write: seeds/writing."""
    config = EnergyConfig.tiny().replace(**SMALL)
    tokeniser = model.text_encoder.fitting_tokeniser()
    model.text_decoder = CubeToTextDecoder(decoding.decoder_settings(config, tokeniser))
    model.text_decoder.tokeniser = tokeniser
    correction.add_corrector(model, config)
    shutil.copytree(seeds / "run", seeds / "writing")
    model.save_pretrained(seeds / "writing")
    config.to_json(seeds / "writing" / "config.json")
    (seeds / "writing" / checkpoint.HYPOTHESES).write_text(json.dumps({"train": ["a", "b"], "validation": ["c"]}))
    search = Search(num_beams=2, max_length=4)

    def read(folder: Path) -> None:
        correction._read(folder / checkpoint.HYPOTHESES, {"train": 2, "validation": 1})
        model = EnergyFlow.from_pretrained(folder)
        with contextlib.suppress(ValueError):  # names the argument, not the file
            texts = model.decode(mx.zeros((1, model.config.surface_dim)), search=search)
            if model.text_corrector is not None:
                teacher = HashedNgramTeacher(model.config.embedding_dim)
                model.correct(texts, mx.ones((1, model.config.embedding_dim)), teacher, rounds=1, neighbours=2, search=search)

    changes = dict.fromkeys(("text_decoder.json", "text_decoder_tokenizer.json", "text_corrector.json", checkpoint.HYPOTHESES), mutate.json_text)
    changes |= dict.fromkeys(("text_decoder.safetensors", "text_corrector.safetensors"), mutate.safetensors)
    return _folder("text decoder", 2, seeds / "writing", place, read, changes)


def _datasets(seeds: Path, place: Path) -> Iterator[Target]:
    build(Settings(sources=(str(seeds / "a.safetensors"),), validation=1, test=1), seeds / "dataset", quiet=True)
    changes = {"dataset.json": mutate.json_text} | dict.fromkeys(("rows-00000.safetensors", "pairs.safetensors"), mutate.safetensors)

    def read(folder: Path) -> None:
        for _ in read_folder(folder):
            pass
        DatasetFolder(folder).verify()

    yield _folder("dataset folder", 4, seeds / "dataset", place, read, changes)


def _commands(seeds: Path, place: Path) -> Iterator[Target]:
    """Command lines, up to where their work begins, or with small work. What an argument may honestly ask for at any length (steps, tokens
    of a text, frames) is left out, and so is the network."""
    jsonl, run, writing = seeds / "a.jsonl", seeds / "run", seeds / "writing"
    texts = seeds / "texts.txt"
    texts.write_text("a dog runs in the park\nprices fell\n")
    done = lambda *_, **__: 0  # noqa: E731
    trial = train_command.Trainer.dry_run
    train_command.Trainer.fit = done  # type: ignore[assignment,method-assign]
    train_command.Trainer.dry_run = lambda self: trial(self) if self._resume else ""  # type: ignore[method-assign]
    benchmark_command._measure = lambda *_: {"rows": [], "ceilings": {}}  # type: ignore[assignment]
    benchmark_command._scaling = done  # type: ignore[assignment]
    benchmark_command.output = Namespace(text=str, floors=str, save=done, draw=done)  # type: ignore[assignment]
    doctor_command._examine = lambda *_: iter(())  # type: ignore[assignment]
    nothing = Results("nothing", {"test": 0}, {"test": {"nothing": Scores(0.0, 0.0, 0.0)}}, 0)
    evaluate_command.held_out = upload_command.held_out = lambda *_, **__: nothing  # type: ignore[assignment]
    view_command.animate = view_command.save_animation = done  # type: ignore[assignment]
    model_files.HfApi = lambda: Namespace(create_repo=done, create_commit=lambda *_, **__: Namespace(commit_url="here"))  # type: ignore[assignment,misc]
    _write_briefly()
    lines = {
        "train": (
            train_command.main, 2,
            ["--preset debug", f"--resume {run}", "--out {new} --seed 3 --compute-dtype bfloat16", "--out {new} --seeds 0,1 --quiet",
             f"--resume {run} --dry-run", f"--init-from {run} --part decoder", f"--init-from {writing} --part corrector --out {{new}}"],
        ),
        "evaluate": (evaluate_command.main, 1, [f"{run} --batch-size 3", f"{run} --data {jsonl}"]),
        "compare": (compare_main, 2, [f"{run} {writing}", f"{run} --json", f"{run} {run} {run}"]),
        "generate": (
            generate_command.main, 2,
            [f"{writing} 'a dog runs' 'prices fell' --num-beams 2 --rounds 2 --neighbours 3", f"{writing} --file {texts} --json --max-length 6", f"{writing}"],
        ),
        "recover": (recover_command.main, 1, [f"{writing} --sentences 3 --num-beams 2 --rounds 1 --max-length 6", f"{writing} --json"]),
        "view": (view_command.main, 2, [f"{run} --out {{new}}.html --text 'a dog'", f"{run} --out {{new}}.html --other {writing}", f"{run} --out {{new}}.gif --flows 5"]),
        "embed": (embed_command.main, 2, [f"{run} {texts} --to {{new}}.npy --teacher builtin", f"{run} - --to {{new}}.jsonl --batch-size 1"]),
        "upload": (upload_command.main, 2, [f"{run} owner/name --private", f"{writing} owner/name --dry-run --without-table"]),
        "dataset build": (dataset_command.main, 1, [f"build {jsonl} --to {{new}} --quiet --validation 1 --test 1"]),
        "dataset inspect": (dataset_command.main, 1, [f"inspect {jsonl} --examples 2", f"inspect {seeds / 'dataset'} --verify"]),
        "dataset convert": (dataset_command.main, 1, [f"convert {jsonl} --to {{new}}.efb1", f"convert {seeds / 'dataset'} --to {{new}}.pt"]),
        "dataset train-tokenizer": (dataset_command.main, 1, [f"train-tokenizer {jsonl} --to {{new}}.json --vocab-size 100"]),
        "convert": (
            convert_command.main, 1,
            [f"{seeds / 'export'} --to {{new}}", f"{run} --to-torch --to {{new}}", f"{run} --quantise 4 --to {{new}}", f"{writing} --to-torch --to {{new}}"],
        ),
        "benchmark": (benchmark_command.main, 2, ["--preset tiny --batch-size 2", "--compare torch --json {new}.json", "--scaling 1,2", "--machine m1"]),
        "doctor": (doctor_command.main, 10, ["--preset tiny --dtype float32", "--report {new}.json"]),
        "export": (export_torch_checkpoint.main, 2, [f"{seeds / 'torch/checkpoint.pt'} {{new}}", f"{seeds / 'a.pt'} {{new}}"]),
    }  # fmt: skip
    assert {name.split()[0] for name in lines} == {*verbs(Path(energy_flow_mlx.__file__).parent), "export"}, "a command is missing here"
    for name, (main, weight, examples) in lines.items():
        yield _command(name, weight, main, examples, place)


def _write_briefly() -> None:
    """Let decoder and corrector look for texts of a few tokens in a few rounds, however many are asked for."""

    def brief(owner: type, name: str) -> None:
        whole = getattr(owner, name)

        def call(self: Any, *arguments: Any) -> Any:
            *others, search = arguments
            most = min(search.max_length, 6)
            return whole(self, *others, dataclasses.replace(search, max_length=most, min_length=min(search.min_length, most)))

        setattr(owner, name, call)

    brief(CubeToTextDecoder, "generate")
    brief(TextCorrector, "candidates")
    correct = EnergyFlow.correct
    EnergyFlow.correct = lambda *given, rounds, **others: correct(*given, rounds=min(rounds, 2), **others)  # type: ignore[method-assign]


def _command(name: str, weight: int, main: Callable[[list[str]], int], examples: Sequence[str], place: Path) -> Target:
    parsers: list[ArgumentParser] = []
    with patch.object(ArgumentParser, "print_help", lambda self, file=None: parsers.append(self)), contextlib.suppress(SystemExit):
        main([*name.split()[1:], "--help"])
    options = mutate.options(parsers[0])

    def make(random: random.Random) -> tuple[int, Callable[[], Any]]:
        folder = Path(tempfile.mkdtemp(dir=place))
        given = shlex.split(random.choice(examples).replace("{new}", str(folder / "new")))
        return 0, lambda: call(folder, mutate.arguments(random, given, options))

    def call(folder: Path, argv: list[str]) -> None:
        error, typed = io.StringIO(), sys.stdin
        try:
            os.chdir(folder)
            sys.stdin = io.TextIOWrapper(io.BytesIO(b"a dog runs\nprices fell\n"))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
                run_command(lambda: main(argv))
        except SystemExit as stopped:
            code = stopped.code
        finally:
            sys.stdin = typed
            os.chdir(place)
            shutil.rmtree(folder, ignore_errors=True)
        said = error.getvalue()
        if code not in (0, 1, 2) or "Traceback" in said:
            raise RuntimeError(f"exit code {code!r} of {argv}")
        if code and not _named(said, argv):
            raise RuntimeError(f"exit code {code} of {argv} without an error that names an argument: {said[-200:]}")

    return Target(f"command {name}", weight, make, ())


def _named(said: str, argv: Sequence[str]) -> bool:
    """Whether what a command said is an error that names one of its arguments: a flag, a field or a value. An empty value and the folder
    of the process leave no name; what a run takes of memory comes from many fields."""
    _, error, text = said.partition("error: ")
    parts = {part for word in argv for part in (word, *word.split("=", 1))}
    names = {name for part in parts for name in (part, part.strip("-").replace("-", "_"), repr(part)[1:-1], os.path.dirname(part)) if name}
    inside = "|".join(re.escape(name) for name in names if len(name) > 1)
    told = re.search(rf"--\w|arguments? (-|[A-Z])|required|unrecognized|a step takes|(?<!\w)({inside})(?!\w)", text)
    begins = any(text.startswith(name) or f"{name!r}" in text for name in names)
    return bool(error) and (told is not None or begins or not parts.isdisjoint({"", "."}))
