"""A small checkpoint to damage, and the command that must refuse it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert.checkpoints import ODD, Modules, save
from convert.test_moments import train

from energy_flow_mlx import export_torch_checkpoint
from energy_flow_mlx.convert.__main__ import main

Refused = Callable[..., str]

# The modules are tiny, and tests run side by side: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs convert, which must refuse and write nothing; returns the error's text."""

    def run(source: Path, *arguments: object) -> str:
        target = tmp_path / "target"
        assert main([str(source), "--to", str(target), *map(str, arguments)]) == 2
        assert not target.exists()
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Traceback" not in error
        return error

    return run


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint.pt, mapper.pt and export/, made once."""
    base = tmp_path_factory.mktemp("originals")
    modules = Modules(ODD)
    _, adam = train(modules, steps=1)
    source, mapper = save(modules, ODD, base, adam)
    assert export_torch_checkpoint.main([str(source), str(base / "export"), "--mapper", str(mapper)]) == 0
    return base


@pytest.fixture
def files(originals: Path, tmp_path: Path) -> tuple[Path, Path]:
    copies = tmp_path / "checkpoint.pt", tmp_path / "mapper.pt"
    for copy in copies:
        shutil.copy(originals / copy.name, copy)
    return copies


@pytest.fixture
def export(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "export", tmp_path / "export"))
