"""Training: the loss, the optimiser, the step, checkpoints, and the run that `python -m energy_flow_mlx.train` makes of them."""

from .callbacks import Callback
from .command import main
from .init_from import starting_from
from .trainer import Trainer

__all__ = ["Callback", "Trainer", "main", "starting_from"]
