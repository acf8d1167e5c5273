"""Which BLAS MLX binds. Each case needs a process that has not imported MLX yet."""

import os
import subprocess
import sys

import pytest

from energy_flow_mlx import blas

PROGRAM = """
import energy_flow_mlx, mlx.core as mx, numpy as np
a, b = np.random.default_rng(0).standard_normal((2, 300, 300)).astype(np.float32)
assert np.abs(np.array(mx.array(a) @ mx.array(b)) - a @ b).max() < 1e-3
maps = open("/proc/self/maps").read()
print("openblas" if "libopenblas.so" in maps or "libopenblasp" in maps else "none", energy_flow_mlx.blas.description(), sep="|")
"""

linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or not blas._cpu_build(), reason="needs MLX's Linux wheel for CPUs"
)


def run(program=PROGRAM, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", blas.VARIABLE, blas.SPIN)}
    return subprocess.run(
        [sys.executable, "-c", program], env={**environment, **variables}, capture_output=True, text=True
    )


def has_openblas():
    return any(name in run().stdout for name in blas.SONAMES)


@linux_cpu
def test_openblas_is_bound_where_the_system_has_it():
    if not has_openblas():
        pytest.skip("no system OpenBLAS")
    loaded, description = run().stdout.strip().split("|")
    assert loaded == "openblas" and description in blas.SONAMES


@linux_cpu
@pytest.mark.parametrize(("given", "found"), [({}, blas.SHORT), ({blas.SPIN: "26"}, "26")])
def test_threads_of_openblas_wait_briefly_unless_the_variable_is_set(given, found):
    program = "import energy_flow_mlx, ctypes; get = ctypes.CDLL(None).getenv; get.restype = ctypes.c_char_p; "
    done = run(program + f"print(get(b'{blas.SPIN}').decode())", **given)
    assert done.stdout.strip() == found


@linux_cpu
def test_off_refuses():
    done = run(ENERGY_FLOW_BLAS="off")
    assert done.stdout.strip() == "none|the reference BLAS of MLX's wheel (ENERGY_FLOW_BLAS=off)"


@linux_cpu
def test_too_late_is_said():
    if not has_openblas():
        pytest.skip("no system OpenBLAS")
    done = run("import mlx.core" + PROGRAM)
    assert "MLX was imported before energy_flow_mlx" in done.stdout
    assert "<string>:2: UserWarning: MLX was imported before energy_flow_mlx" in done.stderr and "import energy_flow_mlx first" in done.stderr
    assert "UserWarning" not in run("import mlx.core" + PROGRAM, ENERGY_FLOW_BLAS="off").stderr + run().stderr


@linux_cpu
@pytest.mark.parametrize("value", ["on", "/no/such/library.so", "/lib/x86_64-linux-gnu/libm.so.6"])
def test_a_wrong_value_is_an_error(value):
    done = run(ENERGY_FLOW_BLAS=value)
    assert done.returncode != 0
    assert f"BlasError: ENERGY_FLOW_BLAS={value}" in done.stderr.replace("'", "")


def test_other_backends_are_left_alone(monkeypatch):
    monkeypatch.setattr(blas, "_description", "")
    monkeypatch.setattr(blas, "_cpu_build", lambda: False)
    monkeypatch.setattr(blas, "_load", lambda wanted: pytest.fail("looked for a library"))
    blas.prefer_system_blas()
    assert blas.description() == ""
