"""Compile a captured kernel into a shared library, with the clang of the PyPI package `ziglang`."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx

from .capture import KernelError, Launch
from .rewrite import to_cpp

HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim"
RUNTIME = HERE / "runtime"
MLX_INCLUDE = Path(mx.__file__).resolve().parent / "include"
PRELUDE = "mlx/backend/metal/kernels/utils.h"  # MLX puts this text before every custom kernel

COMMON_FLAGS = [
    "-std=c++17",
    "-g0",
    "-fPIC",
    "-nostdlib",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-ffp-contract=off",
    "-fvisibility=hidden",
]
KERNEL_FLAGS = [
    "-nostdinc",
    "-nostdinc++",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fno-math-errno",
    "-fno-lax-vector-conversions",
    "-Wno-unused-value",
    "-Wimplicit-float-conversion",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
]  # the last line: 16-bit arithmetic rounds after every operation, as on the GPU
# Through -Xclang: the instrumentation alone; the runtime answers it, so no sanitizer library is needed.
CHECK_FLAGS = [
    "-O1",
    "-Xclang",
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-read-before-write",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-Xclang",
    "-fsanitize=array-bounds,integer-divide-by-zero,float-cast-overflow,shift-exponent,alignment",
    "-Xclang",
    "-fsanitize-coverage-type=2",
    "-Xclang",
    "-fsanitize-coverage-trace-pc",
]
FAST_FLAGS = ["-O2"]
RUNTIME_PARTS = ("launch.cpp", "scheduler.cpp", "fibers.cpp", "checks.cpp")
# Rounding to bfloat16 must be spelled out in MSL; clang would do it silently, so its warning is made an error.
TO_BFLOAT = re.compile(r"warning: implicit conversion loses [^\n]* to '(?:[^'\n]*' \(aka ')?__bf16'")


class KernelCompileError(KernelError):
    """The kernel is not valid Metal (or uses something that the shim lacks)."""


def build(launch: Launch, *, checked: bool) -> ctypes.CDLL:
    """The library that runs `launch`; compiled once for each source and kept in the user's cache directory.

    Raises:
        KernelCompileError: with clang's report, which shows the line of the generated source.
    """
    return _build(launch.name, translation_unit(launch), checked)


@functools.cache
def _build(name: str, unit: str, checked: bool) -> ctypes.CDLL:
    flags = [*COMMON_FLAGS, *_machine_flags(), *KERNEL_FLAGS, *(CHECK_FLAGS if checked else FAST_FLAGS)]
    key = hashlib.sha256("\0".join([unit, *flags, _tool_fingerprint()]).encode()).hexdigest()[:32]
    library = _cache_directory() / f"{key}.so"
    if not library.exists():
        objects = [str(_runtime_object(part)) for part in RUNTIME_PARTS]
        with tempfile.TemporaryDirectory(dir=_cache_directory()) as scratch:
            source, built = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.so"
            source.write_text(unit)
            includes = [f"-I{folder}" for folder in (SHIM, MLX_INCLUDE, RUNTIME)]
            report = _clang([*flags, *includes, "-shared", *_link_flags(), str(source), *objects, "-o", str(built)])
            if TO_BFLOAT.search(report):
                report = TO_BFLOAT.sub(lambda m: m.group().replace("warning:", "error:"), report)
            if not built.exists() or TO_BFLOAT.search(report.replace("error:", "warning:")):
                raise KernelCompileError(f"{name} does not compile as Metal:\n{report}")
            os.replace(built, library)
    # expf and its kin stay undefined in the library and are found in the process.
    if (math := ctypes.util.find_library("m")) is not None:
        ctypes.CDLL(math, mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library))


def translation_unit(launch: Launch) -> str:
    """The C++ file: shim, MLX's prelude, the generated source under its own line numbers, and one entry point."""
    values = []
    for number, argument in enumerate(launch.arguments):
        qualifier = argument.address_space if argument.role == "output" else f"const {argument.address_space}"
        values.append(f"{'*' if argument.by_reference else ''}({qualifier} {argument.type}*)arguments[{number}]")
    for kind, attribute in launch.attributes:
        parts = [f"info->{attribute}[{d}]" for d in range(3)]
        values.append(f"make_vector<uint3>({', '.join(parts)})" if kind == "uint3" else f"info->{attribute}")
    return "\n".join(
        [
            "#include <metal_stdlib>",
            f'#line 1 "{PRELUDE}"',
            to_cpp((MLX_INCLUDE / PRELUDE).read_text()).replace("#pragma once", ""),
            f'#line 1 "{launch.name}.metal"',
            to_cpp(launch.source),
            '#line 1 "entry point"',
            '#include "thread_info.h"',
            'extern "C" __attribute__((no_sanitize("thread", "undefined")))',
            "void metal_cpu_kernel(void** arguments, const ThreadInfo* info) {",
            f"  {launch.entry}({', '.join(values)});",
            "}",
            "",
        ]
    )


def _runtime_object(part: str) -> Path:
    """The scheduler or the checker, compiled once."""
    flags = [*COMMON_FLAGS, *_machine_flags(), "-O2"]
    key = hashlib.sha256("\0".join([part, *flags, _tool_fingerprint()]).encode()).hexdigest()[:32]
    built = _cache_directory() / f"{key}.o"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=_cache_directory()) as scratch:
            fresh = Path(scratch) / "runtime.o"
            report = _clang([*flags, "-c", str(RUNTIME / part), "-o", str(fresh)])
            if not fresh.exists():
                raise RuntimeError(f"the harness itself does not compile:\n{report}")
            os.replace(fresh, built)
    return built


def _clang(arguments: list[str]) -> str:
    """Run the compiler and return what it says; whether it succeeded is told by the file it was to write."""
    command = [zig(), "c++", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=zig_environment()).stderr


@functools.cache
def zig() -> str:
    """The compiler's program; `python -m ziglang` starts an interpreter to find it, for a thousand kernels half a minute."""
    try:
        distribution = importlib.metadata.distribution("ziglang")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("the clang that compiles the kernels comes from PyPI: pip install ziglang") from error
    return str(distribution.locate_file("ziglang/zig"))


def zig_environment() -> dict[str, str]:
    """Environment variables for `ziglang`, which keeps what it builds where the harness does."""
    cache = str(_cache_directory() / "zig")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}


def _machine_flags() -> list[str]:
    """A fixed target and CPU, so that the cache still runs on another machine and macOS needs no Xcode."""
    arm = platform.machine() in ("arm64", "aarch64")
    target = ["-target", f"{'aarch64' if arm else 'x86_64'}-macos"] if sys.platform == "darwin" else []
    return target + ([] if arm else ["-mcpu=x86_64_v3"])  # which converts fp16 in hardware


def _link_flags() -> list[str]:
    return ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []


@functools.cache
def _tool_fingerprint() -> str:
    """Changes with the compiler, the shim, the runtime and MLX's prelude."""
    files = sorted(f for folder in (SHIM, RUNTIME) for f in folder.rglob("*") if f.is_file())
    prelude = MLX_INCLUDE / PRELUDE
    if not prelude.exists():
        raise FileNotFoundError(f"{prelude}: this build of mlx ships no Metal prelude; the wheels from PyPI do")
    zig()  # or it says what to install
    digest = hashlib.sha256(f"{importlib.metadata.version('ziglang')} {sys.platform} {platform.machine()}".encode())
    for file in [*files, prelude]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / (
        ".cache" if sys.platform != "darwin" else "Library/Caches"
    )
    folder = Path(base) / "energy_flow_mlx" / "metal_cpu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
