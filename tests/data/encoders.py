"""Random BERT and DistilBERT models of transformers, saved as Hugging Face folders, and a tokeniser for them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.numpy import load_file, save_file

from energy_flow_mlx.data import Tokeniser, generate_pairs

TEXTS = [text for pair in generate_pairs(60, 3) for text in pair]
BERT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
DISTILBERT = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 40}
CONFIGS = {"bert": transformers.BertConfig, "distilbert": transformers.DistilBertConfig}
SIZES: dict[str, dict[str, Any]] = {"bert": BERT, "distilbert": DISTILBERT}


def tokeniser(vocab_size: int = 150) -> Tokeniser:
    return Tokeniser.train(TEXTS, vocab_size)


def random_model(kind: str, seed: int = 0, head: str = "Model", **changes: Any) -> transformers.PreTrainedModel:
    """In evaluation mode. Weights are far from their usual start, so that no term is small enough to be missed."""
    torch.manual_seed(seed)
    config = CONFIGS[kind](**{"vocab_size": 150, **SIZES[kind], **changes})
    model = getattr(transformers, {"bert": "Bert", "distilbert": "DistilBert"}[kind] + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.25)
    return model


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """A folder as the hub has them: config.json, model.safetensors, tokenizer.json."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokeniser().save(folder / "tokenizer.json")
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Any) -> None:
    """`change(tensors)` edits the dictionary of arrays."""
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)
