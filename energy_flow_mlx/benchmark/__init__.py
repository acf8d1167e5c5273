"""Benchmarks of time and memory: `python -m energy_flow_mlx.benchmark`."""
