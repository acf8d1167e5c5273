"""Run the notebooks, each from a clean kernel and in a folder of its own; the first cell that fails ends the command with 1.

    python scripts/notebooks.py                          # all, with small settings, as CI does; nothing is written
    python scripts/notebooks.py --write 1_train_and_look # with the settings that a reader gets; its outputs are kept in the file

Needs nbclient and ipykernel: `pip install -e '.[cpu,test]'` brings them.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
SETTINGS = "ENERGY_FLOW_NOTEBOOK"  # "quick": small settings; every notebook's first cell reads it
WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS = 900  # that one cell may take


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 if a cell failed."""
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(names)}")
    parser.add_argument("--write", action="store_true", help="run with full settings and keep the outputs")
    options = parser.parse_args(argv)
    if wrong := sorted(set(options.names) - set(names)):
        parser.error(f"{', '.join(wrong)}: no such notebook; accepted are {', '.join(names)}")
    return max(run(FOLDER / f"{name}.ipynb", write=options.write) for name in options.names or names)


def run(path: Path, *, write: bool) -> int:
    """Run one notebook; returns 0, or 1 if a cell failed, whose error is printed."""
    notebook = nbformat.read(path, as_version=4)
    os.environ[SETTINGS] = "full" if write else "quick"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.pop("MPLBACKEND", None)  # the kernel chooses the one that shows figures
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", coalesce_streams=True, resources=where)
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"{path.name} fails:\n{error}", file=sys.stderr)
            return 1
    print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)
    if write:
        nbformat.write(cleaned(notebook, folder), path)
    return 0


def cleaned(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run for no reason: times, this machine's folders, redrawn progress bars."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]  # a bar as it began
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                shown = (line.rsplit("\r", 1)[-1] for line in output.text.replace(folder, ".").split("\n"))
                output.text = re.sub(r"\n{3,}", "\n\n", "\n".join(shown))
    return notebook


if __name__ == "__main__":
    sys.exit(main())
