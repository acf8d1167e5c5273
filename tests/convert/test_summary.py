"""What convert prints, and model folders with quantised weights."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from convert.checkpoints import WIDE, Modules, save
from models.small import lively_model

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.convert.summary import Row, shortened, summary

WIDER = dict(
    input_embedding_dim_from_teacher=64, neuron_hidden_dim=32, neuron_output_dim=31, carrier_hidden_size=32, text_model_dim=32
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    source, mapper = save(Modules(WIDE), WIDE, tmp_path_factory.mktemp("torch"), None)
    return [str(source), "--mapper", str(mapper)]


def test_a_summary_counts_by_module_and_action() -> None:
    rows = [Row("a", "carrier.gru.0.Wx", (2,), "renamed"), Row("b", "carrier.gru.0.b", (2,), "as is"),
            Row("c", "text_decoder.safetensors: shared.weight", (2,), "carried"), Row("d", "moments of carrier.x", (2,), "as is")]  # fmt: skip
    assert summary(rows).splitlines() == [
        "carrier             2 tensors: 1 renamed, 1 as is",
        "text_decoder        1 tensors: 1 carried",
        "moments of carrier  1 tensors: 1 as is",
        "all                 4 tensors: 1 renamed, 2 as is, 1 carried",
    ]


def test_remarks_are_cut_between_words() -> None:
    assert shortened("short, as it is") == "short, as it is"
    cut = shortened("word " * 100)
    assert len(cut) <= 200
    assert cut.endswith("word ... (--verbose shows all)")


def test_the_report_is_short_and_the_record_whole(checkpoint: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*checkpoint, "--to", str(tmp_path / "short")]) == 0
    short = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "short/conversion.json").read_text())["tensors"]
    counted = {line.split()[0]: int(line.split()[1]) for line in short if " tensors: " in line}
    modules = [row["target"].split(".")[0] for row in record]
    assert counted == {**{name: modules.count(name) for name in modules}, "all": len(record)}
    assert len(short) < 16
    assert main([*checkpoint, "--to", str(tmp_path / "long"), "--verbose"]) == 0
    long = capsys.readouterr().out
    assert all(row["target"] in long for row in record)
    assert main([str(tmp_path / "short"), "--to-torch", "--to", str(tmp_path / "back")]) == 0
    assert re.search(r"^all +\d+ tensors: ", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_folder_is_quantised(bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lively_model(**WIDER)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model/conversion.json").write_text('{"notes": []}')
    assert main([str(tmp_path / "model"), "--quantise", str(bits), "--to", str(tmp_path / "small")]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^quantised: \d+ matrices to {bits} bits; weights of [\d.]+ MB take [\d.]+ MB$", shown, flags=re.MULTILINE)
    loaded = EnergyFlow.from_pretrained(tmp_path / "small")
    model.quantise(bits)
    x = mx.array(np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32))
    assert np.array_equal(np.array(loaded(x).embedding), np.array(model(x).embedding))
    assert loaded.config == model.config
    assert (tmp_path / "small/conversion.json").read_text() == '{"notes": []}'


def test_dtype_is_that_of_the_scales(tmp_path: Path) -> None:
    lively_model(**WIDER).save_pretrained(tmp_path / "model")
    assert main([str(tmp_path / "model"), "--quantise", "4", "--dtype", "bfloat16", "--to", str(tmp_path / "small")]) == 0
    weights = mx.load(str(tmp_path / "small/model.safetensors"))
    assert {array.dtype for name, array in weights.items()} == {mx.bfloat16, mx.uint32}
    assert mx.all(mx.isfinite(EnergyFlow.from_pretrained(tmp_path / "small")(mx.zeros((2, 64))).embedding))


def test_a_checkpoint_is_quantised_as_it_is_converted(checkpoint: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*checkpoint, "--quantise", "8", "--to", str(tmp_path / "ours")]) == 0
    assert "quantised: " in capsys.readouterr().out
    assert EnergyFlow.from_pretrained(tmp_path / "ours").quantised_bits == 8
    assert not (tmp_path / "ours/optimizer.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("small", ["--quantise", "8"], "small: its weights are quantised already, to 4 bits"),
        ("small", ["--to-torch"], "small: its weights are quantised to 4 bits; convert the model that it was made from"),
        ("model", ["--quantise", "8", "--set", "seed=1"], "--set cannot be used with the --quantise of a model folder"),
        ("model", ["--to-torch", "--quantise", "8"], "--quantise cannot be used with --to-torch"),
    ],
)
def test_refusals(source: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lively_model(**WIDER).save_pretrained(tmp_path / "model")
    assert main([str(tmp_path / "model"), "--quantise", "4", "--to", str(tmp_path / "small")]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / source), *words, "--to", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")
    assert not (tmp_path / "new").exists()


def test_other_bits_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["model", "--quantise", "3", "--to", "new"])
    assert refused.value.code == 2
    assert "argument --quantise: invalid choice: 3 (choose from 4, 8)" in capsys.readouterr().err
