from pathlib import Path

import pytest
from train.small import small_config, small_model

from energy_flow_mlx import ConfigError, EnergyFlow
from energy_flow_mlx.config import check_fit
from energy_flow_mlx.data import Tokeniser


def test_what_fits_passes() -> None:
    config = small_config()
    check_fit(config, "a set")
    check_fit(config, "a set", vocab_size=config.text_vocab_size, embedding_dim=12, surface_dim=6)
    check_fit(config, "a set", vocab_size=5)


def test_every_misfit_is_named_with_both_values() -> None:
    config = small_config()
    for sizes, words in [
        ({"vocab_size": 121}, "it has 121 vocabulary entries, text_vocab_size is 120"),
        ({"embedding_dim": 384}, "it has embeddings of 384 numbers, input_embedding_dim_from_teacher is 12"),
        ({"surface_dim": 64}, "it has surfaces of 64 cells, lattice_width 3 times lattice_height 2 is 6"),
    ]:
        with pytest.raises(ConfigError, match=f"the set x does not fit the model: {words}"):
            check_fit(config, "the set x", **sizes)
    with pytest.raises(ConfigError) as caught:
        check_fit(config, "x", vocab_size=121, embedding_dim=1, surface_dim=1)
    assert str(caught.value).count("; ") == 3


def test_a_model_folder_with_another_tokeniser_is_refused(tmp_path: Path) -> None:
    model = small_model(small_config())
    model.text_encoder.tokeniser = Tokeniser.whitespace(["a b c"], 100)
    model.save_pretrained(tmp_path)
    assert EnergyFlow.from_pretrained(tmp_path).text_encoder.tokeniser is not None
    Tokeniser.whitespace([f"word{number}" for number in range(500)], 400).save(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not fit the model: it has 400 .* is 120"):
        EnergyFlow.from_pretrained(tmp_path)
