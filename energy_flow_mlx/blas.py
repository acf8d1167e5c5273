"""A faster BLAS for MLX's CPU backend on Linux. Imported before MLX: a library that MLX has bound stays bound.

MLX's Linux wheel brings the reference BLAS, which runs on one core and without blocking. Where the system has OpenBLAS, loading
it with RTLD_GLOBAL first makes the dynamic linker resolve MLX's `cblas_sgemm` to it. docs/performance.md has the factor.
`ENERGY_FLOW_BLAS` is `auto` (also when unset), `off`, or the path of a library with the C interface of BLAS.
"""

import ctypes
import importlib.metadata
import logging
import os
import sys

logger = logging.getLogger(__name__)

VARIABLE = "ENERGY_FLOW_BLAS"
# Sonames, which the dynamic linker looks up in its cache and in LD_LIBRARY_PATH. Fedora's libopenblas.so.0 has no threads.
SONAMES = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so")
_REFERENCE = "the reference BLAS of MLX's wheel"

_description = ""


class BlasError(OSError):
    """`ENERGY_FLOW_BLAS` names something that is no BLAS; the text says what is accepted."""


def description() -> str:
    """One line for a run's header: which BLAS the products on the CPU use, and why. Empty where MLX's wheel has its own means."""
    return _description


def prefer_system_blas() -> None:
    """Load OpenBLAS, if this is Linux, MLX is its CPU build and was not imported yet, and a library is found.

    Raises:
        BlasError: ENERGY_FLOW_BLAS is a path that cannot be loaded or has no `cblas_sgemm`, or is no accepted word.
    """
    global _description
    wanted = os.environ.get(VARIABLE, "auto")
    if sys.platform != "linux" or not _cpu_build():
        return
    _description = _load(wanted)
    logger.info("products on the CPU use %s", _description)


def _load(wanted: str) -> str:
    if wanted == "off":
        return f"{_REFERENCE} ({VARIABLE}=off)"
    if wanted != "auto" and "/" not in wanted:
        raise BlasError(f"{VARIABLE}={wanted!r}: accepted are auto, off, or the path of a BLAS library")
    if _has_gemm(ctypes.CDLL(None)):
        return "a BLAS that was loaded before (LD_PRELOAD)"
    if "mlx.core" in sys.modules:
        return f"{_REFERENCE}: MLX was imported before energy_flow_mlx, so a faster one can no longer be bound"
    for name in SONAMES if wanted == "auto" else (wanted,):
        try:
            # Looked at before it becomes global: what has no C interface must not shadow anything.
            if _has_gemm(ctypes.CDLL(name, mode=ctypes.RTLD_LOCAL)):
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
                return name
            failure = "it has no cblas_sgemm"
        except OSError as error:
            failure = str(error)
        if wanted != "auto":
            raise BlasError(f"{VARIABLE}={wanted}: {failure}")
    return f"{_REFERENCE}; with OpenBLAS (Debian: libopenblas0-pthread) they are many times faster"


def _has_gemm(library: ctypes.CDLL) -> bool:
    return hasattr(library, "cblas_sgemm")


def _cpu_build() -> bool:
    """Whether MLX's wheel with the CPU backend is installed, and none with CUDA, which would have overwritten it."""

    def installed(name: str) -> bool:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    return installed("mlx-cpu") and not any(installed(name) for name in ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13"))
