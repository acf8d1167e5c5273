"""Training: the loss, the optimiser, the step, checkpoints, and the run that `python -m energy_flow_mlx.train` makes of them."""

from .command import main

__all__ = ["main"]
