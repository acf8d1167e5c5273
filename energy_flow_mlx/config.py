"""The one configuration: model, schedule, training and data, validated on construction.

Command-line flags, YAML and JSON files, `config.json` and the checks all come from the fields of
`EnergyConfig`. A field that exists in the PyTorch implementation keeps its name there.
"""

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from .files import write_aside


class ConfigError(ValueError):
    """A configuration value that is unknown, of the wrong type or out of range; the text names field, value and what is accepted."""


def _field(
    default: Any,
    help: str,
    *,
    group: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its help text and the values it accepts: low <= v <= high, v > above, or one of choices."""
    metadata = {"help": help, "group": group, "low": low, "high": high, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


LATTICE, FLOW, MODULES = "lattice", "life of a flow", "modules"
TRAINING, LOSS, DATA = "training", "loss", "data"


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """Everything that defines a model and a run. The defaults suit an 8x8x8 lattice; see the presets.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or two fields contradict each other.
    """

    # The lattice
    lattice_width: int = _field(8, "cells along x, W", group=LATTICE, low=2)
    lattice_height: int = _field(8, "cells along y, H", group=LATTICE, low=2)
    lattice_depth: int = _field(
        8, "D: planes 0..D along z; flows start on D//2 and move for D//2 steps", group=LATTICE, low=2
    )
    collection: str = _field(
        "nearest",
        "how an arrived flow reaches the surface: its nearest cell, or spread over the four around it (gives x and y a gradient)",
        group=LATTICE,
        choices=("nearest", "bilinear"),
    )

    # The life of a flow
    boundary_reflection_enabled: bool = _field(
        True, "reflect flows at the side walls; off: clamp them there", group=FLOW
    )
    project_unfinished: bool = _field(
        True, "project flows that have not arrived to the nearest output plane; off: drop them", group=FLOW
    )
    movement_based_spawn: bool = _field(False, "a flow that moves far leaves children behind", group=FLOW)
    spawn_movement_threshold_ratio: float = _field(
        0.3, "t: a move of length m leaves floor(m/t) - 1 children (positions span [-1, 1])", group=FLOW, above=0
    )
    max_spawn_per_step: int = _field(1, "children one flow may leave in one step", group=FLOW, low=0)
    spawn_capacity: float = _field(
        1.0, "room for children in a sample, as a multiple of its W*H first flows", group=FLOW, low=0, high=64
    )
    max_active_flows: int = _field(
        1_000_000, "flows that may move at once, shared equally by the samples of a batch", group=FLOW, low=1
    )
    use_exploration_noise: bool = _field(False, "add Gaussian noise to every move while training", group=FLOW)
    exploration_noise: float = _field(0.05, "its standard deviation", group=FLOW, low=0)
    exploration_noise_apply_to_z: bool = _field(True, "noise on z too, not only on x and y", group=FLOW)
    displacement_scale: float = _field(
        1.0, "factor on every displacement, at the start of training", group=FLOW, above=0
    )
    displacement_warmup_steps: int = _field(100, "training steps before that factor starts to decay", group=FLOW, low=0)
    displacement_scale_decay: float = _field(
        0.9, "what it is multiplied by at each update", group=FLOW, above=0, high=1
    )
    displacement_scale_update_interval: int = _field(10, "training steps between updates", group=FLOW, low=1)
    displacement_scale_min: float = _field(1.0, "the value it never goes under", group=FLOW, above=0)
    enable_displacement_filtering: bool = _field(False, "drop flows whose move is too short", group=FLOW)
    min_displacement_threshold: float = _field(0.01, "the shortest move that is kept", group=FLOW, low=0)
    convergence_enabled: bool = _field(False, "in evaluation, stop early once the flows have arrived", group=FLOW)
    convergence_threshold: float = _field(0.95, "share of flows that must have arrived", group=FLOW, above=0, high=1)
    convergence_min_steps: int = _field(5, "steps before the first check", group=FLOW, low=1)
    convergence_patience: int = _field(10, "checks without a new arrival after which to stop", group=FLOW, low=1)

    # The modules
    input_embedding_dim_from_teacher: int = _field(768, "E, the size of the teacher's embeddings", group=MODULES, low=1)
    neuron_hidden_dim: int = _field(32, "width of SimpleNeuron", group=MODULES, low=1)
    neuron_output_dim: int = _field(32, "F, features SimpleNeuron gives the GRU", group=MODULES, low=1)
    carrier_hidden_size: int = _field(32, "Hd, hidden size of the GRU", group=MODULES, low=4)
    carrier_num_layers: int = _field(1, "L, layers of the GRU", group=MODULES, low=1)
    compute_dtype: str = _field(
        "float32",
        "dtype of products and activations; weights, positions, sums and statistics stay float32",
        group=MODULES,
        choices=("float32", "bfloat16", "float16"),
    )
    gru_force_fp32: bool = _field(
        False, "neuron, GRU and heads in float32 whatever compute_dtype is", group=MODULES
    )
    enable_gru_nan_protection: bool = _field(
        True, "replace NaN by 0 and infinity by 10 at the GRU, and clip; off: non-finite values pass", group=MODULES
    )
    gru_input_clip_value: float = _field(10.0, "bound of the GRU's inputs and hidden state", group=MODULES, above=0)
    gru_output_clip_value: float = _field(10.0, "bound of the GRU's outputs", group=MODULES, above=0)
    text_vocab_size: int = _field(1500, "entries of the token embedding", group=MODULES, low=8)
    text_model_dim: int = _field(64, "d, width of the text encoder", group=MODULES, low=2)
    text_num_heads: int = _field(4, "attention heads; must divide d", group=MODULES, low=1)
    text_feedforward_dim: int = _field(128, "feed-forward width of the text encoder", group=MODULES, low=1)
    text_num_layers: int = _field(2, "layers of the text encoder", group=MODULES, low=1)
    text_max_positions: int = _field(
        512, "longest text the positional encoding covers, in tokens", group=MODULES, low=1
    )
    untrained_parts: str = _field(
        "none",
        "parts that a conversion initialised at random because its source had none, joined by commas; none: all were there",
        group=MODULES,
    )

    # Training
    seed: int = _field(0, "seed of weights, data, order, dropout and noise", group=TRAINING, low=0, high=2**31 - 1)
    training_steps: int = _field(600, "optimiser steps in a run", group=TRAINING, low=1)
    batch_size: int = _field(32, "pairs in a micro-batch", group=TRAINING, low=1)
    gradient_accumulation_steps: int = _field(1, "micro-batches in one optimiser step", group=TRAINING, low=1)
    learning_rate: float = _field(2e-3, "peak learning rate of AdamW", group=TRAINING, above=0)
    weight_decay: float = _field(1e-5, "decoupled weight decay of AdamW", group=TRAINING, low=0)
    learning_rate_schedule: str = _field(
        "cosine",
        "after warm-up: cosine to a tenth, halved on a plateau, or constant",
        group=TRAINING,
        choices=("cosine", "plateau", "constant"),
    )
    warmup_steps: int = _field(30, "steps of linear warm-up", group=TRAINING, low=0)
    plateau_patience: int = _field(
        10, "validations without a better loss before the rate is halved (plateau)", group=TRAINING, low=0
    )
    gradient_clip: float = _field(1.0, "bound of the global gradient norm; 0: none", group=TRAINING, low=0)
    gradient_clip_per_tensor: float = _field(
        0.0, "bound of each tensor's gradient norm, applied first; 0: none", group=TRAINING, low=0
    )
    gradient_scale_init: float = _field(
        65536.0, "loss scale a float16 run starts with; it adapts", group=TRAINING, above=0
    )
    gradient_checkpointing: bool = _field(
        False, "recompute the steps of the flows in the backward pass: less memory, more time", group=TRAINING
    )
    checkpoint_steps: int = _field(
        1, "k: with gradient_checkpointing, keep the flows of every k-th step (kernels; without them, of every step)",
        group=TRAINING, low=1,
    )  # fmt: skip
    memory_budget: float = _field(
        0.0, "GB a step may take: checkpointing is chosen to fit, and MLX held to it; 0: as gradient_checkpointing says",
        group=TRAINING, low=0,
    )  # fmt: skip
    compile_step: str = _field(
        "auto", "trace the training step once and replay it; auto: on a GPU", group=TRAINING, choices=("auto", "on", "off")
    )
    validation_interval: int = _field(100, "steps between validations", group=TRAINING, low=1)
    checkpoint_interval: int = _field(100, "steps between checkpoints", group=TRAINING, low=1)
    log_interval: int = _field(10, "steps between lines of metrics.jsonl", group=TRAINING, low=1)

    # The loss
    surface_loss_weight: float = _field(1.0, "weight of the surface term", group=LOSS, low=0)
    text_loss_weight: float = _field(0.1, "weight of the text encoder's term", group=LOSS, low=0)
    embedding_loss_weight: float = _field(1.0, "weight of 1 - cosine(embedding, target)", group=LOSS, low=0)

    # The data
    data: str = _field(
        "builtin",
        "where pairs come from; builtin: generated sentences with a hashed n-gram teacher; a dataset folder; a data file",
        group=DATA,
    )
    train_pairs: int = _field(20_000, "pairs to train on (builtin)", group=DATA, low=1)
    validation_pairs: int = _field(1_000, "held-out pairs watched while training (builtin, file)", group=DATA, low=2)
    test_pairs: int = _field(1_000, "held-out pairs for the final table (builtin, file)", group=DATA, low=2)
    text_max_length: int = _field(16, "tokens of a text; longer ones are cut", group=DATA, low=3)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.text_model_dim % self.text_num_heads:
            raise ConfigError(f"text_num_heads={self.text_num_heads} must divide text_model_dim={self.text_model_dim}")
        if self.text_max_length > self.text_max_positions:
            raise ConfigError(
                f"text_max_length={self.text_max_length} is over text_max_positions={self.text_max_positions}: accepted are 3 to text_max_positions"
            )
        if self.displacement_scale_min > self.displacement_scale:
            raise ConfigError(
                f"displacement_scale_min={self.displacement_scale_min} is over displacement_scale={self.displacement_scale}: "
                "accepted are values up to displacement_scale"
            )
        if self.surface_loss_weight == self.text_loss_weight == self.embedding_loss_weight == 0:
            raise ConfigError(
                "surface_loss_weight, text_loss_weight and embedding_loss_weight are all 0: at least one must be positive"
            )

    @property
    def surface_dim(self) -> int:
        """S = W * H, the cells of a surface; every module takes it from here."""
        return self.lattice_width * self.lattice_height

    @property
    def embedding_dim(self) -> int:
        """E. Input and target embeddings come from one teacher, so one size serves both ends."""
        return self.input_embedding_dim_from_teacher

    @property
    def flow_steps(self) -> int:
        """Steps a flow may take from the centre plane: D // 2."""
        return self.lattice_depth // 2

    @property
    def slots_per_sample(self) -> int:
        """Flows a sample has room for: its W*H first ones and, where flows spawn, their children."""
        spawning = self.movement_based_spawn and self.max_spawn_per_step > 0
        return self.surface_dim + (math.ceil(self.surface_dim * self.spawn_capacity) if spawning else 0)

    def replace(self, **changes: Any) -> "EnergyConfig":
        """A copy with some fields changed, checked anew. Unknown names raise ConfigError."""
        return self.from_dict({**self.to_dict(), **changes})

    @classmethod
    def tiny(cls) -> "EnergyConfig":
        """8x8x8, learns the built-in pairs in minutes on a laptop CPU."""
        # With moves of full length untrained flows crowd into a few cells, and what they carry is averaged away.
        return cls(
            displacement_scale=0.25, displacement_scale_min=0.25, surface_loss_weight=0.1, learning_rate=1e-3,
            batch_size=16, training_steps=500, validation_pairs=400,
        )  # fmt: skip

    @classmethod
    def debug(cls) -> "EnergyConfig":
        """20x20x10, the reference's preset for checking a setup."""
        return cls(
            lattice_width=20, lattice_height=20, lattice_depth=10, batch_size=8, carrier_hidden_size=256, carrier_num_layers=2,
            spawn_movement_threshold_ratio=0.15, use_exploration_noise=True, **_REFERENCE,
        )  # fmt: skip

    @classmethod
    def experiment(cls) -> "EnergyConfig":
        """28x28x40, the reference's preset for research runs."""
        # A child takes a move of at least 2t = 1.0. The longest without noise is sqrt(3)/2, so room for a sixteenth is ample.
        return cls(
            lattice_width=28, lattice_height=28, lattice_depth=40, batch_size=16, gradient_accumulation_steps=4, carrier_hidden_size=512,
            carrier_num_layers=3, spawn_movement_threshold_ratio=0.5, spawn_capacity=1 / 16, use_exploration_noise=True, **_REFERENCE,
        )  # fmt: skip

    @classmethod
    def optimized(cls) -> "EnergyConfig":
        """100x100x50, the reference's full-size preset."""
        return cls(
            lattice_width=100, lattice_height=100, lattice_depth=50, batch_size=32, carrier_hidden_size=1024, carrier_num_layers=3,
            spawn_movement_threshold_ratio=0.1, max_spawn_per_step=3, spawn_capacity=0.5, use_exploration_noise=True,
            exploration_noise=0.1, gradient_checkpointing=True, **_REFERENCE,
        )  # fmt: skip

    @classmethod
    def preset(cls, name: str) -> "EnergyConfig":
        """The preset of that name: tiny, debug, experiment or optimized."""
        if name not in PRESETS:
            raise ConfigError(f"preset={name!r} is unknown: accepted are {', '.join(PRESETS)}")
        return cast(EnergyConfig, getattr(cls, name)())

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> "EnergyConfig":
        """The configuration with these fields set and the defaults elsewhere; an unknown key raises ConfigError."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {key: value for key, value in values.items() if key not in RETIRED}
        unknown = [key for key in values if key not in names]
        if unknown:
            close = [match for key in unknown for match in difflib.get_close_matches(str(key), names, n=2)]
            hint = f"; did you mean {', '.join(close)}?" if close else "."
            raise ConfigError(
                f"{source}: unknown field {', '.join(map(repr, unknown))}{hint} Accepted are: {', '.join(names)}"
            )
        return cls(**values)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write config.json, aside and renamed."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "EnergyConfig":
        """Read config.json. A missing file, broken JSON or an unknown field raises an error that names the file."""
        return cls.from_dict(read_mapping(path), source=str(path))


PRESETS = ("tiny", "debug", "experiment", "optimized")

# Fields of earlier versions whose choice made no difference to a model's results: their files are still read.
RETIRED = ("gru_implementation",)

# What the reference's presets share (section 4): full-size modules and the reference's optimiser settings.
_REFERENCE: dict[str, Any] = dict(
    movement_based_spawn=True, neuron_hidden_dim=32, neuron_output_dim=64, text_vocab_size=4000, text_model_dim=256, text_num_heads=8,
    text_feedforward_dim=512, text_max_length=64, learning_rate=1e-4, warmup_steps=100, learning_rate_schedule="plateau",
    gradient_clip_per_tensor=1.0, max_active_flows=10_000_000,
)  # fmt: skip


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a .json, .yaml or .yml file.

    Raises:
        ConfigError: another ending, text that does not parse, or something else than a mapping; names the file.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: a configuration file ends in .json, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
        # YAML 1.1 reads 1e-4 as text; _checked turns such numbers back.
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: does not parse: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; accepted is a mapping of field names to values")
    return values


def accepted(field: "dataclasses.Field[Any]") -> str:
    """In words, the values a field accepts: 'a whole number from 2', 'one of nearest, bilinear', …"""
    bounds = field.metadata
    if field.type is bool:
        return "true or false"
    if field.type is str:
        return f"one of {', '.join(bounds['choices'])}" if bounds["choices"] else "text"
    words = "a whole number" if field.type is int else "a number"
    if bounds["low"] is not None:
        words += f" from {bounds['low']}"
    if bounds["above"] is not None:
        words += f" above {bounds['above']}"
    if bounds["high"] is not None:
        words += f" up to {bounds['high']}"
    return words


def _checked(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value in the field's type, or a ConfigError that says what came and what is accepted."""
    refusal = ConfigError(f"{field.name}={value!r} is not accepted: it takes {accepted(field)}")
    if field.type is bool:
        if not isinstance(value, bool):
            raise refusal
        return value
    if field.type is str:
        if (
            not isinstance(value, str)
            or not value
            or (field.metadata["choices"] and value not in field.metadata["choices"])
        ):
            raise refusal
        return value
    if isinstance(value, bool):
        raise refusal
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise refusal from None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise refusal
    if field.type is int:
        if value != int(value):
            raise refusal
        value = int(value)
    else:
        value = float(value)
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise refusal
    return value
