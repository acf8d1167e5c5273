"""The configuration in its parts: what a model is, what a run does, and both, flat."""

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import pytest

from energy_flow_mlx import ConfigError, EnergyConfig, EnergyFlow
from energy_flow_mlx.config import ModelConfig, RunConfig, field_names, read_config

SMALL = {
    "lattice_width": 3, "lattice_height": 2, "lattice_depth": 4, "input_embedding_dim_from_teacher": 12, "text_vocab_size": 40,
    "text_model_dim": 8, "text_num_heads": 2,
}  # fmt: skip


def test_the_whole_has_the_fields_of_both_parts_and_no_other() -> None:
    parts = [[field.name for field in dataclasses.fields(part)] for part in (ModelConfig, RunConfig)]
    assert [field.name for field in dataclasses.fields(EnergyConfig)] == parts[0] + parts[1]
    assert not field_names(ModelConfig) & field_names(RunConfig)


@pytest.mark.parametrize("fields", [{"learning_rate": 0}, {"lattice_width": 1}, {"text_loss_weight": -1}])
def test_the_whole_checks_the_fields_of_both_parts(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        EnergyConfig(**fields)


def test_a_model_file_gives_a_model_configuration_and_a_run_file_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for config in (ModelConfig(**SMALL), EnergyConfig(**SMALL, batch_size=3)):
        config.to_json(path)
        assert read_config(path) == config
    path.write_text(json.dumps({**SMALL, "learning_rat": 1}))
    with pytest.raises(ConfigError, match=r"config\.json: unknown field 'learning_rat'; did you mean learning_rate"):
        read_config(path)


def test_a_model_needs_no_run(tmp_path: Path) -> None:
    mx.random.seed(0)
    model = EnergyFlow(ModelConfig(**SMALL))
    model.eval()
    model.save_pretrained(tmp_path)
    loaded = EnergyFlow.from_pretrained(tmp_path)
    assert type(loaded.config) is ModelConfig and loaded.config == model.config
    assert set(json.loads((tmp_path / "config.json").read_text())) == field_names(ModelConfig) | {"format_version"}
    x = mx.random.normal((2, 12))
    assert mx.array_equal(loaded(x).embedding, model(x).embedding)
