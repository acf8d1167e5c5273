"""The numbers of docs/metal.md: what every kernel that the presets launch asks of a GPU, beside what Metal has. No GPU is needed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from compile_metal import captured
from metal_cpu import compile as harness
from metal_cpu.capture import Launch
from metal_cpu.rewrite import to_cpp

from energy_flow_mlx.config import PRESETS
from energy_flow_mlx.nn.precision import DTYPES
from energy_flow_mlx.ops import kernel

THREADGROUP_BYTES = 32 * 1024
MOST_IN_A_GROUP = 512  # 1,024 is Metal's own limit, less where a kernel takes many registers
BUFFERS = 31
TABLE = Path(__file__).resolve().parents[2] / "docs" / "metal.md"

OP = re.compile(rf"custom_kernel_({'|'.join(kernel.ops())})_([a-z]+)_[0-9a-f]{{12}}")
DECLARATION = re.compile(r"\btypedef [^;]*?(\w+_storage)\b[^;]*; threadgroup ")


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    """Of a training step at the preset's batch, an evaluation, and every op by itself, in all dtypes."""
    return captured(PRESETS, list(DTYPES))


def by_op(launches: Iterable[Launch]) -> dict[str, list[Launch]]:
    sorted_out: dict[str, list[Launch]] = {}
    for launch in launches:
        found = OP.match(launch.name)
        assert found, launch.name
        sorted_out.setdefault(found[1], []).append(launch)
    return sorted_out


def threadgroup_bytes(launches: Iterable[Launch], folder: Path) -> dict[str, int]:
    """By kernel, as a compiler counts them: all sources in one C++ file, each in a namespace, with an error that shows each sum."""
    launches = list({launch.name: launch for launch in launches if "threadgroup " in launch.source}.values())
    parts = ["#include <metal_stdlib>", to_cpp((harness.MLX_INCLUDE / harness.PRELUDE).read_text()).replace("#pragma once", "")]
    parts.append("template <int NUMBER, unsigned long BYTES> struct Shown;")
    asked = []
    for number, launch in enumerate(launches):
        source = to_cpp(launch.source)
        names = DECLARATION.findall(source)
        if not names:
            continue
        asked.append(number)
        last = source.rindex("\n}\n")  # of the kernel's body
        total = " + ".join(f"sizeof({name})" for name in names)
        source = f"{source[:last]}\nShown<{number}, {total}> shown;{source[last:]}"
        macros = "\n".join(f"#undef {name}" for name in re.findall(r"^#define (\w+)", source, re.MULTILINE))
        parts.append(f"namespace kernel_{number} {{\n{source}\n}}\n{macros}")
    file = folder / "bytes.cpp"
    file.write_text("\n".join(parts))
    includes = [f"-I{path}" for path in (harness.SHIM, harness.MLX_INCLUDE, harness.RUNTIME)]
    flags = [*harness.COMMON_FLAGS, *harness._machine_flags(), *harness.KERNEL_FLAGS, "-ferror-limit=0", "-fsyntax-only"]
    report = harness._clang([*flags, *includes, str(file)])
    shown = {int(number): int(size) for number, size in re.findall(r"Shown<(\d+), (\d+)(?:UL|ULL)?>'?", report)}
    others = [line for line in report.splitlines() if " error: " in line and "Shown<" not in line]
    assert not others, "\n".join(others[:10])
    assert sorted(shown) == asked
    return {launches[number].name: size for number, size in shown.items()}


def measured(launches: list[Launch], folder: Path) -> dict[str, tuple[int, int, int, int, int]]:
    """By op: threads of a group, bytes of threadgroup memory, buffers, elements of an array and threads of a grid, each at most."""
    size = threadgroup_bytes(launches, folder)
    return {
        op: (
            max(math.prod(launch.threadgroup) for launch in own),
            max(size.get(launch.name, 0) for launch in own),
            max(len(launch.arguments) for launch in own),
            max(math.prod(shape) for launch in own for shape in (*launch.input_shapes, *launch.output_shapes)),
            max(math.prod(launch.grid) for launch in own),
        )
        for op, own in sorted(by_op(launches).items())
    }


def test_no_kernel_asks_for_more_than_metal_has_and_the_table_says_what_it_asks(launches: list[Launch], tmp_path: Path) -> None:
    found = measured(launches, tmp_path)
    assert tuple(found) == kernel.ops()
    rows = []
    for op, (group, size, buffers, elements, grid) in found.items():
        assert group <= MOST_IN_A_GROUP, op
        assert size <= THREADGROUP_BYTES, op
        assert buffers <= BUFFERS, op
        assert elements <= kernel.MOST_ELEMENTS and grid <= kernel.MOST_THREADS, op
        rows.append(f"| {op} | {group} | {size:,} | {buffers} | {elements:,} | {grid:,} |")
    written = TABLE.read_text(encoding="utf-8").splitlines()
    missing = [row for row in rows if row not in written]
    assert not missing, "docs/metal.md lacks these rows:\n" + "\n".join(missing)


def test_groups_are_whole_simd_groups(launches: list[Launch]) -> None:
    for launch in launches:
        assert launch.threadgroup[1:] == (1, 1) and launch.threadgroup[0] % 32 == 0, launch.name
        assert launch.grid[0] % launch.threadgroup[0] == 0, launch.name  # no group is smaller than the others


def test_names_are_none_of_mlx_and_apple(launches: list[Launch]) -> None:
    """Macros of MLX's prelude would change what a source says: none of them is a word of ours."""
    kernels = harness.MLX_INCLUDE / harness.PRELUDE
    headers = [kernels, *(kernels.parent / f"{name}.h" for name in ("bf16", "bf16_math", "complex", "defines", "logging"))]
    macros = {name for file in headers for name in re.findall(r"^\s*#\s*define\s+(\w+)", file.read_text(), re.MULTILINE)}
    assert "MTL_CONST" in macros  # else they are looked for in the wrong place
    for op in kernel.ops():
        included = kernel.INCLUDE.findall(kernel.source_file(f"{op}.metal"))
        text = "\n".join(kernel.source_file(name) for name in ("metal.h", "common.h", *included, f"{op}.metal"))
        text = re.sub(r"^#ifdef __CUDACC__$.*?^#else$", "", text, flags=re.MULTILINE | re.DOTALL)
        words = set(re.findall(r"\w+", re.sub(r"//.*", "", text)))
        assert not words & macros, op
        assert not {word for word in words if word.startswith(("__", "MTL", "METAL", "air_"))}, op
