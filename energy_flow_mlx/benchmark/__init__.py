"""What `python -m energy_flow_mlx.benchmark` measures, and how."""
