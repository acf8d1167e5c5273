"""EnergyConfig: presets, files, and a refusal of every value out of range that says what is accepted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from energy_flow_mlx import ConfigError, EnergyConfig
from energy_flow_mlx.config import PRESETS, read_config, read_mapping

FIELDS = {field.name: field for field in dataclasses.fields(EnergyConfig)}


def outside(field: dataclasses.Field) -> list[Any]:
    """Values that the field must refuse."""
    bounds = field.metadata
    if field.type is bool:
        return [1, 0.0, "yes", None]
    if field.type is str:
        return [3, "", None, *(["no such choice"] if bounds["choices"] else [])]
    values: list[Any] = [True, "many", None, [1], float("nan"), float("inf")]
    values += [1.5] if field.type is int else []
    values += [bounds["low"] - 1] if bounds["low"] is not None else []
    values += [bounds["high"] + 1] if bounds["high"] is not None else []
    values += [bounds["above"], bounds["above"] - 1] if bounds["above"] is not None else []
    return values


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_out_of_range_is_refused_with_name_value_and_what_is_accepted(name: str) -> None:
    for value in outside(FIELDS[name]):
        with pytest.raises(ConfigError) as caught:
            EnergyConfig(**{name: value})
        text = str(caught.value)
        assert text.startswith(f"{name}={value!r} is not accepted: it takes "), text
        for bound in ("low", "high", "above"):
            limit = FIELDS[name].metadata[bound]
            assert limit is None or str(limit) in text
        assert all(choice in text for choice in FIELDS[name].metadata["choices"] or ())


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_help_text_and_a_bound(name: str) -> None:
    field = FIELDS[name]
    assert field.metadata["help"] and field.metadata["group"]
    if field.type in (int, float):
        assert field.metadata["low"] is not None or field.metadata["above"] is not None


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.type in (int, float)])
def test_the_bounds_themselves_are_accepted(name: str) -> None:
    for bound in ("low", "high"):
        limit = FIELDS[name].metadata[bound]
        if limit is None:
            continue
        try:
            config = EnergyConfig(**{name: limit})
        except ConfigError as error:  # alone it may contradict another field, but it is not out of range
            assert "is not accepted" not in str(error)
        else:
            assert getattr(config, name) == limit and type(getattr(config, name)) is FIELDS[name].type


def test_fields_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="text_num_heads=3 must divide text_model_dim=64"):
        EnergyConfig(text_num_heads=3)
    with pytest.raises(ConfigError, match="text_max_length=20 is over text_max_positions=10"):
        EnergyConfig(text_max_length=20, text_max_positions=10)
    with pytest.raises(ConfigError, match="displacement_scale_min=1.0 is over displacement_scale=0.5"):
        EnergyConfig(displacement_scale=0.5)
    with pytest.raises(ConfigError, match="are all 0: at least one must be positive"):
        EnergyConfig(surface_loss_weight=0, text_loss_weight=0, embedding_loss_weight=0)


def test_unknown_names_are_refused_with_a_hint() -> None:
    for make in (lambda: EnergyConfig.from_dict({"latice_width": 4}), lambda: EnergyConfig().replace(latice_width=4)):
        with pytest.raises(ConfigError, match="unknown field 'latice_width'; did you mean lattice_width") as caught:
            make()
        assert str(caught.value).endswith("; did you mean lattice_width?")
    with pytest.raises(ConfigError, match="unknown field 'qqq'\naccepted are:\nlattice_width, lattice_height"):
        EnergyConfig.from_dict({"qqq": 4})
    with pytest.raises(ConfigError, match="preset='huge' is unknown: accepted are tiny, debug, experiment, optimized"):
        EnergyConfig.preset("huge")


@pytest.mark.parametrize(
    ("name", "lattice", "size_and_layers", "spawn", "batch"),
    [
        ("reference-debug", (20, 20, 10), (256, 2), (1, 0.15), (8, 1)),
        ("reference-experiment", (28, 28, 40), (512, 3), (1, 0.5), (16, 4)),
        ("reference-optimized", (100, 100, 50), (1024, 3), (3, 0.1), (32, 1)),
    ],
)
def test_presets_hold_the_references_sizes(
    name: str, lattice: tuple, size_and_layers: tuple, spawn: tuple, batch: tuple
) -> None:
    config = EnergyConfig.preset(name)
    assert (config.lattice_width, config.lattice_height, config.lattice_depth) == lattice
    assert (config.carrier_hidden_size, config.carrier_num_layers) == size_and_layers
    assert (config.max_spawn_per_step, config.spawn_movement_threshold_ratio) == spawn
    assert (config.batch_size, config.gradient_accumulation_steps) == batch
    assert config.exploration_noise == (0.1 if name == "reference-optimized" else 0.05)
    assert config.input_embedding_dim_from_teacher == 768 and config.learning_rate == 1e-4
    assert config.batch_size * config.surface_dim <= config.max_active_flows


@pytest.mark.parametrize("name", ["debug", "experiment", "optimized"])
def test_a_preset_that_learns_has_the_references_sizes_and_not_its_dynamics(name: str) -> None:
    ours, reference = EnergyConfig.preset(name), EnergyConfig.preset(f"reference-{name}")
    for field in ("lattice_width", "lattice_height", "lattice_depth", "carrier_hidden_size", "carrier_num_layers", "neuron_output_dim"):
        assert getattr(ours, field) == getattr(reference, field)
    assert (reference.collection, reference.initial_weights, reference.dropout) == ("nearest", "reference", 0.1)
    assert (reference.arrival_loss_weight, reference.input_residual) == (0, False)
    assert (ours.collection, ours.initial_weights) == ("bilinear", "carrying") and ours.arrival_loss_weight > 0
    assert not ours.movement_based_spawn and not ours.use_exploration_noise


def test_sizes_that_follow() -> None:
    config = EnergyConfig(lattice_width=5, lattice_height=3, lattice_depth=7)
    assert (config.surface_dim, config.flow_steps, config.slots_per_sample) == (15, 3, 15)
    assert config.replace(movement_based_spawn=True, spawn_capacity=0.5).slots_per_sample == 15 + 8
    assert config.replace(movement_based_spawn=True, max_spawn_per_step=0).slots_per_sample == 15
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lattice_width = 4  # type: ignore[misc]


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(preset: str, tmp_path: Path) -> None:
    config = EnergyConfig.preset(preset)
    config.to_json(tmp_path / "config.json")
    assert EnergyConfig.from_json(tmp_path / "config.json") == config
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_yaml_and_json_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lattice_width: 5\nlearning_rate: 1e-4\nmovement_based_spawn: true\n")
    (tmp_path / "b.json").write_text(
        json.dumps({"lattice_width": 5, "learning_rate": 1e-4, "movement_based_spawn": True})
    )
    read = [EnergyConfig.from_dict(read_mapping(tmp_path / name)) for name in ("a.yaml", "b.json")]
    assert read[0] == read[1] == EnergyConfig(lattice_width=5, learning_rate=1e-4, movement_based_spawn=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "a = 1", "ends in .json, .yaml or .yml"),
        ("c.json", "{", "does not parse"),
        ("c.yaml", "a: [1", "does not parse"),
        ("c.yml", "- 1", "holds a list; accepted is a mapping"),
        ("c.json", '{"lattice_with": 3}', "unknown field 'lattice_with'"),
    ],
)
def test_broken_files_are_refused_by_name(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        EnergyConfig.from_json(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        EnergyConfig.from_json(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_dropped(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"training_steps": 2}', encoding=encoding)
    assert EnergyConfig.from_json(tmp_path / name).training_steps == 2


def test_files_hold_the_version_of_their_format_and_newer_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    EnergyConfig.tiny().to_json(path)
    values = json.loads(path.read_text())
    assert next(iter(values.items())) == ("format_version", 1)
    values.pop("format_version")
    path.write_text(json.dumps(values))
    assert EnergyConfig.from_json(path) == EnergyConfig.tiny()
    for version, words in ((2, "is of format_version 2, this energy_flow_mlx reads up to 1"), (0, "format_version=0"), (True, "format_version=True")):
        path.write_text(json.dumps({**values, "format_version": version, "of_later": 1}))
        for read in (EnergyConfig.from_json, read_config):
            with pytest.raises(ConfigError, match=words) as caught:
                read(path)
            assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [10**400, "1" + "0" * 400, float("inf")])
def test_numbers_beyond_every_float_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="lattice_width=.*is not accepted"):
        EnergyConfig.tiny().replace(lattice_width=value)


def test_errors_stay_short(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    for text in (f"{laughs}lattice_width: *a59\n", "lattice_width: 0x1" + "0" * 5000, "".join(f"k{n}: 1\n" for n in range(5000))):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            EnergyConfig.from_json(tmp_path / "c.yaml")
        assert len(str(caught.value)) < 4000
    with pytest.raises(ConfigError, match=r"lattice_width=\[\[\[.*\.\.\."):
        EnergyConfig.tiny().replace(lattice_width=[[[[[[[[[[1]]]]]]]]]])
    with pytest.raises(ConfigError, match="lattice_width=a very large number is not accepted"):
        EnergyConfig.tiny().replace(lattice_width=1 << 20_000)
