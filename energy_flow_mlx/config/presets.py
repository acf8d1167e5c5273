"""The presets: fields that differ from their defaults, by name; and those of a part that is trained alone, by the part."""

from typing import Any

# Sizes of the reference's presets, and its optimiser settings.
_LATTICES: dict[str, dict[str, Any]] = {
    "debug": dict(lattice_width=20, lattice_height=20, lattice_depth=10, carrier_hidden_size=256, carrier_num_layers=2),
    "experiment": dict(lattice_width=28, lattice_height=28, lattice_depth=40, carrier_hidden_size=512, carrier_num_layers=3),
    "optimized": dict(
        lattice_width=100, lattice_height=100, lattice_depth=50, carrier_hidden_size=1024, carrier_num_layers=3,
        gradient_checkpointing=True,
    ),
}  # fmt: skip
_MODULES: dict[str, Any] = dict(
    neuron_hidden_dim=32, neuron_output_dim=64, text_vocab_size=4000, text_model_dim=256, text_num_heads=8,
    text_feedforward_dim=512, text_max_length=64, max_active_flows=10_000_000,
)  # fmt: skip
_REFERENCE: dict[str, Any] = dict(
    movement_based_spawn=True, use_exploration_noise=True, learning_rate=1e-4, warmup_steps=100,
    learning_rate_schedule="plateau", gradient_clip_per_tensor=1.0,
)  # fmt: skip

# What was measured to make the flow learn; docs/learning.md has the figures. Bilinear collection gives x and y a gradient, the arrival
# term gives z one, and the initial weights transport energy from the first step. Noise, children and dropout cost more than they bring.
_LEARNING: dict[str, Any] = dict(
    collection="bilinear", initial_weights="carrying", arrival_loss_weight=0.02, input_residual=True, dropout=0.0,
    surface_loss_weight=0.1, warmup_steps=100,
)  # fmt: skip

# With more cells, layers and steps the flow's weights, which act on all of them, need smaller steps than the two ends.
_SLOW_FLOW: dict[str, Any] = dict(flow_learning_rate_factor=0.1, gradient_clip_per_tensor=1.0)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        **_LEARNING, neuron_hidden_dim=16, neuron_output_dim=15, carrier_hidden_size=16, text_model_dim=32,
        text_feedforward_dim=64, text_num_layers=1, learning_rate=2e-3, batch_size=16, training_steps=600, validation_pairs=400,
    ),
    "debug": dict(**_LATTICES["debug"], **_MODULES, **_LEARNING, **_SLOW_FLOW, learning_rate=2e-3, batch_size=32, training_steps=2500),
    "experiment": dict(
        **_LATTICES["experiment"], **_MODULES, **_LEARNING, **_SLOW_FLOW | {"flow_learning_rate_factor": 0.03}, compute_dtype="bfloat16",
        learning_rate=1e-3, batch_size=16, gradient_accumulation_steps=2, training_steps=4000,
    ),
    "optimized": dict(
        **_LATTICES["optimized"], **_MODULES, **_LEARNING, **_SLOW_FLOW, compute_dtype="bfloat16", learning_rate=1e-4, batch_size=4,
        gradient_accumulation_steps=8,
    ),
    "reference-debug": dict(
        **_LATTICES["debug"], **_MODULES, **_REFERENCE, batch_size=8, spawn_movement_threshold_ratio=0.15
    ),
    # A child takes a move of at least 2t = 1.0. The longest without noise is sqrt(3)/2, so room for a sixteenth is ample.
    "reference-experiment": dict(
        **_LATTICES["experiment"], **_MODULES, **_REFERENCE, batch_size=16, gradient_accumulation_steps=4,
        spawn_movement_threshold_ratio=0.5, spawn_capacity=1 / 16,
    ),
    "reference-optimized": dict(
        **_LATTICES["optimized"], **_MODULES, **_REFERENCE, batch_size=32, spawn_movement_threshold_ratio=0.1,
        max_spawn_per_step=3, spawn_capacity=0.5, exploration_noise=0.1,
    ),
}  # fmt: skip

# Over the configuration of the run that the part belongs to.
_WRITING: dict[str, Any] = dict(
    learning_rate=1e-3, learning_rate_schedule="cosine", warmup_steps=100, batch_size=64, gradient_accumulation_steps=1,
    training_steps=2000, validation_interval=500, checkpoint_interval=500,
)  # fmt: skip
PART_PRESETS: dict[str, dict[str, Any]] = {
    "all": {},
    "decoder": dict(**_WRITING, text_decoder_loss_weight=1.0),
    "corrector": dict(**_WRITING, text_decoder_loss_weight=0.0),
}
