"""What `python -m energy_flow_mlx.train` is made of: losses, optimiser, one step, checkpoints and the report."""
