"""Figures in files, whatever plotting backend is named."""

import subprocess
import sys

import pytest

from energy_flow_mlx.figures import figure_file

_DRAW = """
import sys
from pathlib import Path
from energy_flow_mlx.figures import figure_file
with figure_file(Path(sys.argv[1]), (1, 1), {}) as figure:
    figure.subplots().plot([1, 2])
import os, matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams._get("backend") if sys.argv[2] == "pdf" else "", "matplotlib.pyplot" in sys.modules)
"""


@pytest.mark.parametrize("backend", ["module://no_notebook.here", "pdf"])
def test_a_figure_is_drawn_whatever_the_environment_names(tmp_path, backend, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", backend)
    command = [sys.executable, "-c", _DRAW, str(tmp_path / "a.png"), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [backend, *(["pdf"] if backend == "pdf" else []), "False"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_gives_the_format(tmp_path, ending, start):
    with figure_file(tmp_path / f"a.{ending}", (1, 1), {"font.size": 5}) as figure:
        figure.subplots().plot([1, 2])
    assert (tmp_path / f"a.{ending}").read_bytes().startswith(start)


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), figure_file(tmp_path / "a.png", (1, 1), {}):
        raise KeyError
    assert not list(tmp_path.iterdir())
