"""The order of the package, as README's Architecture section lists it: a file imports only from lines above its own."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "energy_flow_mlx"

# What may be imported inside a function: packages that are optional, or that take long to import and that few calls need.
LATE = {
    "torch": "optional",
    "pandas": "optional",
    "polars": "optional",
    "umap": "optional",
    "sacrebleu.metrics": "optional",
    "tensorboard.compat.proto.event_pb2": "optional",
    "tensorboard.compat.proto.summary_pb2": "optional",
    "tensorboard.summary.writer.event_file_writer": "optional",
    "wandb": "optional",
    f"{PACKAGE}.plot": "imports matplotlib",
    "pyarrow.parquet": "optional",
    f"{PACKAGE}.export_torch_checkpoint": "imports torch",
    f"{PACKAGE}.model_files": "imports huggingface_hub",
    "argcomplete": "only where a shell completes",
    "huggingface_hub": "an HTTP client; only for hub:OWNER/NAME",
    "matplotlib": "only where a figure is drawn",
    "matplotlib.backends.backend_agg": "only where a figure is drawn",
    "matplotlib.figure": "only where a figure is drawn",
    "matplotlib.pyplot": "chooses a backend; only where a new figure is shown",
    "yaml": "only for YAML files",
}
# None of these may be loaded by `import energy_flow_mlx`.
HEAVY = ("huggingface_hub", "httpx", "requests", "matplotlib", "yaml", "tqdm", "pyarrow", "torch", "transformers", "pandas", "polars")


class Import(NamedTuple):
    """`source` imports `target` (modules by full name) at a line; `late`: inside a function; `names`: what `from … import` takes."""

    source: str
    target: str
    line: int
    late: bool
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: imports {self.target}"


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its full name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> Iterator[Import]:
    """Every import statement of a package, wherever it stands."""
    known = modules(package)
    for source, path in known.items():
        own = source.split(".") if path.name == "__init__.py" else source.split(".")[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            late = id(node) in inside
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(source, alias.name, node.lineno, late, ())
            elif isinstance(node, ast.ImportFrom):
                base = ".".join([*own[: len(own) - node.level + 1], *([node.module] if node.module else [])])
                base = base if node.level else str(node.module)
                names = {alias.name: f"{base}.{alias.name}" for alias in node.names}
                for name in [name for name, full in names.items() if full in known]:
                    yield Import(source, names.pop(name), node.lineno, late, ())
                if names:
                    yield Import(source, base, node.lineno, late, tuple(names))


def listed(readme: str) -> list[str]:
    """The files and folders of the package in README's list, top to bottom."""
    block = readme.split("## Architecture")[1].split(f"{PACKAGE}/\n")[1]
    block = re.split(r"^\S", block, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^  (\w+)(?:/|\.py)\s", block, flags=re.MULTILINE)


def upwards(package: Path, order: list[str]) -> list[str]:
    """Imports from a line below, or from the package's own __init__."""
    found = []
    for each in imports(package):
        source, target = (name.split(".") for name in (each.source, each.target))
        if target[0] != package.name or len(source) == 1 or source[1:2] == target[1:2]:
            continue
        if len(target) == 1 or order.index(target[1]) > order.index(source[1]):
            found.append(str(each))
    return found


def circle(package: Path) -> list[str]:
    """The modules of a circle of imports; empty if there is none."""
    known = modules(package)
    graph: dict[str, set[str]] = {name: set() for name in known}
    for each in imports(package):
        if each.target in known:
            graph[each.source].add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def late(package: Path) -> list[str]:
    """Imports inside functions that LATE does not name, and calls of the functions that import."""
    found = [str(each) for each in imports(package) if each.late and each.target not in LATE]
    for name, path in modules(package).items():
        found += [f"{name}: calls {word}" for word in ("import_module(", "__import__(") if word in path.read_text("utf-8")]
    return found


def test_readme_lists_every_file_and_folder() -> None:
    order = listed((ROOT / "README.md").read_text(encoding="utf-8"))
    there = [path for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert sorted(order) == sorted(path.stem for path in there if path.name != "__init__.py")


def test_nothing_imports_upwards() -> None:
    assert not upwards(ROOT / PACKAGE, listed((ROOT / "README.md").read_text(encoding="utf-8")))


def test_no_circles() -> None:
    assert not circle(ROOT / PACKAGE)


def test_nothing_imports_a_command() -> None:
    assert not [str(each) for each in imports(ROOT / PACKAGE) if each.target.endswith("__main__")]


def test_imports_inside_functions_are_optional_or_heavy_packages() -> None:
    assert not late(ROOT / PACKAGE)


def test_models_know_nothing_of_a_run() -> None:
    taken = {
        name
        for each in imports(ROOT / PACKAGE)
        if each.source.startswith(f"{PACKAGE}.models") and each.target.startswith(f"{PACKAGE}.config")
        for name in each.names or (each.target,)
    }
    assert taken <= {"ConfigError", "ModelConfig", "check_fit", "read_config", "read_mapping"}


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.models.energy_flow"])
def test_the_import_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert loaded.split() == []


def test_faults_are_found(tmp_path: Path) -> None:
    """The checks above, on a package that breaks every rule."""
    package = tmp_path / "broken"
    (package / "high").mkdir(parents=True)
    (package / "__init__.py").write_text("from .low import a\n")
    (package / "high" / "__init__.py").write_text("")
    (package / "high" / "one.py").write_text("def f():\n    from ..low import g\n")
    (package / "high" / "two.py").write_text("import importlib\nfrom . import three\nimportlib.import_module('os')\n")
    (package / "high" / "three.py").write_text("from .two import importlib\nfrom .. import a\n")
    (package / "low.py").write_text("from .high import one\n")
    order = ["high", "low"]
    assert upwards(package, order) == [
        "broken.high.one, line 2: imports broken.low",
        "broken.high.three, line 2: imports broken",
    ]
    assert set(circle(package)) in ({"broken.high.two", "broken.high.three"}, {"broken.high.one", "broken.low"}, {"broken", "broken.low", "broken.high.three"})
    assert late(package) == ["broken.high.one, line 2: imports broken.low", "broken.high.two: calls import_module("]
    (package / "high" / "three.py").write_text("")
    (package / "low.py").write_text("")
    assert circle(package) == []
