"""The notebooks as they lie in the clone; CI runs them by scripts/notebooks.py."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_readme_lists_them_all():
    listed = re.findall(r"\(notebooks/([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(listed) == {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_one_whole_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    shown = "\n".join(output.text for output in outputs if output.output_type == "stream")
    assert not re.findall(r"(?<![\w.:/])/[\w.-]+/[\w.-]+/\S*", shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_shows_and_has_small_settings_for_ci(path):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0].source
    assert first.startswith("# ") and "**What one should see:**" in first
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert 'os.environ.get("ENERGY_FLOW_NOTEBOOK") == "quick"' in code and "if QUICK" in code
