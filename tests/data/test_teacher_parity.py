"""The encoders agree with transformers' modules: hidden states, gradients, pooled embeddings."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from data.encoders import TEXTS, random_model, save, tokeniser
from mlx.utils import tree_flatten
from models.parity import assert_close

from energy_flow_mlx import TransformerEncoder
from energy_flow_mlx.data import EncoderTeacher, open_teacher
from energy_flow_mlx.data.bert_folder import load_encoder, rename

LENGTHS = np.array([9, 1, 4, 7])
MASK = (np.arange(LENGTHS.max()) < LENGTHS[:, None]).astype(np.int32)
IDS = np.random.default_rng(0).integers(0, 150, MASK.shape).astype(np.int32)
TYPES = np.random.default_rng(1).integers(0, 2, MASK.shape).astype(np.int32)
# Rows of padding mean nothing; torch's fused attention may give them another nothing.
REAL = MASK[..., None]

CASES = [
    pytest.param(kind, changes, id="-".join([kind, *changes]))
    for kind, all_changes in {
        "bert": [
            {},
            {"num_attention_heads": 1, "num_hidden_layers": 1, "hidden_size": 6, "intermediate_size": 5},
            {"hidden_act": "gelu_new", "num_hidden_layers": 3},
            {"hidden_act": "relu", "layer_norm_eps": 1e-2, "type_vocab_size": 3},
        ],
        "distilbert": [
            {},
            {"dim": 10, "n_heads": 5, "n_layers": 1, "hidden_dim": 7},
            {"activation": "relu", "n_layers": 3, "max_position_embeddings": 9},
        ],
    }.items()
    for changes in all_changes
]


def hidden_states(model: Any, **types: torch.Tensor) -> torch.Tensor:
    return model(torch.tensor(IDS), attention_mask=torch.tensor(MASK), **types).last_hidden_state


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_hidden_states_and_gradients(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(kind, **changes)
    loaded = load_encoder(save(model, tmp_path), "float32")
    assert isinstance(loaded.encoder.transformer_encoder, TransformerEncoder)
    theirs = hidden_states(model)
    direction = np.random.default_rng(2).standard_normal(theirs.shape).astype(np.float32) * REAL
    assert_close(
        "hidden states", np.array(loaded.encoder(mx.array(IDS), mx.array(MASK))) * REAL, theirs.detach().numpy() * REAL
    )

    (theirs * torch.tensor(direction)).sum().backward()
    _, gradients = nn.value_and_grad(
        loaded.encoder, lambda: mx.sum(loaded.encoder(mx.array(IDS), mx.array(MASK)) * mx.array(direction))
    )()
    ours = dict(tree_flatten(gradients))
    parameters = dict(model.named_parameters())
    names = rename(tmp_path, parameters, kind)
    assert sorted(names.values()) == sorted(ours)
    for theirs_name, name in names.items():
        assert_close(name, ours[name], parameters[theirs_name].grad.numpy())


def test_token_types(tmp_path: Path) -> None:
    model = random_model("bert")
    encoder = load_encoder(save(model, tmp_path / "bert"), "float32").encoder
    theirs = hidden_states(model, token_type_ids=torch.tensor(TYPES)).detach().numpy()
    assert_close(
        "hidden states", np.array(encoder(mx.array(IDS), mx.array(MASK), mx.array(TYPES))) * REAL, theirs * REAL
    )
    without = load_encoder(save(random_model("distilbert"), tmp_path / "distilbert"), "float32").encoder
    with pytest.raises(ValueError, match="this encoder has no token types"):
        without(mx.array(IDS), mx.array(MASK), mx.array(TYPES))


def torch_embeddings(model: Any, texts: list[str], pooling: str, max_length: int) -> np.ndarray:
    """One text at a time, without padding."""
    rows = []
    for text in texts:
        batch = tokeniser().encode([text], max_length)
        ids = torch.tensor(batch.input_ids[:, : batch.attention_mask.sum()])
        hidden = model(ids).last_hidden_state[0].detach()
        rows.append((hidden[0] if pooling == "cls" else hidden.mean(0)).numpy())
    return np.array(rows)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_embeddings(kind: str, pooling: str, normalise: bool, tmp_path: Path) -> None:
    model = random_model(kind, seed=4)
    teacher = open_teacher(str(save(model, tmp_path)), pooling=pooling, normalise=normalise, max_length=20)
    # Lengths from one token to more than are kept, repeated and empty texts, and more than one batch.
    texts = [*TEXTS, "a", "", "empty", " ".join(TEXTS[:5]), TEXTS[0]]
    expected = torch_embeddings(model, [text or "empty" for text in texts], pooling, 20)
    if normalise:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embeddings = teacher.embed(texts)
    assert embeddings.dtype == np.float32 and teacher.dim == 24
    assert_close("embeddings", embeddings, expected)
    assert np.ptp(expected, axis=0).max() > 0.01, "texts of one embedding would test nothing"


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.01), ("bfloat16", 0.08)])
def test_low_precision(kind: str, dtype: str, bound: float, tmp_path: Path) -> None:
    """Unit embeddings differ from float32's by less than 0.01 (float16) and 0.08 (bfloat16) in length."""
    save(random_model(kind), tmp_path)
    exact = open_teacher(str(tmp_path), max_length=40).embed(TEXTS)
    low = open_teacher(str(tmp_path), max_length=40, dtype=dtype)
    embeddings = low.embed(TEXTS)
    assert isinstance(low, EncoderTeacher) and embeddings.dtype == np.float32 and dtype in low.name
    error = np.linalg.norm(embeddings - exact, axis=1).max()
    assert 0 < error < bound, error


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("bert", "ForPreTraining"),
        ("bert", "ForMaskedLM"),
        ("bert", "ForSequenceClassification"),
        ("bert", "ForQuestionAnswering"),
        ("distilbert", "ForMaskedLM"),
        ("distilbert", "ForSequenceClassification"),
        ("distilbert", "ForQuestionAnswering"),
    ],
)
def test_heads_are_left_aside(kind: str, head: str, tmp_path: Path) -> None:
    model = random_model(kind, head=head)
    encoder = load_encoder(save(model, tmp_path), "float32").encoder
    inner = hidden_states(getattr(model, kind)).detach().numpy()
    assert_close("hidden states", np.array(encoder(mx.array(IDS), mx.array(MASK))) * REAL, inner * REAL)
