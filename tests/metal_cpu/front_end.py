"""A second front end for captured kernels: clang's C++ for OpenCL, whose address spaces are Metal's. Nothing is run. See README.md.

It is the compiler alone that speaks here: it lets no `device` pointer meet a `threadgroup` one, wants program-scope and static
variables in `constant`, and knows neither variable-length arrays nor function pointers. What it takes and Metal does not, `syntax_tree`
finds: generic memory, recursion, lambdas. Two rules are OpenCL's alone: a kernel is no template, so that its template arguments become
constants of its body, and both sides of its `if constexpr` have to compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .capture import Launch
from .compile import HERE, zig, zig_environment
from .rewrite import ATTRIBUTE, COMMENT
from .syntax_tree import scan

HEADER = HERE / "opencl" / "metal.h"
KERNEL = re.compile(r"(?:template <([^<>]*)>\s*)?\[\[kernel\]\] void (\w+)\((.*?)\) \{", re.DOTALL)
INSTANCE = re.compile(r"^template \[\[host_name\([^\n]*$", re.MULTILINE)
LINE = re.compile(r"^\s*#\s*line\b[^\n]*$", re.MULTILINE)  # reports are to name lines of `launch.source`
# An error, and where a template of the header that holds it was asked for.
REPORT = re.compile(
    r"^(?:(\d+)\.metal|[^\n:]+):(\d+):\d+: (error: |fatal error: |note: in instantiation of )(.*)", re.MULTILINE
)
# Metal has 16-bit floats, and no double; memory without an address space is generic, for `scan` to find. A fixed target: any machine.
FLAGS = [
    "-cc1",
    "-triple",
    "spir64",
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space",
    "-fsyntax-only",
    "-ferror-limit",
    "0",
    "-w",
    "-ast-dump",
]


def front_end(launches: Iterable[Launch]) -> dict[str, list[str]]:
    """What this front end has against each kernel, by name: nothing, or errors with lines of `launch.source`, and what `scan` found.

    One process compiles all of them, some 20 ms each.
    """
    named = {launch.name: launch for launch in launches}
    found: dict[str, list[str]] = {name: [] for name in named}
    names = list(named)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.clcpp" for number in range(len(names))]
        for number, (file, launch) in enumerate(zip(files, named.values(), strict=True)):
            file.write_text(f'#include "{HEADER}"\n#line 1 "{number}.metal"\n{to_opencl(launch)}', encoding="utf-8")
        report = Path(folder) / "report"
        with report.open("w", encoding="utf-8") as errors:
            trees = 0
            for name, tree in zip(names, _trees(files, errors.fileno()), strict=False):
                found[name] += tree
                trees += 1
        text = report.read_text(encoding="utf-8")
    if trees != len(files):
        raise RuntimeError(f"clang compiled {trees} of {len(files)} sources:\n{text}")
    in_header = ""
    for number, line, kind, message in REPORT.findall(text):
        if "error" in kind and in_header:
            break
        if number and ("error" in kind or in_header):
            found[names[int(number)]].append(f"line {line}: {in_header or message}")
            in_header = ""
        elif "error" in kind:
            in_header = message
    if in_header:
        raise RuntimeError(f"the front end's own header does not compile:\n{text}")
    return {name: list(dict.fromkeys(messages)) for name, messages in found.items()}


def to_opencl(launch: Launch) -> str:
    """The generated source as C++ for OpenCL, over `opencl/metal.h`. Lines keep their numbers."""
    source = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), launch.source)
    source = LINE.sub("", INSTANCE.sub("", source))
    match = KERNEL.search(source)
    assert match is not None, f"{launch.name}: MLX generated no kernel"
    template, name, parameters = match.groups()
    constants = []
    if template is not None:
        values = launch.entry[launch.entry.index("<") + 1 : -1].split(", ")
        for parameter, value in zip(template.split(", "), values, strict=True):
            kind, word = parameter.rsplit(" ", 1)
            constants.append(
                f"typedef {value} {word};" if kind == "typename" else f"constexpr {kind} {word} = {value};"
            )
    newlines = "\n" * (match.group().count("\n") - parameters.count("\n"))
    head = f"{newlines}__kernel void {name}({ATTRIBUTE.sub('', parameters)}) {{ {' '.join(constants)}"
    return source[: match.start()] + head + source[match.end() :]


def _trees(files: Sequence[Path], errors: int) -> Iterator[list[str]]:
    """What `scan` says to each file's syntax tree, in their order; clang's errors go to the open file `errors`."""
    command = [zig(), "clang", *FLAGS, *map(str, files)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", env=zig_environment()
    ) as clang:
        assert clang.stdout is not None
        tree: list[str] | None = None
        for line in clang.stdout:
            if line.startswith("TranslationUnitDecl "):
                if tree is not None:
                    yield scan(tree)
                tree = []
            elif tree is not None:
                tree.append(line.rstrip("\n"))
        if tree is not None:
            yield scan(tree)
