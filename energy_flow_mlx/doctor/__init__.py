"""What `python -m energy_flow_mlx.doctor` does: try every kernel on this machine, one by one."""
