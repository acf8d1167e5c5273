"""results.json, and runs beside each other."""

import json

import numpy as np
import pytest

from energy_flow_mlx import EnergyConfig, Evaluation, Results, Run, Scores, compare
from energy_flow_mlx.compare import main

FLOW = Evaluation(0.5, 0.25, 1.0, 0.9, 0.1, 0.01, 1.0, 0.125, 0.4)
ROWS = {"input itself": Scores(0.4, 0.0, 0.5), "energy flow (2 steps)": FLOW}


def made(folder, cosine=0.5, data="builtin (seed 0)", **changes):
    """A run with results that were not trained for."""
    folder.mkdir()
    EnergyConfig.tiny().replace(**changes).to_json(folder / "config.json")
    flow = Evaluation(**{**vars(FLOW), "cosine": cosine})
    Results(data, {"test": 4}, {"test": {**ROWS, "energy flow (2 steps)": flow}}, 2).save(folder)
    return folder


def test_results_are_read_as_they_were_written(tmp_path):
    written = Results("mine", {"train": 9, "test": 4}, {"test": ROWS}, 2, {"evaluation": 0.5}, 1, {"mlx": "0"})
    written.save(tmp_path)
    assert Results.load(tmp_path) == written
    assert written.evaluation is FLOW
    assert str(written).startswith("4 held-out test pairs of mine\n")
    assert "<th>energy flow (2 steps)</th><td>0.5000</td>" in written._repr_html_()


@pytest.mark.parametrize(
    ("text", "told"),
    [("[]", ""), ('{"format": "other"}', "does not hold the results"),
     ('{"format": "energy-flow results 1", "data": "x"}', "not what this version writes")],
)  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, text, told):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=f"results.json.* {told}"):
        Results.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": []}, r"data is \[\]"),
        ({"steps": "2"}, "steps is '2'"),
        ({"pairs": None}, "pairs is None"),
        ({"pairs": {"train": 4}}, "pairs of the split test: None"),
        ({"splits": {}}, "the split test has no row with what flows did"),
        ({"splits": {"test": {"ridge": {"cosine": 0.5, "top1": 0.5, "top10": 0.5}}}}, "the split test has no row with what flows did"),
        ({"splits": {"test": {"energy flow": {**vars(FLOW), "cosine": None}}}}, "test, energy flow: cosine is None"),
        ({"splits": {"test": {"energy flow": {**vars(FLOW), "top1": [1]}}}}, r"test, energy flow: top1 is \[1\]"),
        ({"splits": {"test": []}}, "not what this version writes"),
    ],
)
def test_results_that_would_fail_when_shown_are_refused_when_read(tmp_path, change, told):
    Results("mine", {"test": 4}, {"test": ROWS}, 2).save(tmp_path)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"results.json is not what this version writes: .*{told}" if "not what" not in told else told):
        Results.load(tmp_path)


def test_a_run_without_results_says_what_writes_them(tmp_path):
    EnergyConfig.tiny().to_json(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="energy_flow_mlx.evaluate"):
        Run.load(tmp_path).evaluation  # noqa: B018


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    seeds = [made(tmp_path / f"s{seed}", cosine, seed=seed) for seed, cosine in enumerate((0.5, 0.6, 0.7))]
    wide = made(tmp_path / "wide", 0.4, lattice_width=10)
    found = compare(*seeds, Run.load(wide))
    assert [group.settings for group in found.groups] == [{"lattice_width": 10}, {"lattice_width": 8}]
    assert found.groups[1].seeds == [0, 1, 2]
    np.testing.assert_allclose(found.groups[1].values("cosine"), [0.5, 0.6, 0.7])
    assert found.baselines == {"input itself": 0.4}
    assert "lattice_width=8   0 1 2  0.6000 ± 0.1000" in str(found)
    assert "<td>0.6000 ± 0.1000</td>" in found._repr_html_() and found._repr_png_()[:4] == b"\x89PNG"


def test_runs_on_other_data_are_not_compared(tmp_path):
    with pytest.raises(ValueError, match="2 data sets, builtin, mine"):
        compare(made(tmp_path / "a"), made(tmp_path / "b", data="mine"))
    with pytest.raises(ValueError, match="none came"):
        compare()


def test_the_command_prints_a_table_json_and_a_picture(tmp_path, capsys):
    runs = [str(made(tmp_path / "a")), str(made(tmp_path / "b", 0.7, learning_rate=1e-3))]
    assert main(runs) == 0
    assert "learning_rate=0.001  0      0.7000" in capsys.readouterr().out
    assert main([*runs, "--json", "--out", str(tmp_path / "picture.svg")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [group["test"]["cosine"] for group in values["groups"]] == [[0.5], [0.7]]
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent/config.json" in capsys.readouterr().err


def test_a_configuration_shows_what_differs_from_its_preset():
    assert EnergyConfig.debug()._repr_html_() == "<em>the preset debug</em>"
    changed = EnergyConfig.debug().replace(dropout=0.5, data="<mine>")
    assert changed.changes() == ("debug", {"dropout": 0.5, "data": "<mine>"})
    assert "<th>dropout</th><td>0.5</td><td>0.0</td>" in changed._repr_html_() and "&lt;mine&gt;" in changed._repr_html_()
    assert changed.command() == "python -m energy_flow_mlx.train --preset debug --dropout 0.5 --data '<mine>'"


def test_of_several_groups_a_name_says_what_is_unlike_most(tmp_path):
    runs = [made(tmp_path / name, **changes) for name, changes in {"a": {}, "b": {"dropout": 0.5}, "c": {"collection": "nearest", "lattice_width": 10}}.items()]
    found = compare(*runs)
    assert {group.name for group in found.groups} == {"as most", "dropout=0.5", "lattice_width=10, collection=nearest"}
    assert [len(group.settings) for group in found.groups] == [3, 3, 3]
    labels = [label.get_text() for label in found.plot().get_yticklabels()]
    assert max(len(line) for label in labels for line in label.splitlines()) <= 32
