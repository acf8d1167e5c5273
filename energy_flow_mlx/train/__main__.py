"""python -m energy_flow_mlx.train: train an energy-flow model and judge it on held-out pairs."""

from ..cli import run_command
from .command import main

if __name__ == "__main__":
    run_command(main)
