"""Compilation: functions traced once a shape and replayed, and kernels compiled ahead of their first call."""

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import RunConfig
from .cuda import planned
from .kernel import on_gpu

logger = logging.getLogger(__name__)

# mlx::core::CompileMode, and the function that sets it, of mlx/compile.h. Python reaches `disabled` and `enabled` alone.
_NO_FUSE, _ENABLED = 2, 3
_SET_MODE = "_ZN3mlx4core16set_compile_modeENS0_11CompileModeE"


def compiles(config: RunConfig) -> bool:
    """Whether the training step (and the benchmark's forward pass) is traced and replayed: as `compile_step` says; with `auto`, on a
    GPU, where Python takes longer to launch the kernels of a step than the device takes to run them. On a CPU it gains nothing."""
    if config.compile_step != "auto":
        return config.compile_step == "on"
    return on_gpu()


def plans_kernels() -> bool:
    """Whether compiling the kernels in parallel before the first call saves time: on CUDA, which compiles one at each first use."""
    return bool(mx.cuda.is_available()) and on_gpu()


def plan_kernels(function: Callable[..., Any], *arguments: Any) -> None:
    """Compile the kernels of a call in parallel before the real call, where `plans_kernels` is true.

    The function is called once with kernels that return zeros. This advances the state of `mx.random`: seed it afterwards.
    """
    if plans_kernels():
        with planned():
            function(*arguments)


def compiled(function: Callable[..., Any], *, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """`mx.compile` of a function, without the fusion of elementwise operations, except on Metal.

    Each fused group is a new kernel, which NVRTC (CUDA) or g++ (CPU) compiles in one to three seconds. The forty groups of a training
    step made its first call over a minute long and saved a few milliseconds per step at most. Metal compiles them quickly.
    """
    replayed = mx.compile(function, inputs=inputs, outputs=outputs)
    if mx.metal.is_available():
        return replayed

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with unfused():
            return replayed(*arguments)

    return run


@contextmanager
def unfused() -> Iterator[None]:
    """Trace functions under `mx.compile` without fusing their operations. Where MLX_DISABLE_COMPILE is set, nothing changes.

    Compilation is enabled afterwards, even if `mx.disable_compile` was called before: MLX does not expose that state.
    """
    set_mode = None if "MLX_DISABLE_COMPILE" in os.environ else _set_mode()
    if set_mode is None:
        yield
        return
    set_mode(_NO_FUSE)
    try:
        yield
    finally:
        set_mode(_ENABLED)


@functools.cache
def _set_mode() -> Callable[[int], None] | None:
    """MLX's own function; None, with a warning, where this build of MLX does not have it."""
    library = Path(mx.__file__).parent / "lib" / "libmlx.so"
    try:
        function = getattr(ctypes.CDLL(str(library)), _SET_MODE)
    except (OSError, AttributeError) as error:
        logger.warning("MLX fuses elementwise operations, and the first call takes that much longer: %s", error)
        return None
    function.argtypes, function.restype = [ctypes.c_int], None
    return function
