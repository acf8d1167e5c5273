"""Conversion of checkpoints between the PyTorch implementation and this one."""
