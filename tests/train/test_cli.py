"""The command line: what it accepts, what it refuses, and how it says so."""

import dataclasses

import pytest
from train.small import small_config

from energy_flow_mlx import EnergyConfig
from energy_flow_mlx.cli import Parser, add_config_flags, flag, given_fields, layered_config
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.trainer import Trainer


def parsed(*argv):
    parser = Parser(prog="test")
    add_config_flags(parser, argv)
    return parser.parse_args(argv)


def refused(capsys, *argv):
    """The text of the error; nothing else may happen."""
    try:
        code = train.main(argv)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


FLAGGED = [field for field in dataclasses.fields(EnergyConfig) if field.name != "untrained_parts"]  # that one a conversion sets


def test_every_field_has_a_flag():
    for field in FLAGGED:
        name = flag(field.name)
        if field.type is bool:
            assert given_fields(parsed(name)) == {field.name: True}
            assert given_fields(parsed("--no-" + name[2:])) == {field.name: False}
        else:
            assert given_fields(parsed(name, "7")) == {field.name: "7"}
    assert given_fields(parsed()) == {}


def test_flags_go_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lattice_width: 6\nlearning_rate: 1e-4\ncollection: nearest\n")
    config = layered_config("debug", file, {"lattice_width": "5", "use_exploration_noise": True})
    assert (config.lattice_width, config.learning_rate, config.collection) == (5, 1e-4, "nearest")
    assert config.use_exploration_noise is True
    rest = config.replace(lattice_width=20, learning_rate=2e-3, collection="bilinear", use_exploration_noise=False)
    assert rest == EnergyConfig.debug()
    assert layered_config(None, None, {}) == EnergyConfig.tiny()


def test_values_of_file_and_flags_are_checked_together(tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"text_max_length": 600}')
    assert layered_config(None, file, {"text_max_positions": "700"}).text_max_length == 600


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lattice-width", "1"], ["lattice_width='1'", "a whole number from 2"]),
        (["--learning-rate", "fast"], ["learning_rate='fast'", "a number above 0"]),
        (["--learning-rate", "nan"], ["learning_rate='nan'"]),
        (["--batch-size", "2.5"], ["batch_size='2.5'", "whole number"]),
        (["--collection", "near"], ["collection='near'", "nearest, bilinear"]),
        (["--preset", "huge"], ["preset='huge'", "tiny, debug, experiment, optimized"]),
        (["--training-steps", "1e20"], ["training_steps=1", "whole numbers go up to 2147483647"]),
        (["--collective-timeout", "1e300"], ["--collective-timeout: '1e300' is not accepted: it takes a number of seconds above 0 up to"]),
        (["--collective-timeout", "0"], ["--collective-timeout: '0' is not accepted: it takes a number of seconds above 0"]),
        (["--collective-timeout", "soon"], ["--collective-timeout: 'soon' is not accepted"]),
        (["--shard-optimiser"], ["shard_optimiser=True is not accepted", "this one is alone"]),
        (["--lattice-wid", "5"], ["--lattice-wid; did you mean --lattice-width?"]),
        (["--lr=1"], ["--lr; did you mean --learning-rate?"]),
        (["--steps", "1"], ["--steps; did you mean", "--training-steps"]),
        (["--untrained-parts", "mapper"], ["unknown option --untrained-parts"]),
        (["--data", "nowhere"], ["data", "'nowhere'", "builtin"]),
        (["--config", "absent.yaml"], ["error: absent.yaml: No such file or directory\n"]),
        (["--resume", "absent"], ["absent"]),
        (["--resume", "absent", "--seed", "1", "--preset", "tiny"], ["--seed, --preset", "--training-steps"]),
        (["--resume", "absent", "--out", "elsewhere"], ["--out elsewhere"]),
        (["extra"], ["extra"]),
    ],
)
def test_refusals_name_the_field_the_value_and_what_is_accepted(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    text = refused(capsys, *argv)
    for word in words:
        assert word in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "latice_width: 5\n", ["'latice_width'; did you mean lattice_width?\n"]),
        ("a.yaml", "qqq: 5\n", ["'qqq'\naccepted are:\nlattice_width, "]),
        ("a.yaml", "# nothing\n", ["a.yaml: is empty"]),
        ("a.yaml", "lattice_width: [1, 2]\n", ["lattice_width=[1, 2]", "whole number"]),
        ("a.yaml", "lattice_width: 5: 6\n", ["a.yaml", "does not parse"]),
        ("a.yaml", "- 1\n", ["a.yaml", "mapping"]),
        ("a.json", '{"seed": -1}', ["seed=-1", "from 0"]),
        ("a.json", "{", ["a.json", "does not parse"]),
        ("a.toml", "seed = 1", ["a.toml", ".yaml"]),
    ],
)
def test_files_are_refused_by_name(capsys, tmp_path, monkeypatch, name, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content)
    text = refused(capsys, "--config", name)
    for word in words:
        assert word in text
    assert max(map(len, text.splitlines())) <= 140


def test_a_used_folder_is_refused_with_the_way_on(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    text = refused(capsys, "--out", str(tmp_path))
    assert f"--resume {tmp_path}" in text and "--out" in text
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_a_name_takes_the_next_free_one_and_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    monkeypatch.setattr(Trainer, "fit", lambda self: names.append(str(self.folder)))
    for used in ("tiny-seed0", "tiny-seed0-2"):
        assert train.main([]) == 0
        (tmp_path / "runs" / used).mkdir(parents=True)
        (tmp_path / "runs" / used / "config.json").touch()
        assert capsys.readouterr().err == ("" if used == "tiny-seed0" else SAID)
    assert train.main(["--preset", "debug"]) == 0
    (tmp_path / "runs" / "tiny-seed0-3").mkdir()  # what a run left that was refused before its first file
    assert train.main([]) == 0
    assert names == ["runs/tiny-seed0", "runs/tiny-seed0-2", "runs/debug-seed0", "runs/tiny-seed0-3"]


SAID = "warning: runs/tiny-seed0 is not empty: this run goes to runs/tiny-seed0-2 (--resume runs/tiny-seed0 goes on with the other one)\n"


def test_help_shows_groups_defaults_and_what_is_accepted(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for words in ("life of a flow:", "cells along x, W (a whole number from 2 up to 32768; tiny: 8)", "--no-project-unfinished"):
        assert words in text
    assert all(flag(field.name) in text for field in FLAGGED) and "--untrained-parts" not in text


def test_the_small_configuration_is_valid():
    assert small_config().surface_dim == 6


@pytest.mark.parametrize(("flags", "shown"), [([], "tiny: 16"), (["--preset", "debug"], "debug: 32"), (["--preset=debug"], "debug: 32")])
def test_help_shows_the_values_of_the_preset_that_is_named(flags, shown, capsys):
    with pytest.raises(SystemExit):
        train.main([*flags, "--help"])
    assert f"pairs in a micro-batch (a whole number from 1; {shown})" in " ".join(capsys.readouterr().out.split())
