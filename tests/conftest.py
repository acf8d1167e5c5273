"""What all tests share: the numeric mode of the parity tests, and the golden data of the PyTorch modules."""

import os
from pathlib import Path

# Before mlx is imported: fp32 products would otherwise run in TF32 on NVIDIA GPUs and on Metal's matrix units,
# whose error is over the parity bound.
os.environ["MLX_ENABLE_TF32"] = "0"

import pytest

import energy_flow_mlx  # noqa: F401  before the tests import mlx: on Linux it binds the system's BLAS

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that the PyTorch modules produced, beside the repository."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no folder {GOLDEN}: agreement with the recorded PyTorch modules and flows is not tested")
    return GOLDEN
