"""benchmark --machine: what presets take at least on a GPU that is not here."""

import json
from pathlib import Path

import pytest

from energy_flow_mlx.benchmark.__main__ import main
from energy_flow_mlx.benchmark.machines import MACHINES, counts, floors
from energy_flow_mlx.benchmark.work import benchmark_config, total_flops

DEBUG = benchmark_config("debug", None, {}, as_trained=False)


@pytest.mark.parametrize(("name", "teraflops"), [("m1", 2.6), ("m1-max", 10.6), ("m2", 3.6), ("m2-max", 13.6), ("m2-ultra", 27.2)])
def test_peaks_are_those_that_apple_states(name: str, teraflops: float) -> None:
    assert MACHINES[name].flops / 1e12 == pytest.approx(teraflops, rel=0.02)


def test_bytes_and_launches_of_a_forward_pass_are_those_of_its_arrays() -> None:
    found = counts(DEBUG, "forward")
    moves, steps, size, inner = 32 * 400 * 5, 5, 256, 128 + 64
    # Two layers: products of 72 and 256 inputs; gates that read six gates and a state and write one; a neuron that writes 72.
    weights = 3 * size * (72 + size) + 3 * size * (size + size) + inner * size
    products = (72 + size + 6 * size) + (size + size + 6 * size) + (size + inner)
    assert found.flops == total_flops(DEBUG, "forward")
    assert found.products == 4 * (moves * products + steps * weights)
    assert found.gates == 4 * moves * (2 * 8 * size + 72 + inner)
    assert found.fused == 4 * (moves * 2 * 2 * size + steps * weights)
    # Neuron, two products and gates of both layers, product and heads, advance.
    assert found.launches == steps * (1 + 3 + 3 + 2 + 1)


def test_16_bits_halve_the_bytes_and_micro_batches_repeat_the_flows() -> None:
    half, twice = DEBUG.replace(compute_dtype="bfloat16"), DEBUG.replace(gradient_accumulation_steps=2)
    one = counts(DEBUG, "training")
    assert counts(half, "training").gates == one.gates / 2
    assert [getattr(counts(twice, "training"), name) / getattr(one, name) for name in ("products", "gates", "fused", "launches")] == [2.0] * 4


def test_a_floor_adds_the_kernels_to_the_products() -> None:
    (forward, training) = floors("m4-max", [("debug", DEBUG)])
    found, rates = counts(DEBUG, "forward"), MACHINES["m4-max"]
    products, gates, ends = found.flops / rates.flops, found.gates / 546e9, found.ends / 546e9
    assert forward["seconds"] == pytest.approx(products + gates + ends)
    assert forward["fused_s"] == pytest.approx(products + ends)
    assert forward["break_even"] == pytest.approx(products / (products + gates))
    assert training["seconds"] > 3 * forward["seconds"] > 3 * forward["fused_s"]


def test_the_command_prints_and_saves_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--machine", "m2-max", "--json", str(tmp_path / "floor.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "m2-max: 13.6 TFLOP/s, 400 GB/s, on paper"
    rows = json.loads((tmp_path / "floor.json").read_text())["rows"]
    assert [(row["preset"], row["what"]) for row in rows] == [(p, w) for p in ("debug", "experiment", "optimized") for w in ("forward", "training")]
    assert len(lines) == 2 + len(rows) and lines[2].startswith("debug, float32, forward")
    assert main(["--machine", "m1", "--preset", "tiny", "--batch-size", "4"]) == 0
    assert "tiny, float32, training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--machine", "m4", "--stages"], "--stages"), (["--machine", "m4", "--compare", "torch"], "--compare"), (["--machine", "m0"], "m4-max")],
)
def test_what_needs_a_measurement_is_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = int(str(exit.code))
    assert code == 2 and named in capsys.readouterr().err
