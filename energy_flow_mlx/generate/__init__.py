"""From texts through a model to texts: `python -m energy_flow_mlx.generate`."""
