"""How much of held-out sentences a run brings back as text: `python -m energy_flow_mlx.recover`."""
