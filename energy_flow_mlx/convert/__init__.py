"""Converting PyTorch checkpoints to model folders and back: `python -m energy_flow_mlx.convert`."""
