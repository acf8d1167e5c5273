"""What a folder of sentence-transformers asks for around its encoder: pooling, layers after it, length, and prompt.

`modules.json` lists the modules, each with a folder of its own. What is not computed here as that library computes it is
refused by name.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..checks import check_int
from ..config import read_mapping
from ..nn.pooling import POOLINGS
from ..strict_json import parse_json
from ..tensors import as_dtype, check_finite, check_shapes, read_header, read_tensors

MODULES, PROMPTS, TOKENISER_SETTINGS = "modules.json", "config_sentence_transformers.json", "tokenizer_config.json"
_ENCODER_SETTINGS = ("sentence_bert_config.json", "sentence_distilbert_config.json")  # the first that exists
# A folder that lacks one of these is read without it.
OPTIONAL = (MODULES, *_ENCODER_SETTINGS, TOKENISER_SETTINGS, PROMPTS)
_SHORTEST = 3  # [CLS], one token, [SEP]
PLAIN_LENGTH = 128

# Older folders have a flag for each pooling.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "Tanh": mx.tanh, "Identity": lambda x: x, "ReLU": nn.relu, "GELU": nn.gelu, "Sigmoid": mx.sigmoid, "SiLU": nn.silu,
}  # fmt: skip
# Their tokenizer.json is used as it is; the tokenisers of BERT normalise as tokenizer_config.json says.
_PLAIN_TOKENISERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


class Dense(nn.Module):
    """A linear layer and an activation, with the input added if `residual`: [B, inputs] -> [B, outputs]."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, activation: str, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = _ACTIVATIONS[activation]
        self.adds_input = residual
        if residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        out = self.activation(self.linear(x))
        if self.adds_input:
            out = out + (self.residual(x) if "residual" in self else x)
        return out


def unit(x: mx.array) -> mx.array:
    """Rows [B, E] scaled to length 1; a row of zeros stays one."""
    return x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Modules(NamedTuple):
    """What surrounds an encoder.

    pooling: keys of `POOLINGS`, whose results are joined.
    layers: what follows, [B, E] -> [B, E'] each; a Normalize at the end is left out.
    dim: E of the result.
    max_length: tokens after which a text is truncated.
    prompt: stands before each text.
    digest: a hash of the layers; "" without any.
    """

    pooling: tuple[str, ...]
    layers: tuple[Callable[[mx.array], mx.array], ...]
    dim: int
    max_length: int
    prompt: str = ""
    digest: str = ""

    @property
    def description(self) -> str:
        """The pooling, the layers' names and the prompt in words."""
        words = ["+".join(self.pooling)]
        words += [
            f"Dense {layer.linear.weight.shape[0]}" if isinstance(layer, Dense) else "Normalize" for layer in self.layers
        ]
        return " + ".join(words) + (f", prompt {self.prompt!r}" if self.prompt else "")


def parse_pooling(text: str) -> tuple[str, ...]:
    """The names in "mean" or "cls+max".

    Raises:
        ValueError: a name is unknown.
    """
    modes = tuple(text.split("+"))
    if not all(mode in POOLINGS for mode in modes):
        raise ValueError(f"pooling={text!r} is not accepted: it takes {', '.join(POOLINGS)}, or several joined by +")
    return modes


def module_files(folder: Path) -> list[str]:
    """The files that the modules in `folder` need besides the encoder's; none without a modules.json.

    Raises:
        ValueError: modules.json is damaged or asks for something else than an encoder, a pooling, Dense and Normalize.
    """
    return [name for kind, path in _listed(folder) for name in _FILES_OF.get(kind, lambda _: [])(path)]


_FILES_OF: dict[str, Callable[[str], list[str]]] = {
    "Pooling": lambda path: [f"{path}/config.json"],
    "Dense": lambda path: [f"{path}/config.json", f"{path}/model.safetensors"],
}


def read_modules(
    folder: Path, dim: int, positions: int, *, pooling: tuple[str, ...] | None = None, max_length: int | None = None
) -> Modules:
    """What surrounds the encoder in `folder`; the mean and 128 tokens where it has no modules.json.

    Args:
        dim, positions: hidden size and most tokens of the encoder.
        pooling, max_length: used instead of the folder's.

    Raises:
        ValueError: a file is damaged, or asks for what is not supported; names the file, the key and what is accepted.
    """
    modules = _listed(folder)
    if not modules:
        pooling = pooling or ("mean",)
        return Modules(pooling, (), len(pooling) * dim, min(PLAIN_LENGTH, positions) if max_length is None else max_length)
    _check_normalisation(folder)
    encoder = _encoder_settings(folder, positions)
    prompt = _prompt(folder)
    path = folder / modules[1][1] / "config.json"
    found = _pooling(path, prompt)
    pooling = pooling or found
    layers: list[Callable[[mx.array], mx.array]] = []
    digest = hashlib.blake2b(digest_size=16)
    size = len(pooling) * dim
    for kind, place in modules[2:]:
        if kind == "Normalize":
            _sentence_only(folder / place / "config.json")
            layers.append(unit)
            digest.update(b"Normalize")
        elif kind == "Dense":
            layer = _dense(folder / place, size, digest)
            layers.append(layer)
            size = layer.linear.weight.shape[0]
    while layers and layers[-1] is unit:
        layers.pop()
    return Modules(
        pooling, tuple(layers), size, encoder if max_length is None else max_length, prompt,
        digest.hexdigest() if layers else "",
    )  # fmt: skip


def _listed(folder: Path) -> list[tuple[str, str]]:
    """Kind and path of each module, from modules.json: Transformer, Pooling, then Dense, Normalize and Dropout."""
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        entries = parse_json(path.read_bytes())
        listed = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: is not a list of modules with a type and a path: {error!r}") from error
    modules = []
    for number, (kind, place) in enumerate(listed):
        accepted = ("Transformer", "Pooling")[number : number + 1] or ("Dense", "Normalize", "Dropout")
        library, _, name = kind.rpartition(".")
        if library.partition(".")[0] != "sentence_transformers" or name not in accepted:
            raise ValueError(
                f"{path}: module {number} is {kind!r}, which is not supported; accepted there is {' or '.join(accepted)} "
                "of sentence_transformers"
            )
        if name == "Transformer" and place not in ("", "."):
            raise ValueError(
                f"{path}: its encoder lies in {place!r}; accepted is one in the folder itself. "
                "With sentence-transformers installed, run: SentenceTransformer(FOLDER).save(NEW)"
            )
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise ValueError(f"{path}: module {number} lies in {place!r}; accepted are folders within this one")
        modules.append((name, place))
    if len(modules) < 2:
        raise ValueError(f"{path}: lists {len(modules)} modules; accepted are a Transformer, a Pooling, and what follows them")
    return modules


def _optional(path: Path) -> dict[str, Any]:
    return read_mapping(path) if path.is_file() else {}


def _refuse(path: Path, key: str, value: Any, accepted: str) -> ValueError:
    return ValueError(f"{path}: {key}={value!r} is not supported: accepted is {accepted}")


def _pooling(path: Path, prompt: str) -> tuple[str, ...]:
    values = read_mapping(path)
    known = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_POOLING_FLAGS}
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"{path}: unknown keys: {', '.join(unknown)}")
    modes: Any = values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if values.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) and mode in POOLINGS for mode in modes):
        raise _refuse(path, "pooling_mode", values["pooling_mode"], f"one of {', '.join(POOLINGS)}, or a list of these")
    if prompt and not values.get("include_prompt", True):
        raise _refuse(path, "include_prompt", False, f"True where {PROMPTS} has a default prompt")
    return tuple(modes)


def _sentence_only(path: Path) -> dict[str, Any]:
    """The settings of a module, which must read and write the sentence's embedding."""
    values = _optional(path)
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise _refuse(path, key, values[key], "'sentence_embedding'")
    return values


def _dense(folder: Path, size: int, digest: "hashlib.blake2b") -> Dense:
    """The layer in `folder`, for inputs of `size` numbers; `digest` takes its settings and weights."""
    path, weights = folder / "config.json", folder / "model.safetensors"
    values = _sentence_only(path)
    try:
        inputs, outputs = (check_int(key, values.get(key), 1) for key in ("in_features", "out_features"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if inputs != size:
        raise ValueError(f"{path}: in_features={inputs}, but what comes before it gives {size} numbers")
    switches = {}
    for key, default in (("bias", True), ("use_residual", False)):
        switches[key] = values.get(key, default)
        if not isinstance(switches[key], bool):
            raise _refuse(path, key, switches[key], "true or false")
    function = values.get("activation_function", "torch.nn.modules.activation.Tanh")
    module, _, activation = str(function).rpartition(".")
    if not f"{module}.".startswith("torch.nn.") or activation not in _ACTIVATIONS:
        raise _refuse(path, "activation_function", function, f"one of {', '.join(_ACTIVATIONS)} of torch.nn")
    layer = Dense(inputs, outputs, bias=switches["bias"], activation=activation, residual=switches["use_residual"])
    expected = {name: array.shape for name, array in dict(tree_flatten(layer.parameters())).items()}
    check_shapes(weights, read_header(weights).shapes, expected)
    tensors = read_tensors(weights)
    check_finite(str(weights), tensors)
    layer.load_weights(list(as_dtype(tensors, "float32").items()))
    digest.update(repr((inputs, outputs, switches, activation)).encode())
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return layer


def _encoder_settings(folder: Path, positions: int) -> int:
    """The most tokens of a text: the encoder's settings, else the tokeniser's, and no more than there are positions."""
    path = next((folder / name for name in _ENCODER_SETTINGS if (folder / name).is_file()), folder / _ENCODER_SETTINGS[0])
    values = _optional(path)
    for key, accepted in (("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")):
        if values.get(key, accepted) != accepted:
            raise _refuse(path, key, values[key], repr(accepted))
    reads = values.get("modality_config", {"text": {"method": "forward", "method_output_name": "last_hidden_state"}})
    if not isinstance(reads, dict) or reads.get("text") != {"method": "forward", "method_output_name": "last_hidden_state"}:
        raise _refuse(path, "modality_config", reads, "text by forward, to last_hidden_state")
    if values.get("do_lower_case") and not _lower_cases(_normaliser(folder)):
        raise _refuse(path, "do_lower_case", True, "false, or a tokenizer.json that puts text in lower case")
    for key in ("max_seq_length", "model_max_length"):
        if key == "model_max_length":
            path = folder / TOKENISER_SETTINGS
            values = _optional(path)
        length = values.get(key)
        if length is None:
            continue
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= _SHORTEST:
            raise _refuse(path, key, length, f"a number of {_SHORTEST} or more")
        return int(min(length, positions))
    return positions


def _prompt(folder: Path) -> str:
    """The text that the folder puts before every text unless it is told otherwise."""
    path = folder / PROMPTS
    values = _optional(path)
    name, prompts = values.get("default_prompt_name"), values.get("prompts", {})
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise _refuse(path, "default_prompt_name", name, "a key of its prompts, whose value is a text")
    return prompt


def _normaliser(folder: Path) -> dict[str, Any]:
    normaliser = read_mapping(folder / "tokenizer.json").get("normalizer")
    return normaliser if isinstance(normaliser, dict) else {}


def _lower_cases(normaliser: dict[str, Any]) -> bool:
    parts = normaliser.get("normalizers", [normaliser])
    return any(part.get("type") == "Lowercase" or part.get("lowercase") for part in parts)


def _check_normalisation(folder: Path) -> None:
    """Refuse a tokenizer_config.json that overrides what the tokenizer.json beside it does."""
    path = folder / TOKENISER_SETTINGS
    values = _optional(path)
    for key in ("padding_side", "truncation_side"):
        if values.get(key, "right") != "right":
            raise _refuse(path, key, values[key], "'right'")
    if values.get("tokenizer_class") in _PLAIN_TOKENISERS:
        return
    normaliser = _normaliser(folder)
    lower = values.get("do_lower_case", True)
    asked = {
        "do_lower_case": lower,
        # Without a value of its own, accents go with lower case.
        "strip_accents": lower if values.get("strip_accents") is None else values["strip_accents"],
        "tokenize_chinese_chars": values.get("tokenize_chinese_chars", True),
    }
    stripped = normaliser.get("strip_accents")
    does = {
        "do_lower_case": normaliser.get("lowercase", False),
        "strip_accents": normaliser.get("lowercase", False) if stripped is None else stripped,
        "tokenize_chinese_chars": normaliser.get("handle_chinese_chars", False),
    }
    if different := [f"{key}={asked[key]!r}" for key in asked if asked[key] != does[key]]:
        raise ValueError(
            f"{path}: {', '.join(different)}, but the tokenizer.json beside it does otherwise ({normaliser or 'no normalizer'}). "
            "With transformers installed, run: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
