"""transformers' T5 beside ours, with the same random weights."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from energy_flow_mlx.models.decoder_files import read_settings, torch_key
from energy_flow_mlx.nn.t5 import T5Decoder

# The models are tiny, and tests run side by side: more threads would only wait for each other.
torch.set_num_threads(1)

# Kinds of T5: the original, T5 1.1, and sizes that are no multiples of each other.
KINDS: dict[str, dict[str, Any]] = {
    "relu, tied": {"feed_forward_proj": "relu"},
    "gated, untied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_heads": 3},
    "odd": {"feed_forward_proj": "gelu", "d_model": 9, "d_kv": 5, "num_layers": 3, "num_decoder_layers": 3, "relative_attention_num_buckets": 7,
            "relative_attention_max_distance": 12},
}  # fmt: skip
SIZES = {
    "vocab_size": 23, "d_model": 16, "d_kv": 4, "d_ff": 20, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "layer_norm_epsilon": 1e-6,
    "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def torch_t5(seed: int = 0, **changes: Any) -> T5ForConditionalGeneration:
    """A random T5 in evaluation mode, whose texts vary and end."""
    torch.manual_seed(seed)
    config = T5Config(**SIZES | changes)
    model = T5ForConditionalGeneration(config).eval()
    if changes.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:  # ones, which hide a weight that is left out
                weight.mul_(1 + 0.3 * torch.randn_like(weight))
            elif "Attention" in name or "DenseReluDense" in name:  # else a tied head repeats the last token for ever
                weight.mul_(3.0)
    return model


def record_of(model: T5ForConditionalGeneration, surface_dim: int = 12) -> dict[str, Any]:
    """What text_decoder.json holds for a model."""
    values = {name: getattr(model.config, name) for name in (*SIZES, "feed_forward_proj")}
    tied = model.lm_head.weight is model.shared.weight
    return {**values, "tie_word_embeddings": tied, "surface_dim": surface_dim, "adapter_dim": surface_dim // 2}


def ours(model: T5ForConditionalGeneration) -> T5Decoder:
    """Our decoder with the weights of torch's, in evaluation mode."""
    settings = read_settings(Path("text_decoder.json"), record_of(model), tied=True)
    decoder = T5Decoder(settings.t5)
    state = model.state_dict()
    keys = {name: torch_key(f"decoder.{name}").removeprefix("t5_model.") for name, _ in tree_flatten(decoder.parameters())}
    decoder.load_weights([(name, mx.array(state[key].numpy())) for name, key in keys.items()])
    decoder.eval()
    return decoder


def prefixes(batch: int, vectors: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, vectors, dim)).astype(np.float32)


def torch_generate(model: T5ForConditionalGeneration, prefix: np.ndarray, **options: Any) -> list[list[int]]:
    """transformers' `generate`: the tokens without the start token, up to the first end token."""
    with torch.no_grad():
        found = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=torch.tensor(prefix)),
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
            do_sample=False,
            **options,
        )
    end = model.config.eos_token_id
    rows = [row[1:] for row in found.tolist()]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]
