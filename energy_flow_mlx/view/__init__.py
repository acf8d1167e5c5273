"""python -m energy_flow_mlx.view: the flows of a text as a page or an animation."""
