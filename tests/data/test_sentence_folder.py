"""Folders of sentence-transformers: pooling, Dense, Normalize, length and prompt, against the formulas written in torch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.encoders import TEXTS, random_model, save, tokeniser
from safetensors.numpy import save_file

from energy_flow_mlx.data import open_teacher
from energy_flow_mlx.data.sentence_folder import read_modules

POOLING, NORMALIZE = ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
TOKENISER = tokeniser()
SOME = [*TEXTS[:6], "a", " ".join(TEXTS[:5])]
Module = tuple[str, str]
# Of the hidden states [T, d] of one text's tokens.
FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0).values,
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (x * torch.arange(1, len(x) + 1)[:, None]).sum(0) / sum(range(1, len(x) + 1)),
    "lasttoken": lambda x: x[-1],
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = random_model("bert", seed=3)
    return model, save(model, tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(encoder: tuple[Any, Path], tmp_path: Path) -> Path:
    """A mean over the tokens, to length 1."""
    folder = Path(shutil.copytree(encoder[1], tmp_path / "teacher"))
    modules(folder, POOLING, NORMALIZE)
    settings(folder / "1_Pooling", pooling_mode_mean_tokens=True, word_embedding_dimension=24)
    return folder


def modules(folder: Path, *listed: Module, library: str = "sentence_transformers.models") -> None:
    entries = [("Transformer", ""), *listed]
    lines = [{"idx": at, "name": str(at), "path": path, "type": f"{library}.{kind}"} for at, (kind, path) in enumerate(entries)]
    (folder / "modules.json").write_text(json.dumps(lines))


def settings(folder: Path, name: str = "config.json", **values: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def dense(folder: Path, inputs: int, outputs: int, **values: Any) -> dict[str, np.ndarray]:
    """A Dense of random weights."""
    draw = np.random.default_rng(inputs + outputs)
    tensors = {"linear.weight": draw.normal(0, 0.3, (outputs, inputs)), "linear.bias": draw.normal(0, 0.3, outputs)}
    if not values.get("bias", True):
        del tensors["linear.bias"]
    if values.get("use_residual") and inputs != outputs:
        tensors["residual.weight"] = draw.normal(0, 0.3, (outputs, inputs))
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    settings(folder, in_features=inputs, out_features=outputs, **values)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def pooled(model: Any, texts: list[str], modes: list[str], max_length: int = 40) -> torch.Tensor:
    """[N, len(modes) d], one text at a time, without padding."""
    rows = []
    for text in texts:
        batch = TOKENISER.encode([text], max_length)
        with torch.no_grad():
            hidden = model(torch.tensor(batch.input_ids[:, : batch.attention_mask.sum()])).last_hidden_state[0]
        rows.append(torch.cat([FORMULAS[mode](hidden) for mode in modes]))
    return torch.stack(rows)


def close(embeddings: np.ndarray, expected: torch.Tensor) -> None:
    unit = torch.nn.functional.normalize(expected, dim=1).numpy()
    assert embeddings.shape == unit.shape
    np.testing.assert_allclose(embeddings, unit, atol=2e-5)
    assert np.ptp(unit, axis=0).max() > 0.005, "texts of one embedding would test nothing"


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        open_teacher(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("mode", FORMULAS)
def test_each_pooling(mode: str, folder: Path, encoder: tuple[Any, Path]) -> None:
    """By the flags of older folders, by the name in newer ones, and by argument over the folder's own."""
    expected = pooled(encoder[0], SOME, [mode])
    close(open_teacher(folder, pooling=mode).embed(SOME), expected)
    suffix = {"cls": "cls_token", "mean_sqrt_len_tokens": mode, "lasttoken": mode}.get(mode, f"{mode}_tokens")
    settings(folder / "1_Pooling", **{"pooling_mode_mean_tokens": False, f"pooling_mode_{suffix}": True})
    close(open_teacher(folder).embed(SOME), expected)
    settings(folder / "1_Pooling", embedding_dimension=24, pooling_mode=mode, include_prompt=True)
    close(open_teacher(folder).embed(SOME), expected)


def test_joined_poolings(folder: Path, encoder: tuple[Any, Path]) -> None:
    """Flags join in an order of their own, a list in the order of the list."""
    settings(folder / "1_Pooling", pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True, pooling_mode_cls_token=True)
    teacher = open_teacher(folder)
    assert teacher.dim == 72 and repr(teacher) == f"<EncoderTeacher {teacher.name}: texts -> [N, 72]>"
    close(teacher.embed(SOME), pooled(encoder[0], SOME, ["cls", "max", "mean"]))
    settings(folder / "1_Pooling", pooling_mode=["mean", "cls"])
    close(open_teacher(folder).embed(SOME), pooled(encoder[0], SOME, ["mean", "cls"]))
    close(open_teacher(folder, pooling="lasttoken+max").embed(SOME), pooled(encoder[0], SOME, ["lasttoken", "max"]))


@pytest.mark.parametrize(
    ("values", "activation"),
    [
        ({}, torch.tanh),
        ({"activation_function": "torch.nn.modules.linear.Identity", "bias": False}, lambda x: x),
        ({"activation_function": "torch.nn.modules.activation.ReLU", "use_residual": True}, torch.relu),
        ({"activation_function": "torch.nn.modules.activation.GELU"}, torch.nn.functional.gelu),
    ],
)
@pytest.mark.parametrize("outputs", [24, 10])
def test_dense(
    values: dict[str, Any], activation: Callable[[torch.Tensor], torch.Tensor], outputs: int, folder: Path,
    encoder: tuple[Any, Path],
) -> None:  # fmt: skip
    """After it a Normalize and a second one, which would differ if the Normalize between were left out."""
    modules(folder, POOLING, ("Dense", "2_Dense"), ("Normalize", "3_Normalize"), ("Dense", "4_Dense"), ("Normalize", "5_Normalize"))
    first = dense(folder / "2_Dense", 24, outputs, **values)
    second = dense(folder / "4_Dense", outputs, 7)
    x = pooled(encoder[0], SOME, ["mean"])
    out = activation(x @ torch.tensor(first["linear.weight"]).T + torch.tensor(first.get("linear.bias", np.zeros(1, np.float32))))
    if values.get("use_residual"):
        out = out + (x if outputs == 24 else x @ torch.tensor(first["residual.weight"]).T)
    out = torch.nn.functional.normalize(out, dim=1)
    expected = torch.tanh(out @ torch.tensor(second["linear.weight"]).T + torch.tensor(second["linear.bias"]))
    teacher = open_teacher(folder)
    assert teacher.dim == 7 and f"mean + Dense {outputs} + Normalize + Dense 7" in teacher.name
    close(teacher.embed(SOME), expected)
    np.testing.assert_allclose(open_teacher(folder, normalise=False).embed(SOME), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("encoder_settings", "tokeniser_settings", "length"),
    [
        ({"max_seq_length": 12}, {"model_max_length": 20}, 12),
        ({"max_seq_length": None}, {"model_max_length": 20}, 20),
        ({}, {"model_max_length": 10**30}, 40),
        ({"max_seq_length": 600}, {}, 40),  # the encoder has 40 positions
        (None, None, 40),
    ],
)
def test_length(
    encoder_settings: Any, tokeniser_settings: Any, length: int, folder: Path, encoder: tuple[Any, Path]
) -> None:
    for name, values in (("sentence_bert_config.json", encoder_settings), ("tokenizer_config.json", tokeniser_settings)):
        if values is not None:
            settings(folder, name, **values)
    assert read_modules(folder, 24, 40).max_length == length
    close(open_teacher(folder).embed(SOME), pooled(encoder[0], SOME, ["mean"], length))
    assert f" {length} tokens" in open_teacher(folder).name and " 9 tokens" in open_teacher(folder, max_length=9).name


def test_default_prompt(folder: Path, encoder: tuple[Any, Path]) -> None:
    prompts = {"query": "question about ", "document": ""}
    settings(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name=None)
    plain = open_teacher(folder)
    close(plain.embed(SOME), pooled(encoder[0], SOME, ["mean"]))
    settings(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    teacher = open_teacher(folder)
    close(teacher.embed(SOME), pooled(encoder[0], [f"question about {text}" for text in SOME], ["mean"]))
    assert "prompt 'question about '" in teacher.name and teacher.fingerprint != plain.fingerprint


def test_a_folder_without_modules_is_the_mean_of_128_tokens(folder: Path, encoder: tuple[Any, Path]) -> None:
    with_modules = open_teacher(folder, max_length=20)
    (folder / "modules.json").unlink()
    assert open_teacher(folder, max_length=20).fingerprint == with_modules.fingerprint
    assert read_modules(folder, 24, 512).max_length == 128


def test_fingerprint_follows_the_layers(folder: Path) -> None:
    modules(folder, POOLING, ("Dense", "2_Dense"))
    prints = set()
    for values in ({}, {"bias": False}, {"use_residual": True}, {"activation_function": "torch.nn.ReLU"}):
        dense(folder / "2_Dense", 24, 24, **values)
        prints.add(open_teacher(folder).fingerprint)
    modules(folder, POOLING, ("Dense", "2_Dense"), ("Normalize", "3_Normalize"), ("Dense", "2_Dense"))
    assert len({*prints, open_teacher(folder).fingerprint}) == 5


def test_newer_names_of_modules(folder: Path) -> None:
    old = open_teacher(folder).fingerprint
    modules(folder, POOLING, ("Dropout", "2_Dropout"), NORMALIZE, library="sentence_transformers.sentence_transformer.modules.any")
    settings(
        folder, "sentence_bert_config.json", transformer_task="feature-extraction", module_output_name="token_embeddings",
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    )  # fmt: skip
    assert open_teacher(folder).fingerprint == old


def test_what_is_not_computed_is_refused_by_name(folder: Path) -> None:
    for listed, words in [
        ([("Pooling", "../up")], "module 1 lies in '../up'"),
        ([("WordWeights", "1_X"), POOLING], "module 1 is 'sentence_transformers.models.WordWeights'"),
        ([POOLING, ("LayerNorm", "2_X")], "'sentence_transformers.models.LayerNorm', which is not supported; accepted there is Dense"),
        ([], "lists 1 modules"),
        ([POOLING, ("Dense", "none")], "has no none/config.json"),
    ]:
        modules(folder, *listed)
        assert words in refused(folder)
    modules(folder, POOLING, library="mine")
    assert "module 0 is 'mine.Transformer'" in refused(folder)
    for text in ("{", "{}", "[1]", '[{"type": 3}]', "[]", "\xff"):
        (folder / "modules.json").write_text(text, encoding="latin-1")
        assert "modules.json" in refused(folder)
    modules(folder, POOLING, ("Dense", "2_Dense"))
    for values, words in [
        ({"activation_function": "mine.Swish"}, "activation_function='mine.Swish' is not supported: accepted is one of Tanh"),
        ({"module_input_name": "token_embeddings"}, "module_input_name='token_embeddings'"),
        ({"bias": 1}, "bias=1 is not supported"),
    ]:
        dense(folder / "2_Dense", 24, 5, **values)
        assert words in refused(folder)
    dense(folder / "2_Dense", 24, 5, bias=False)
    settings(folder / "2_Dense", in_features=24, out_features=5)
    assert "linear.bias is missing" in refused(folder)
    dense(folder / "2_Dense", 12, 5)
    assert "in_features=12, but what comes before it gives 24 numbers" in refused(folder)
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in refused(folder)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode='median' is not supported: accepted is one of cls, max"),
        ("1_Pooling/config.json", {"pooling_mode_median": True}, "unknown keys: pooling_mode_median"),
        ("sentence_bert_config.json", {"max_seq_length": 2}, "max_seq_length=2"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, "max_seq_length='256'"),
        ("sentence_bert_config.json", {"max_seq_length": True}, "max_seq_length=True"),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "pooler"}}}, "modality_config="),
        ("tokenizer_config.json", {"do_lower_case": False}, "do_lower_case=False, strip_accents=False, but the tokenizer.json"),
        ("tokenizer_config.json", {"strip_accents": False}, "strip_accents=False, but the tokenizer.json"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side='left'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name='q'"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(name: str, values: dict[str, Any], words: str, folder: Path) -> None:
    (folder / name).write_text(json.dumps(values))
    error = refused(folder)
    assert words in error and name in error


def test_a_prompt_that_pooling_leaves_out_is_refused(folder: Path) -> None:
    settings(folder / "1_Pooling", pooling_mode="mean", include_prompt=False)
    assert open_teacher(folder).dim == 24
    settings(folder, "config_sentence_transformers.json", prompts={"q": "query: "}, default_prompt_name="q")
    assert "include_prompt=False" in refused(folder)


def test_a_cased_tokeniser_that_the_folder_puts_in_lower_case_is_refused(folder: Path) -> None:
    settings(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True)
    settings(folder, "sentence_bert_config.json", do_lower_case=True)
    assert open_teacher(folder).dim == 24
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["normalizer"] = None
    path.write_text(json.dumps(values))
    assert "do_lower_case=True" in refused(folder)
