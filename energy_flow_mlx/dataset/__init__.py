"""Dataset folders: built, read, converted and inspected; `python -m energy_flow_mlx.dataset`."""
