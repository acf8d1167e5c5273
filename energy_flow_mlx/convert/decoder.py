"""The text decoder: its tensors are copied unchanged, and its T5 configuration is recovered from their shapes and its tokeniser."""

import re
from collections.abc import Mapping
from typing import Any

from ..tensors import listing
from ..text.tokeniser import Tokeniser

PREFIX = "text_decoder."
_SHARED = "t5_model.shared.weight"
_ENDS, _PADS = ("</s>", "[SEP]", "<eos>"), ("<pad>", "[PAD]")  # T5's own first
_BIAS = "t5_model.{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def recover_t5_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Recover Hugging Face's T5 configuration from the shapes of a decoder's tensors.

    Args:
        shapes: by key, `surface_adapter.*` and `t5_model.*`.

    Returns:
        The configuration under T5Config's names. Values that shapes do not determine (token ids, the maximum distance
        of the relative position buckets, the activation of an ungated feed-forward) are those of t5-small; `assumed`
        lists their names.

    Raises:
        ValueError: a key belongs neither to the adapter nor to T5, or a needed tensor is missing; names it.
    """
    unknown = [key for key in shapes if not key.startswith(("surface_adapter.", "t5_model."))]
    if unknown:
        raise ValueError(f"text decoder: unknown keys {listing(unknown)}")
    gated = "t5_model.decoder.block.0.layer.2.DenseReluDense.wi_0.weight"
    feedforward = gated if gated in shapes else "t5_model.decoder.block.0.layer.2.DenseReluDense.wi.weight"
    query = "t5_model.decoder.block.0.layer.0.SelfAttention.q.weight"
    needed = (
        _SHARED,
        query,
        feedforward,
        _BIAS.format("decoder"),
        "surface_adapter.0.weight",
        "surface_adapter.4.weight",
    )
    missing = [key for key in needed if len(shapes.get(key, ())) != 2]
    if missing:
        raise ValueError(f"text decoder: {', '.join(missing)} missing or not a matrix; the T5 configuration needs them")
    vocabulary, dim = shapes[_SHARED]
    buckets, heads = shapes[_BIAS.format("decoder")]
    inner = shapes[query][0]
    if inner % heads or shapes["surface_adapter.4.weight"][0] != dim:
        raise ValueError(
            f"text decoder: {heads} heads, attention size {inner}, adapter output {shapes['surface_adapter.4.weight'][0]} and "
            f"d_model {dim} do not fit each other"
        )
    assumed = {
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1,
        "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu" if feedforward == gated else "relu",
    }  # fmt: skip
    return {
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": dim,
        "d_kv": inner // heads,
        "d_ff": shapes[feedforward][0],
        "num_heads": heads,
        "num_layers": _blocks(shapes, "encoder"),
        "num_decoder_layers": _blocks(shapes, "decoder"),
        "relative_attention_num_buckets": buckets,
        "surface_dim": shapes["surface_adapter.0.weight"][1],
        "adapter_dim": shapes["surface_adapter.0.weight"][0],
        **assumed,
        "assumed": sorted(assumed),
    }


def with_tokeniser(t5: Mapping[str, Any], tokeniser: Tokeniser, source: object) -> dict[str, Any]:
    """The configuration with the token ids of a tokeniser in place of assumed ones; texts start with the padding token.

    Raises:
        ValueError: the tokeniser has more entries than the decoder, or no end token; names `source`, where it is from.
    """
    if tokeniser.vocab_size > t5["vocab_size"]:
        raise ValueError(f"{source}: {tokeniser.vocab_size} entries, the text decoder's embedding has {t5['vocab_size']} rows")
    end, pad = tokeniser.token_id(*_ENDS), tokeniser.token_id(*_PADS)
    if end is None or pad is None:
        raise ValueError(f"{source}: has no end token ({', '.join(_ENDS)}) or no padding token ({', '.join(_PADS)})")
    ids = {"eos_token_id": end, "pad_token_id": pad, "decoder_start_token_id": pad}
    return {**t5, **ids, "assumed": [name for name in t5["assumed"] if name not in ids]}


def _blocks(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    found = {int(match[1]) for key in shapes if (match := re.match(rf"t5_model\.{stack}\.block\.(\d+)\.", key))}
    if found != set(range(len(found))):
        raise ValueError(f"text decoder: the {stack}'s blocks are {sorted(found)}, one is missing")
    return len(found)
