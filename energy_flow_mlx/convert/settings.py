"""Converting the configuration of a PyTorch checkpoint, with a check against its weights, and back."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ..config import ConfigError, EnergyConfig

Shapes = Mapping[str, tuple[int, ...]]

# Constants in the PyTorch trainer's code that are fields of our configuration.
FIXED: dict[str, Any] = {
    "text_num_heads": 8,
    "text_max_length": 128,
    "gradient_clip_per_tensor": 1.0,
    "learning_rate_schedule": "plateau",
    "plateau_patience": 10,
}
# Those constants, and the collection that the PyTorch code always uses, which affect outputs.
SEEN_IN_OUTPUTS = {"text_num_heads": 8, "text_max_length": 128, "collection": "nearest"}
# In a checkpoint that this package writes, the entry with the fields that torch's configuration lacks; torch ignores
# it.
RECORD = "energy_flow_mlx"
REQUIRED = ("lattice_width", "lattice_height", "lattice_depth")
OUTPUT_EMBEDDING = "output_embedding_dim_to_teacher"
DERIVED = ("input_cells", "output_cells")


def config_from_torch(
    values: Mapping[str, Any], shapes: Shapes, overrides: Mapping[str, Any], recorded: Any = None
) -> tuple[EnergyConfig, list[str]]:
    """Convert a torch configuration.

    Fields with the same name are copied; sizes that torch's configuration lacks are derived from the weights.

    Args:
        values: the checkpoint's configuration.
        shapes: shapes of its tensors, by prefixed torch key.
        overrides: fields of our configuration that take precedence over all others.
        recorded: the fields that `fields_beside` stored, if this package wrote the checkpoint.

    Returns:
        Our configuration; and notes on fields that have no counterpart or whose value is not from `values`.

    Raises:
        ValueError: a field is missing, invalid, or contradicts the weights; names the field, its value and the weight.
    """
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        raise ValueError(f"config: {', '.join(missing)} missing")
    invalid = [f"{name}={values[name]!r}" for name in REQUIRED if type(values[name]) is not int]
    if invalid:
        raise ValueError(f"config: {', '.join(invalid)}: accepted are whole numbers")
    names = {field.name for field in dataclasses.fields(EnergyConfig)}
    ours = {name: value for name, value in values.items() if name in names}
    found = sizes_of(shapes)
    faults = [
        f"{name} is {values[name]} in the configuration, {size} in {key}"
        for name, (size, key) in found.items()
        if name in values and values[name] != size
    ]
    cells = values["lattice_width"] * values["lattice_height"]
    for key, shape in shapes.items():
        size = _surface_size(key, shape)
        if size is not None and size != cells:
            faults.append(f"lattice_width * lattice_height is {cells} in the configuration, {size} in {key}")
    faults += [
        f"{name} is {values[name]}, lattice_width * lattice_height {cells}"
        for name in DERIVED
        if values.get(name, cells) != cells
    ]
    if faults:
        raise ValueError("config and weights disagree: " + "; ".join(faults))
    ours |= {name: size for name, (size, _) in found.items() if name in names}
    dim = ours.get("input_embedding_dim_from_teacher")
    if dim is not None and values.get(OUTPUT_EMBEDDING, dim) != dim:
        raise ValueError(
            f"config: {OUTPUT_EMBEDDING}={values[OUTPUT_EMBEDDING]} differs from input_embedding_dim_from_teacher={dim}; "
            "this package has one size for both"
        )
    recorded = {} if recorded is None else recorded
    if not isinstance(recorded, Mapping):
        raise ValueError(
            f"{RECORD}: must be a dictionary of configuration fields, got {type(recorded).__name__}"
        )
    fixed = dict(FIXED)
    fixed["text_max_length"] = min(FIXED["text_max_length"], ours.get("text_max_positions", FIXED["text_max_length"]))
    try:
        config = EnergyConfig.from_dict({**fixed, **recorded, **ours, **overrides}, source="config")
    except ConfigError as error:
        raise ValueError(f"config: {error}; --set NAME=VALUE gives another value") from error
    unused = [
        name for name in values if name not in names and name not in found and name not in (OUTPUT_EMBEDDING, *DERIVED)
    ]
    notes = [f"configuration, without a counterpart in this package: {', '.join(unused)}"] if unused else []
    code = [f"{name}={value}" for name, value in fixed.items() if name not in {**ours, **overrides, **recorded}]
    notes += [f"configuration, constants of the torch code: {', '.join(code)}"] if code else []
    notes += [f"configuration, recorded by this package: {', '.join(recorded)}"] if recorded else []
    return config, notes


def config_to_torch(config: EnergyConfig, torch_config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our configuration to torch's.

    Args:
        config: our configuration.
        torch_config: the configuration of the torch checkpoint that the model was converted from; empty if there is
            none.

    Returns:
        `torch_config` with our values for fields of the same name or, without it, the fields that both configurations
        have; and the sizes that torch derives.
    """
    ours = config.to_dict()
    known = torch_config or {
        name: ours[name]
        for name in ours
        if name == "text_loss_weight" or (not name.startswith("text_") and name not in _OURS_ALONE)
    }
    values = {name: ours.get(name, value) for name, value in known.items()}
    return values | {OUTPUT_EMBEDDING: config.embedding_dim, **dict.fromkeys(DERIVED, config.surface_dim)}


def fields_beside(config: EnergyConfig, torch_config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Our fields that neither the torch configuration nor the tensors' shapes determine; stored in the entry RECORD."""
    return {name: value for name, value in config.to_dict().items() if name not in {**torch_config, **sizes_of(shapes)}}


def notes_for_torch(config: EnergyConfig) -> list[str]:
    """Notes on constants in the PyTorch code that differ from this model's values, so that its outputs would differ."""
    differing = [
        f"{name}={getattr(config, name)} ({value} in torch)"
        for name, value in SEEN_IN_OUTPUTS.items()
        if getattr(config, name) != value
    ]
    if not differing:
        return []
    return [
        f"configuration: the PyTorch code has no setting for {', '.join(differing)}; change its code, or outputs will differ"
    ]


# Without a counterpart in the PyTorch implementation.
_OURS_ALONE = {
    "collection", "project_unfinished", "flows_enabled", "initial_weights", "dropout", "input_residual", "arrival_loss_weight", "flow_learning_rate_factor", "spawn_capacity", "untrained_parts", "seed", "training_steps",
    "learning_rate_schedule", "warmup_steps", "plateau_patience", "gradient_clip_per_tensor", "gradient_checkpointing",
    "validation_interval", "surface_loss_weight", "embedding_loss_weight", "data", "pairs", "train_pairs", "validation_pairs", "test_pairs",
}  # fmt: skip


def sizes_of(shapes: Shapes) -> dict[str, tuple[int, str]]:
    """Sizes derived from the shapes of torch's tensors: field -> (size, key of the tensor)."""
    sources = {
        "neuron_hidden_dim": ("neuron.layers.0.weight", 0),
        "neuron_output_dim": ("neuron.layers.6.weight", 0),
        "carrier_hidden_size": ("carrier.gru.weight_hh_l0", 1),
        "input_embedding_dim_from_teacher": ("input_mapper.projection.0.weight", 1),
        OUTPUT_EMBEDDING: ("output_collector.reconstruction.8.weight", 0),
        "text_vocab_size": ("text_encoder.token_embedding.weight", 0),
        "text_model_dim": ("text_encoder.token_embedding.weight", 1),
        "text_max_positions": ("text_encoder.positional_encoding", 0),
        "text_feedforward_dim": ("text_encoder.transformer_encoder.layers.0.linear1.weight", 0),
    }
    found = {
        name: (shapes[key][axis], key)
        for name, (key, axis) in sources.items()
        if key in shapes and len(shapes[key]) > axis
    }
    for name, pattern in (
        ("carrier_num_layers", r"carrier\.gru\.weight_hh_l(\d+)"),
        ("text_num_layers", r"text_encoder\.transformer_encoder\.layers\.(\d+)\.linear1\.weight"),
    ):
        layers = {int(match[1]): key for key in shapes if (match := re.fullmatch(pattern, key))}
        if layers:
            found[name] = (max(layers) + 1, layers[max(layers)])
    plane = shapes.get("input_mapper.positional_encoding", ())
    if len(plane) == 2:
        found["lattice_height"] = (plane[0], "input_mapper.positional_encoding")
        found["lattice_width"] = (plane[1], "input_mapper.positional_encoding")
    return found


def _surface_size(key: str, shape: tuple[int, ...]) -> int | None:
    """The surface size S, if this tensor has an axis of that size."""
    if key in ("input_mapper.projection.8.weight", "text_encoder.surface_projection.4.weight") and shape:
        return shape[0]
    if key in ("output_collector.reconstruction.0.weight", "text_decoder.surface_adapter.0.weight") and len(shape) == 2:
        return shape[1]
    return None
