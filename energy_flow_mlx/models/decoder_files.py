"""The files of a text decoder: text_decoder.json, text_decoder.safetensors, text_decoder_tokenizer.json.

The first two are Hugging Face's: T5Config's names, and the tensors of `T5ForConditionalGeneration` under `t5_model.`, T5's encoder among
them, which decoding does not need and the way back to PyTorch does.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..checks import MOST, check_int
from ..config import read_mapping
from ..files import resolve
from ..nn.bert import ACTIVATIONS
from ..nn.t5 import MOST_DISTANCE, T5Settings
from ..strict_json import write_json
from ..tensors import buildable, check_shapes, load_arrays, read_header, save_arrays
from ..text.tokeniser import Tokeniser
from .text_decoder import Carried, CubeToTextDecoder, DecoderSettings

RECORD, TENSORS, TOKENISER = "text_decoder.json", "text_decoder.safetensors", "text_decoder_tokenizer.json"
HEAD, SHARED = "t5_model.lm_head.weight", "t5_model.shared.weight"

# Our name -> torch key, tried in turn; {0} is the block's number.
_KEYS = {
    r"decoder\.token_embedding\.weight": SHARED,
    r"decoder\.head\.weight": HEAD,
    r"decoder\.norm\.weight": "t5_model.decoder.final_layer_norm.weight",
    r"decoder\.position_bias\.weight": "t5_model.decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    r"decoder\.layers\.(\d+)\.self_attn\.(\w)\w*_proj\.weight": "t5_model.decoder.block.{0}.layer.0.SelfAttention.{1}.weight",
    r"decoder\.layers\.(\d+)\.cross_attn\.(\w)\w*_proj\.weight": "t5_model.decoder.block.{0}.layer.1.EncDecAttention.{1}.weight",
    r"decoder\.layers\.(\d+)\.feed_forward\.(\w+)\.weight": "t5_model.decoder.block.{0}.layer.2.DenseReluDense.{1}.weight",
    r"decoder\.layers\.(\d+)\.self_norm\.weight": "t5_model.decoder.block.{0}.layer.0.layer_norm.weight",
    r"decoder\.layers\.(\d+)\.cross_norm\.weight": "t5_model.decoder.block.{0}.layer.1.layer_norm.weight",
    r"decoder\.layers\.(\d+)\.feed_forward_norm\.weight": "t5_model.decoder.block.{0}.layer.2.layer_norm.weight",
}
# Tensors without a use here: T5's encoder, copies of the shared embedding, and a bias that early T5 files hold and T5 does not use.
_CARRIED = (
    "t5_model.encoder.",
    "t5_model.decoder.embed_tokens.weight",
    "t5_model.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)


def torch_key(name: str) -> str:
    """The torch key of one of CubeToTextDecoder's parameters."""
    for pattern, key in _KEYS.items():
        if match := re.fullmatch(pattern, name):
            return key.format(*match.groups())
    return name  # the adapter's


def read_decoder(folder: Path) -> CubeToTextDecoder | None:
    """The decoder in a model folder, in evaluation mode; None if the folder holds none. Weights are read when they are first used.

    Raises:
        FileNotFoundError: one of text_decoder.json and text_decoder.safetensors is missing.
        ValueError: a file is damaged, or they do not fit each other; names the file, and the fields or tensors.
    """
    record_file, path, tokeniser_file = (resolve(folder, name) for name in (RECORD, TENSORS, TOKENISER))
    there = [file.is_file() for file in (record_file, path)]
    if not any(there):
        return None
    if not all(there):
        raise FileNotFoundError(f"{folder / (RECORD, TENSORS)[there.index(False)]} is missing: a text decoder has {RECORD} and {TENSORS}")
    record = read_mapping(record_file)
    shapes = read_header(path).shapes
    settings = read_settings(record_file, record, tied=HEAD not in shapes)
    layers = {name.split(".")[3] for name in shapes if name.startswith("t5_model.decoder.block.")}
    if len(layers) != settings.t5.layers:  # before they are built
        raise ValueError(f"{path} does not fit its {RECORD}: num_decoder_layers is {settings.t5.layers}, the file has {len(layers)}")
    with buildable(record_file):
        decoder = CubeToTextDecoder(settings)
    parameters = dict(tree_flatten(decoder.parameters()))
    names = {torch_key(name): name for name in parameters}
    spare = (*_CARRIED, HEAD) if decoder.settings.t5.tied else _CARRIED
    found = {names.get(key, key): shape for key, shape in shapes.items() if key in names or not key.startswith(spare)}
    check_shapes(path, found, {name: array.shape for name, array in parameters.items()}, RECORD)
    tensors, _ = load_arrays(path)
    decoder.load_weights([(name, tensors.pop(key)) for key, name in names.items()])
    decoder.carried = Carried(record, tensors)
    if tokeniser_file.is_file():
        decoder.tokeniser = Tokeniser.from_file(tokeniser_file)
        if decoder.tokeniser.vocab_size > decoder.settings.t5.vocab_size:
            raise ValueError(
                f"{tokeniser_file} does not fit the text decoder: it has {decoder.tokeniser.vocab_size} vocabulary entries, {RECORD} has "
                f"vocab_size {decoder.settings.t5.vocab_size}"
            )
    decoder.eval()
    return decoder


def read_settings(path: Path, record: Mapping[str, Any], tied: bool) -> DecoderSettings:
    """The settings in text_decoder.json.

    Args:
        path: for errors.
        tied: whether the head is the token embedding, where the record's `tie_word_embeddings` does not say so.

    Raises:
        ValueError: a field is missing or not accepted; names file and field.
    """

    def number(name: str, low: int = 1, high: int = MOST) -> int:
        try:
            return check_int(name, record.get(name), low, high)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    *gated, activation = str(record.get("feed_forward_proj")).split("-", 1)
    activation = "gelu_new" if record.get("feed_forward_proj") == "gated-gelu" else activation
    if gated not in ([], ["gated"]) or activation not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(
            f"{path}: feed_forward_proj must be one of {names}, or gated- with one of them, got {record.get('feed_forward_proj')!r}"
        )
    eps = record.get("layer_norm_epsilon")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: layer_norm_epsilon must be a number between 0 and 1, got {eps!r}")
    dropout = record.get("dropout_rate", 0.1)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ValueError(f"{path}: dropout_rate must be a number from 0 to under 1, got {dropout!r}")
    buckets = number("relative_attention_num_buckets", 2)
    t5 = T5Settings(
        vocab_size=number("vocab_size", 2),
        dim=number("d_model"),
        layers=number("num_decoder_layers"),
        heads=number("num_heads"),
        head_dim=number("d_kv"),
        feedforward_dim=number("d_ff"),
        buckets=buckets,
        max_distance=number("relative_attention_max_distance", buckets // 2 + 1, MOST_DISTANCE),
        activation=activation,
        gated=bool(gated),
        tied=bool(record.get("tie_word_embeddings", tied)),
        eps=eps,
        dropout=dropout,
    )
    ids = {name: number(name, 0) for name in ("decoder_start_token_id", "eos_token_id")}
    beyond = [name for name, id in ids.items() if id >= t5.vocab_size]
    if beyond:
        raise ValueError(f"{path}: {beyond[0]} must be under vocab_size {t5.vocab_size}, got {ids[beyond[0]]}")
    return DecoderSettings(
        surface_dim=number("surface_dim"),
        adapter_dim=number("adapter_dim"),
        prefix=number("prefix") if "prefix" in record else 1,  # the PyTorch code's, whose records do not tell it
        adapter_dropout=t5.dropout,
        t5=t5,
        start=ids["decoder_start_token_id"],
        end=ids["eos_token_id"],
    )


def record_of(settings: DecoderSettings) -> dict[str, Any]:
    """What text_decoder.json holds of these settings, for `read_settings`."""
    t5 = settings.t5
    return {
        "vocab_size": t5.vocab_size,
        "d_model": t5.dim,
        "d_kv": t5.head_dim,
        "d_ff": t5.feedforward_dim,
        "num_heads": t5.heads,
        "num_decoder_layers": t5.layers,
        "relative_attention_num_buckets": t5.buckets,
        "relative_attention_max_distance": t5.max_distance,
        "feed_forward_proj": f"gated-{t5.activation}" if t5.gated else t5.activation,
        "tie_word_embeddings": t5.tied,
        "layer_norm_epsilon": t5.eps,
        "dropout_rate": t5.dropout,
        "decoder_start_token_id": settings.start,
        "eos_token_id": settings.end,
        "surface_dim": settings.surface_dim,
        "adapter_dim": settings.adapter_dim,
        "prefix": settings.prefix,
    }


def decoder_writers(decoder: CubeToTextDecoder) -> dict[str, Callable[[Path], Any]]:
    """What writes the decoder's files, by their names, for `files.write_folder`."""
    tensors = {torch_key(name): array for name, array in dict(tree_flatten(decoder.parameters())).items()}
    tensors |= decoder.carried.tensors
    record = dict(decoder.carried.record) or record_of(decoder.settings)
    writers: dict[str, Callable[[Path], Any]] = {
        TENSORS: lambda path: save_arrays(path, tensors, {"format": "pt"}),
        RECORD: lambda path: write_json(path, record),
    }
    if decoder.tokeniser is not None:
        writers[TOKENISER] = decoder.tokeniser.save
    return writers
