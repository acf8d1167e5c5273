"""A faster BLAS for MLX's CPU backend on Linux. Must run before MLX is imported, because symbols are bound only once.

MLX's Linux wheel contains the reference BLAS, which is single-threaded and has no cache blocking. If the system has
OpenBLAS, loading it first with RTLD_GLOBAL makes the dynamic linker resolve MLX's `cblas_sgemm` to it;
docs/performance.md has the speedup. `ENERGY_FLOW_BLAS` is `auto` (the default), `off`, or the path of a library with
the C interface of BLAS.
"""

import ctypes
import importlib.metadata
import logging
import os
import sys
import warnings

logger = logging.getLogger(__name__)

VARIABLE = "ENERGY_FLOW_BLAS"
# Looked up by the dynamic linker. On Fedora libopenblas.so.0 is single-threaded, hence libopenblasp.so.0 first.
SONAMES = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so")
# Read by OpenBLAS as it is loaded: its threads wait for work 2 to this power of cycles before they sleep. By itself it is 26, some 25 ms,
# in which they take the cores from what runs between two products.
SPIN, SHORT = "OPENBLAS_THREAD_TIMEOUT", "10"
_REFERENCE = "the reference BLAS of MLX's wheel"

_description = ""


class BlasError(OSError):
    """`ENERGY_FLOW_BLAS` does not name a BLAS library; the message says what is accepted."""


def description() -> str:
    """Which BLAS matrix products on the CPU use, and why, in one line. Empty unless MLX is its Linux CPU build."""
    return _description


def prefer_system_blas() -> None:
    """Load OpenBLAS on Linux, if MLX is its CPU build, was not imported yet, and the library is found.

    Raises:
        BlasError: ENERGY_FLOW_BLAS is a path that cannot be loaded or has no `cblas_sgemm`, or is neither a path nor
            `auto` nor `off`.
    """
    global _description
    setting = os.environ.get(VARIABLE, "auto")
    if sys.platform != "linux" or not _cpu_build():
        return
    _description = _load(setting)
    logger.info("matrix products on the CPU use %s", _description)


def _load(setting: str) -> str:
    if setting == "off":
        return f"{_REFERENCE} ({VARIABLE}=off)"
    if setting != "auto" and "/" not in setting:
        raise BlasError(f"{VARIABLE}={setting!r}: accepted are auto, off, or the path of a BLAS library")
    if _has_gemm(ctypes.CDLL(None)):
        return "a BLAS that was already loaded (LD_PRELOAD)"
    late = "mlx.core" in sys.modules
    os.environ.setdefault(SPIN, SHORT)
    for name in SONAMES if setting == "auto" else (setting,):
        try:
            # Checked before it is loaded globally: a library without the C interface must not shadow other symbols.
            if _has_gemm(ctypes.CDLL(name, mode=ctypes.RTLD_LOCAL)):
                if late:
                    return _too_late(name)
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
                return name
            failure = "it has no cblas_sgemm"
        except OSError as error:
            failure = str(error)
        if setting != "auto":
            raise BlasError(f"{VARIABLE}={setting}: {failure}")
    return f"{_REFERENCE}; OpenBLAS (Debian: libopenblas0-pthread) is many times faster"


def _too_late(name: str) -> str:
    """Warn that `name` is there and is not used. Python's symbols are bound by now, and stay so for the life of the process."""
    warnings.warn(
        f"MLX was imported before energy_flow_mlx, so that matrix products use {_REFERENCE}, which is many times slower than {name}: import "
        f"energy_flow_mlx first, or set {VARIABLE}=off if this is meant",
        stacklevel=5,
    )
    return f"{_REFERENCE}: MLX was imported before energy_flow_mlx, so that {name} can no longer be bound"


def _has_gemm(library: ctypes.CDLL) -> bool:
    return hasattr(library, "cblas_sgemm")


def _cpu_build() -> bool:
    """Whether MLX's CPU wheel is installed and no CUDA wheel, which would overwrite its files."""

    def installed(name: str) -> bool:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    return installed("mlx-cpu") and not any(installed(name) for name in ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13"))
