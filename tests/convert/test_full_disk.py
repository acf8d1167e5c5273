"""A conversion that a full disk ends."""

import resource
from pathlib import Path

from energy_flow_mlx.convert.__main__ import main

GOLDEN = Path(__file__).resolve().parents[2] / "weights" / "golden"


def test_a_full_disk_is_named_and_nothing_partial_stays(tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        code = main([str(GOLDEN), "--to-torch", "--to", str(tmp_path / "torch")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'torch' / 'checkpoint.pt'}: File too large\n"
    assert not list((tmp_path / "torch").iterdir())
