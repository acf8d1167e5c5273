"""What a model is: sizes, dynamics of the flows, layers, numerics. All that `models/` reads."""

import math
from dataclasses import dataclass

from .fields import ConfigError, Fields, field

# Far beyond every use; they keep a damaged file from asking for sizes that no array can have.
MOST_CELLS, MOST_NUMBERS, MOST_LAYERS, MOST_TOKENS = 2**15, 2**20, 1000, 2**31 - 1
LATTICE, FLOW, MODULES, TRAINING = "lattice", "life of a flow", "modules", "training"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Fields):
    """A model and its forward pass. A field that is left out has the value that a file without it means, mostly the PyTorch code's;
    that makes no preset. To train, start from one: `EnergyConfig.tiny()`.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or two fields contradict each other.
    """

    # The lattice
    lattice_width: int = field(8, "cells along x, W", group=LATTICE, low=2, high=MOST_CELLS)
    lattice_height: int = field(8, "cells along y, H", group=LATTICE, low=2, high=MOST_CELLS)
    lattice_depth: int = field(
        8, "D: planes 0..D along z; flows start on D//2 and move for D//2 steps", group=LATTICE, low=2, high=MOST_CELLS
    )
    collection: str = field(
        "nearest",
        "how an arrived flow reaches the surface: its nearest cell, or spread over the four around it (gives x and y a gradient)",
        group=LATTICE,
        choices=("nearest", "bilinear"),
    )

    # The life of a flow
    flows_enabled: bool = field(
        True, "off: the mapper's surface goes straight to the collector, to see what the flows are worth", group=FLOW
    )
    initial_weights: str = field(
        "reference",
        "of the carrier; carrying: untrained flows already take their energy straight to the plane z = -1",
        group=FLOW,
        choices=("reference", "carrying"),
    )
    boundary_reflection_enabled: bool = field(
        True, "reflect flows at the side walls; off: clamp them there", group=FLOW
    )
    project_unfinished: bool = field(
        True, "project flows that have not arrived to the nearest output plane; off: drop them", group=FLOW
    )
    movement_based_spawn: bool = field(False, "a flow that moves far leaves children behind", group=FLOW)
    spawn_movement_threshold_ratio: float = field(
        0.3, "t: a move of length m leaves floor(m/t) - 1 children (positions span [-1, 1])", group=FLOW, above=0
    )
    max_spawn_per_step: int = field(1, "children one flow may leave in one step", group=FLOW, low=0)
    spawn_capacity: float = field(
        1.0, "room for children in a sample, as a multiple of its W*H first flows; in evaluation it grows until no child is lost", group=FLOW, low=0, high=64
    )
    max_active_flows: int = field(
        1_000_000, "flows that may move at once, shared equally by the samples of a batch", group=FLOW, low=1
    )
    use_exploration_noise: bool = field(False, "add Gaussian noise to every move while training", group=FLOW)
    exploration_noise: float = field(0.05, "its standard deviation", group=FLOW, low=0)
    exploration_noise_apply_to_z: bool = field(True, "noise on z too, not only on x and y", group=FLOW)
    displacement_scale: float = field(
        1.0, "factor on every displacement, at the start of training", group=FLOW, above=0
    )
    displacement_warmup_steps: int = field(100, "training steps before that factor starts to decay", group=FLOW, low=0)
    displacement_scale_decay: float = field(
        0.9, "what it is multiplied by at each update", group=FLOW, above=0, high=1
    )
    displacement_scale_update_interval: int = field(10, "training steps between updates", group=FLOW, low=1)
    displacement_scale_min: float = field(1.0, "the value it never goes under", group=FLOW, above=0)
    enable_displacement_filtering: bool = field(False, "drop flows whose move is too short", group=FLOW)
    min_displacement_threshold: float = field(0.01, "the shortest move that is kept", group=FLOW, low=0)
    convergence_enabled: bool = field(False, "in evaluation, stop early once the flows have arrived", group=FLOW)
    convergence_threshold: float = field(0.95, "share of flows that must have arrived", group=FLOW, above=0, high=1)
    convergence_min_steps: int = field(5, "steps before the first check", group=FLOW, low=1)
    convergence_patience: int = field(10, "checks without a new arrival after which to stop", group=FLOW, low=1)

    # The modules
    input_embedding_dim_from_teacher: int = field(768, "E, the size of the teacher's embeddings", group=MODULES, low=1, high=MOST_NUMBERS)
    neuron_hidden_dim: int = field(32, "width of SimpleNeuron", group=MODULES, low=1, high=MOST_NUMBERS)
    neuron_output_dim: int = field(32, "F, features SimpleNeuron gives the GRU", group=MODULES, low=1, high=MOST_NUMBERS)
    carrier_hidden_size: int = field(32, "Hd, hidden size of the GRU", group=MODULES, low=4, high=MOST_NUMBERS)
    carrier_num_layers: int = field(1, "L, layers of the GRU", group=MODULES, low=1, high=MOST_LAYERS)
    compute_dtype: str = field(
        "float32",
        "dtype of products and activations; weights, positions, sums and statistics stay float32",
        group=MODULES,
        choices=("float32", "bfloat16", "float16"),
    )
    gru_force_fp32: bool = field(
        False, "neuron, GRU and heads in float32 whatever compute_dtype is", group=MODULES
    )
    enable_gru_nan_protection: bool = field(
        True, "replace NaN by 0 and infinity by 10 at the GRU, and clip; off: non-finite values pass", group=MODULES
    )
    gru_input_clip_value: float = field(10.0, "bound of the GRU's inputs and hidden state", group=MODULES, above=0)
    gru_output_clip_value: float = field(10.0, "bound of the GRU's outputs", group=MODULES, above=0)
    dropout: float = field(
        0.1, "dropout of text encoder, mapper and collector; of the layers next to a surface half of it", group=MODULES, low=0, high=0.9
    )
    input_residual: bool = field(
        False, "add the input embedding to the collector's output, which starts at 0: the model learns the difference", group=MODULES
    )
    text_vocab_size: int = field(1500, "entries of the token embedding; the built-in texts take 58 at least", group=MODULES, low=8, high=MOST_TOKENS)
    text_model_dim: int = field(64, "d, width of the text encoder", group=MODULES, low=2, high=MOST_NUMBERS)
    text_num_heads: int = field(4, "attention heads; must divide d", group=MODULES, low=1, high=MOST_NUMBERS)
    text_feedforward_dim: int = field(128, "feed-forward width of the text encoder", group=MODULES, low=1, high=MOST_NUMBERS)
    text_num_layers: int = field(2, "layers of the text encoder", group=MODULES, low=1, high=MOST_LAYERS)
    text_max_positions: int = field(
        512, "longest text the positional encoding covers, in tokens", group=MODULES, low=1, high=MOST_NUMBERS
    )
    untrained_parts: str = field(
        "none",
        "parts that a conversion initialised at random because its source had none, joined by commas; none: all were there",
        group=MODULES,
        flag=False,
    )

    # Memory of the backward pass
    gradient_checkpointing: bool = field(
        False, "recompute the flow steps in the backward pass: less memory, more time", group=TRAINING
    )
    checkpoint_steps: int = field(
        1, "k: with gradient_checkpointing, store the flows of every k-th step and recompute those between (kernels; without them k is 1)",
        group=TRAINING, low=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_model_dim % self.text_num_heads:
            raise ConfigError(f"text_num_heads={self.text_num_heads} must divide text_model_dim={self.text_model_dim}")
        if self.displacement_scale_min > self.displacement_scale:
            raise ConfigError(
                f"displacement_scale_min={self.displacement_scale_min} is over displacement_scale={self.displacement_scale}: "
                "accepted are values up to displacement_scale"
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
