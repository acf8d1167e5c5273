"""Testing every custom kernel on this machine: `python -m energy_flow_mlx.doctor`."""
