"""However the package is installed, it finds every kernel source: from a wheel, editable, and from a plain checkout."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LOOK = """
import hashlib, json, sys
from pathlib import Path
import energy_flow_mlx
from energy_flow_mlx.ops import kernel

found = {}
for name in sys.argv[1:]:
    found[name] = hashlib.sha256(kernel.source_file(name).encode()).hexdigest()
    if name.endswith(".metal"):
        assert kernel.read_source(name.removesuffix(".metal"))[1], f"{name} holds no body"
print(json.dumps({"package": str(Path(energy_flow_mlx.__file__).resolve().parent), "sources": found}))
"""


def execute(*command: str | Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env=clean | environment, cwd="/"
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def fresh_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that borrows this one's dependencies, not its packages in development."""
    execute(sys.executable, "-m", "venv", "--without-pip", folder)
    scripts, binary = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    python = folder / scripts / binary
    site = Path(execute(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path in a .pth file is added as it is: the .pth files in it, such as that of an editable install, are not read.
    places = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "borrowed.pth").write_text("\n".join(places) + "\n", encoding="utf-8")
    return python


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("libmlx.so: cannot open shared object file: No such file or directory", "pip install 'energy-flow-mlx[cpu]'"),
        ("libcuda.so.1: cannot open shared object file", "libcuda.so.1: cannot open shared object file"),
    ],
)
def test_mlx_without_a_backend_is_told_with_the_extra_to_add(fault: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text(f"raise ImportError({fault!r})")
    result = subprocess.run(
        [sys.executable, "-c", "import energy_flow_mlx"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ImportError: ") and told in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("how", ["wheel", "editable", "checkout"])
def test_every_kernel_source_is_found(how: str, tmp_path: Path) -> None:
    sources = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "kernels").iterdir()}
    assert sources.keys() >= {"cuda.h", "metal.h", "common.h"}
    python = fresh_environment(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    environment = {}
    if how == "wheel":
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        execute(*build, "--wheel-dir", tmp_path, ROOT)
        (wheel,) = tmp_path.glob("energy_flow_mlx-*.whl")
        execute(*pip, wheel)
        place = tmp_path
    elif how == "editable":
        execute(*pip, "--no-build-isolation", "--editable", ROOT, PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        place = ROOT
    else:
        environment["PYTHONPATH"] = str(ROOT)
        place = ROOT
    answer = json.loads(execute(python, "-c", LOOK, *sources, **environment))
    assert Path(answer["package"]).is_relative_to(place)
    assert answer["sources"] == {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sources.items()}
