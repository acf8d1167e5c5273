"""A BERT or DistilBERT encoder from a Hugging Face folder.

The weights may be those of a bare encoder or of an encoder with a head. Keys that match `_IGNORED` are skipped; any
other unknown key is an error.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlx.utils import tree_flatten

from ..checks import check_int
from ..config import read_mapping
from ..nn.bert import ACTIVATIONS, BertEncoder, BertSettings
from ..tensors import FLOATS, as_dtype, check_finite, check_shapes, listing, read_header, read_tensors

FILES = ("config.json", "model.safetensors")
DTYPES = ("float32", "float16", "bfloat16")


class Family(NamedTuple):
    """The names that one model family uses for its settings and its tensors.

    settings: field of `BertSettings` -> key in config.json.
    layer: prefix of a layer's tensors, in front of the layer's number.
    parts: module of a layer in the file -> module in `BertEncoder`.
    """

    settings: dict[str, str]
    layer: str
    parts: dict[str, str]


_EMBEDDINGS = {
    "embeddings.word_embeddings": "token_embedding",
    "embeddings.position_embeddings": "positional_encoding",
    "embeddings.token_type_embeddings": "type_embedding",
    "embeddings.LayerNorm": "norm",
}
FAMILIES = {
    "bert": Family(
        settings={
            "vocab_size": "vocab_size",
            "positions": "max_position_embeddings",
            "types": "type_vocab_size",
            "layers": "num_hidden_layers",
            "dim": "hidden_size",
            "heads": "num_attention_heads",
            "feedforward_dim": "intermediate_size",
            "eps": "layer_norm_eps",
            "activation": "hidden_act",
        },
        layer="encoder.layer",
        parts={
            "attention.self.query": "self_attn.query_proj",
            "attention.self.key": "self_attn.key_proj",
            "attention.self.value": "self_attn.value_proj",
            "attention.output.dense": "self_attn.out_proj",
            "attention.output.LayerNorm": "norm1",
            "intermediate.dense": "linear1",
            "output.dense": "linear2",
            "output.LayerNorm": "norm2",
        },
    ),
    "distilbert": Family(
        settings={
            "vocab_size": "vocab_size",
            "positions": "max_position_embeddings",
            "layers": "n_layers",
            "dim": "dim",
            "heads": "n_heads",
            "feedforward_dim": "hidden_dim",
            "activation": "activation",
        },
        layer="transformer.layer",
        parts={
            "attention.q_lin": "self_attn.query_proj",
            "attention.k_lin": "self_attn.key_proj",
            "attention.v_lin": "self_attn.value_proj",
            "attention.out_lin": "self_attn.out_proj",
            "sa_layer_norm": "norm1",
            "ffn.lin1": "linear1",
            "ffn.lin2": "linear2",
            "output_layer_norm": "norm2",
        },
    ),
}
# Buffers, BERT's pooler, and heads for masked language modelling, next sentence prediction, classification and question
# answering.
_IGNORED = re.compile(
    r"embeddings\.(position_ids|token_type_ids)|(pooler\.dense|cls\.predictions|cls\.seq_relationship|vocab_transform|"
    r"vocab_layer_norm|vocab_projector|pre_classifier|classifier|qa_outputs)\..+"
)
_OLD_ENDINGS = {"gamma": "weight", "beta": "bias"}  # LayerNorm parameters in files written before 2020
# With any other value the same keys belong to a different computation.
_REQUIRED_SETTINGS = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class LoadedEncoder(NamedTuple):
    """`encoder` is in evaluation mode; `kind` is bert or distilbert; `digest` is a hash of settings and weights."""

    encoder: BertEncoder
    settings: BertSettings
    kind: str
    digest: str


def load_encoder(folder: Path, dtype: str) -> LoadedEncoder:
    """Load the encoder in `folder`.

    Args:
        folder: holds config.json and model.safetensors.
        dtype: of weights and matrix products: float32, float16 or bfloat16.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or of another model type, the two do not match, weights are not finite, or the
            dtype is unknown. The message names the file and the value.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not accepted: it takes {', '.join(DTYPES)}")
    config, weights = (folder / name for name in FILES)
    values = read_mapping(config)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{config}: model_type={kind!r} is not supported: accepted are {', '.join(FAMILIES)}")
    settings = read_settings(config, values, FAMILIES[kind])
    header = read_header(weights)
    shapes = header.shapes
    names = rename(weights, shapes, kind)
    integers = [key for key in names if header.dtypes[key] not in FLOATS]
    if integers:
        raise ValueError(f"{weights}: weights must be {', '.join(FLOATS)}; of another dtype are {listing(integers)}")
    _check_sizes(weights, {ours: shapes[theirs] for theirs, ours in names.items()}, settings)
    encoder = BertEncoder(settings)  # MLX is lazy: the initial weights are never allocated
    expected = {name: array.shape for name, array in dict(tree_flatten(encoder.parameters())).items()}
    check_shapes(weights, {ours: shapes[theirs] for theirs, ours in names.items()}, expected)
    stored = read_tensors(weights, names)
    tensors = {ours: stored[theirs] for theirs, ours in names.items()}
    check_finite(str(weights), tensors)
    encoder.load_weights(list(as_dtype(tensors, dtype).items()))
    encoder.eval()
    return LoadedEncoder(encoder, settings, kind, _digest(settings, tensors))


def read_settings(path: Path, values: Mapping[str, Any], family: Family) -> BertSettings:
    """The encoder's settings, from the contents `values` of the config.json at `path`.

    Raises:
        ValueError: a key is missing or its value is not accepted. Names the file, the key and the accepted values.
    """
    for key, accepted in _REQUIRED_SETTINGS.items():
        if values.get(key, accepted) != accepted:
            raise ValueError(f"{path}: {key}={values[key]!r} is not supported: accepted is {accepted!r}")
    found: dict[str, Any] = {"types": 0}
    for ours, key in family.settings.items():
        if ours == "eps":
            found[ours] = values.get(key, BertSettings.eps)
        elif ours == "activation":
            found[ours] = values.get(key, BertSettings.activation)
        elif key not in values:
            raise ValueError(f"{path}: {key} is missing")
        else:
            try:
                found[ours] = check_int(key, values[key], 1)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
    settings = BertSettings(**found)
    if isinstance(settings.eps, bool) or not isinstance(settings.eps, int | float) or not 0 < settings.eps < math.inf:
        raise ValueError(
            f"{path}: {family.settings['eps']}={settings.eps!r} is not accepted: it takes a number above 0"
        )
    if not isinstance(settings.activation, str) or settings.activation not in ACTIVATIONS:
        raise ValueError(
            f"{path}: {family.settings['activation']}={settings.activation!r} is not supported: it takes {', '.join(ACTIVATIONS)}"
        )
    if settings.dim % settings.heads:
        raise ValueError(
            f"{path}: {family.settings['heads']}={settings.heads} must divide {family.settings['dim']}={settings.dim}"
        )
    return settings


def rename(path: Path, keys: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Map the keys of the file at `path` to parameter names of `BertEncoder`, skipping those that match `_IGNORED`.

    Raises:
        ValueError: a key is unknown, or two keys map to the same parameter; the message lists them.
    """
    family = FAMILIES[kind]
    names: dict[str, str] = {}
    unknown = []
    for key in keys:
        bare = key.removeprefix(f"{kind}.")
        if _IGNORED.fullmatch(bare):
            continue
        if name := _parameter(bare, family):
            names[key] = name
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{path}: unknown keys for model_type={kind}: {listing(unknown)}")
    if len(set(names.values())) < len(names):
        duplicates = [key for key, name in names.items() if list(names.values()).count(name) > 1]
        raise ValueError(f"{path}: several keys name the same parameter: {listing(duplicates)}")
    return names


def _parameter(key: str, family: Family) -> str | None:
    module, _, ending = key.rpartition(".")
    if ending in _OLD_ENDINGS and module.endswith(("LayerNorm", "layer_norm")):
        ending = _OLD_ENDINGS[ending]
    if ending not in ("weight", "bias"):
        return None
    if module in _EMBEDDINGS:
        return f"{_EMBEDDINGS[module]}.{ending}"
    if match := re.fullmatch(rf"{re.escape(family.layer)}\.(0|[1-9][0-9]*)\.(.+)", module, re.ASCII):
        number, part = match.groups()
        if part in family.parts:
            return f"transformer_encoder.layers.{number}.{family.parts[part]}.{ending}"
    return None


def _check_sizes(path: Path, shapes: Mapping[str, tuple[int, ...]], settings: BertSettings) -> None:
    """Check the sizes in config.json against the tensor shapes before the encoder is built."""
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer_encoder.")}

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == 2 else None

    in_file = {
        "vocab_size": size("token_embedding.weight", 0),
        "dim": size("token_embedding.weight", 1),
        "positions": size("positional_encoding.weight", 0),
        "types": size("type_embedding.weight", 0) or 0,
        "feedforward_dim": size("transformer_encoder.layers.0.linear1.weight", 0),
        "layers": len(layers),
    }
    wrong = [
        f"{name} is {getattr(settings, name)} in config.json and {'missing' if found is None else found} in the file"
        for name, found in in_file.items()
        if found != getattr(settings, name)
    ]
    if wrong:
        raise ValueError(f"{path} does not fit its config.json: {'; '.join(wrong)}")


def _digest(settings: BertSettings, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
