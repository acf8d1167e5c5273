"""Pictures show themselves in a notebook: each cell's own, not the first one alone."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELL = "plot.scores({'input': 0.4, 'flow': 0.6});"


def test_every_cell_shows_its_picture(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cells = [nbformat.v4.new_code_cell(source) for source in ("from energy_flow_mlx import plot", CELL, CELL)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    for cell in notebook.cells[1:]:
        assert [list(output.data) for output in cell.outputs] == [["text/plain", "image/png"]]
