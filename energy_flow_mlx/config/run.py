"""What a run does: optimisation, loss, data."""

from dataclasses import dataclass

from .fields import ConfigError, Fields, field
from .model import MOST_LAYERS, MOST_NUMBERS, TRAINING

LOSS, DECODER, DATA = "loss", "text decoder", "data"
PARTS = ("all", "decoder", "corrector")
NOTHING = "none"
REPORTERS = ("jsonl", "tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Fields):
    """How a model is trained and evaluated, and on what.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or two fields contradict each other.
    """

    # Training
    part: str = field(
        "all", "what learns: all that a term of the loss reaches; or, on a run that is done (init_from), the text decoder alone, or its corrector",
        group=TRAINING, choices=PARTS,
    )  # fmt: skip
    seed: int = field(0, "seed of weights, data, order, dropout and noise", group=TRAINING, low=0, high=2**31 - 1)
    init_from: str = field(
        NOTHING,
        "model whose weights a new run starts from: a run, its best/, a model's folder or OWNER/NAME of the hub; none: random weights",
        group=TRAINING,
    )
    training_steps: int = field(600, "optimiser steps in a run", group=TRAINING, low=1)
    batch_size: int = field(32, "pairs in a micro-batch", group=TRAINING, low=1)
    gradient_accumulation_steps: int = field(1, "micro-batches in one optimiser step", group=TRAINING, low=1)
    learning_rate: float = field(2e-3, "peak learning rate of AdamW", group=TRAINING, above=0)
    flow_learning_rate_factor: float = field(
        1.0, "factor on the learning rate of neuron and carrier, whose weights act at every step of every flow", group=TRAINING, above=0
    )
    weight_decay: float = field(1e-5, "decoupled weight decay of AdamW", group=TRAINING, low=0)
    learning_rate_schedule: str = field(
        "cosine",
        "after warm-up: cosine to a tenth, halved on a plateau, or constant",
        group=TRAINING,
        choices=("cosine", "plateau", "constant"),
    )
    warmup_steps: int = field(30, "steps of linear warm-up", group=TRAINING, low=0)
    plateau_patience: int = field(
        10, "validations without a better loss before the rate is halved (plateau)", group=TRAINING, low=0
    )
    gradient_clip: float = field(1.0, "bound of the global gradient norm; 0: none", group=TRAINING, low=0)
    gradient_clip_per_tensor: float = field(
        0.0, "bound of each tensor's gradient norm, applied first; 0: none", group=TRAINING, low=0
    )
    gradient_scale_init: float = field(
        65536.0, "loss scale a float16 run starts with; it adapts", group=TRAINING, above=0
    )
    memory_budget: float = field(
        0.0, "GB a training step may take: steps are recomputed as needed, and MLX limited to it; 0: as gradient_checkpointing says",
        group=TRAINING, low=0,
    )  # fmt: skip
    compile_step: str = field(
        "auto", "trace the training step once and replay it; auto: on a GPU", group=TRAINING, choices=("auto", "on", "off")
    )
    validation_interval: int = field(100, "steps between validations", group=TRAINING, low=1)
    early_stopping: int = field(
        0, "validations without a better one after which the run ends; 0: it goes on to training_steps", group=TRAINING, low=0
    )
    checkpoint_interval: int = field(100, "steps between checkpoints", group=TRAINING, low=1)
    keep_checkpoints: int = field(
        0, "checkpoints kept in steps/ of the run folder, the last ones; 0: none, the folder itself has the last", group=TRAINING, low=0,
        also="--keep",
    )  # fmt: skip
    log_interval: int = field(10, "steps between lines of metrics.jsonl", group=TRAINING, low=1)
    report_to: str = field(
        "jsonl", f"where numbers go, with commas between: {', '.join(REPORTERS)}; metrics.jsonl is always written", group=TRAINING
    )

    # The loss
    surface_loss_weight: float = field(1.0, "weight of the surface term", group=LOSS, low=0)
    text_loss_weight: float = field(0.1, "weight of the text encoder's term", group=LOSS, low=0)
    embedding_loss_weight: float = field(1.0, "weight of 1 - cosine(embedding, target)", group=LOSS, low=0)

    arrival_loss_weight: float = field(
        0.0, "weight of the mean distance between flows and their nearest plane at the end of their life", group=LOSS, low=0
    )

    # The text decoder
    text_decoder_loss_weight: float = field(
        0.0, "weight of the text decoder's cross-entropy, the mean over a text's tokens; 0: a new run has no text decoder", group=DECODER, low=0
    )
    text_decoder_flow_share: float = field(
        0.5, "share of the cross-entropy from surfaces that the flows leave; the rest is from mapped embeddings", group=DECODER, low=0, high=1
    )
    text_decoder_prefix: int = field(8, "vectors that the decoder reads of a surface", group=DECODER, low=1, high=MOST_LAYERS)
    text_decoder_dim: int = field(128, "width of the decoder", group=DECODER, low=2, high=MOST_NUMBERS)
    text_decoder_heads: int = field(4, "attention heads; must divide text_decoder_dim", group=DECODER, low=1, high=MOST_NUMBERS)
    text_decoder_layers: int = field(2, "layers of the decoder", group=DECODER, low=1, high=MOST_LAYERS)
    text_corrector_pairs: int = field(20_000, "training pairs whose texts the corrector learns from", group=DECODER, low=1)
    text_corrector_temperature: float = field(
        1.0, "at which the decoder draws the texts that the corrector learns to correct; 0: the best tokens", group=DECODER, low=0, high=10
    )
    text_corrector_teacher: str = field(NOTHING, "folder or hub id of the run's teacher; none: as its data tell", group=DECODER)

    # The data
    data: str = field(
        "builtin",
        "where pairs come from; builtin: generated sentences with a hashed n-gram teacher; a dataset folder; a data file",
        group=DATA,
    )
    pairs: str = field(
        "related",
        "related: from a text to the one that belongs to it; copy: from each input back to itself",
        group=DATA,
        choices=("related", "copy"),
    )
    train_pairs: int = field(20_000, "pairs to train on (builtin)", group=DATA, low=1)
    validation_pairs: int = field(1_000, "held-out pairs watched while training (builtin, file)", group=DATA, low=2)
    test_pairs: int = field(1_000, "held-out pairs for the final table (builtin, file)", group=DATA, low=2)
    text_max_length: int = field(16, "tokens of a text; longer ones are cut", group=DATA, low=3)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.reporters if name not in REPORTERS]
        if unknown:
            raise ConfigError(f"report_to={self.report_to!r} is not accepted: it takes names of {', '.join(REPORTERS)} with commas between them")
        weights = ("surface_loss_weight", "text_loss_weight", "embedding_loss_weight", "text_decoder_loss_weight")
        if not any(getattr(self, name) for name in weights):
            raise ConfigError(f"{', '.join(weights[:-1])} and {weights[-1]} are all 0: at least one must be positive")
        if self.part == "decoder" and not (self.text_decoder_loss_weight and self.starts_from_a_model):
            raise ConfigError("part=decoder needs init_from, the folder of a run, and a positive text_decoder_loss_weight")
        if self.part == "corrector" and not self.starts_from_a_model:
            raise ConfigError("part=corrector needs init_from, the folder of a run with a text decoder")
        if self.text_decoder_dim % self.text_decoder_heads:
            raise ConfigError(f"text_decoder_heads={self.text_decoder_heads} must divide text_decoder_dim={self.text_decoder_dim}")

    @property
    def reporters(self) -> list[str]:
        """The names in `report_to`, each once."""
        return list(dict.fromkeys(name.strip() for name in self.report_to.split(",")))

    @property
    def starts_from_a_model(self) -> bool:
        """Whether the weights that a new run starts with are those of another model."""
        return self.init_from != NOTHING
