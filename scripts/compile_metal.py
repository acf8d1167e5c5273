"""Compile every Metal source that the package hands to MLX with Apple's own compiler: `python scripts/compile_metal.py`.

On a Mac with Xcode, GPU or not: each source, behind MLX's own prelude, goes through `xcrun -sdk macosx metal -std=metal3.1 -c`, and
through the newest language that the installed compiler takes. (Xcode 26 brings the compiler with `xcodebuild -downloadComponent
MetalToolchain`.) On another machine `--to FOLDER` writes the sources, to be taken to a Mac. The sources are those of a training step,
of an evaluation and of every op by itself, for all presets and dtypes; they are read out of MLX's graphs, which needs no Metal.

Exit code 0: all compile, 1: some do not, 2: there is no compiler here, or an argument is refused.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import mlx.core as mx

ROOT = Path(__file__).resolve().parents[1]
# The harness of the tests reads a launch out of MLX's graph; the package itself has no need of it.
sys.path.insert(0, str(ROOT / "tests"))

from metal_cpu.capture import Launch, record_call  # noqa: E402

from energy_flow_mlx.benchmark.work import make_model  # noqa: E402
from energy_flow_mlx.config import PRESETS, EnergyConfig  # noqa: E402
from energy_flow_mlx.doctor.cases import CASES, both, floating, leaves, training_step  # noqa: E402
from energy_flow_mlx.nn import gru  # noqa: E402
from energy_flow_mlx.nn.precision import DTYPES  # noqa: E402
from energy_flow_mlx.ops import host, kernel  # noqa: E402

OLDEST = "metal3.1"  # what MLX asks for on macOS 14
NEWER = ("metal4.1", "metal4.0", "metal3.2")  # newest first: macOS 27, 26 and 15
PRELUDE = Path(mx.__file__).resolve().parent / "include" / "mlx" / "backend" / "metal" / "kernels" / "utils.h"


class Failure(NamedTuple):
    """A source that a compiler refused."""

    name: str
    standard: str
    message: str


def captured(presets: Sequence[str], dtypes: Sequence[str]) -> list[Launch]:
    """One launch for each distinct source and size; nothing is evaluated."""
    launches: dict[Any, Launch] = {}
    with recorded(launches):
        for preset in presets:
            for dtype in dtypes:
                config = EnergyConfig.preset(preset).replace(compute_dtype=dtype, gradient_accumulation_steps=1)
                # Moves are alike: of three, one is the first, one the last and one between them.
                config = config.replace(lattice_depth=min(config.lattice_depth, 6))
                training_step(config)
                evaluation(config)
                for make in CASES.values():
                    case = make(config, config.batch_size, DTYPES[dtype])
                    outputs = leaves(case.function(True, *case.arrays))
                    if case.floats:
                        cotangents = [mx.zeros(output.shape, output.dtype) for output in floating(outputs)]
                        both(case, True)(*case.arrays, *cotangents)
    return list(launches.values())


def evaluation(config: EnergyConfig) -> None:
    """The graph of a model in use: the embeddings of a batch, and the surfaces of its texts."""
    model = make_model(config, training=False, dropout=False)
    model(mx.zeros((config.batch_size, config.embedding_dim)))
    shape = (config.batch_size, config.text_max_length)
    model.text_encoder(mx.zeros(shape, mx.int32), mx.ones(shape, mx.int32))


@contextmanager
def recorded(launches: dict[Any, Launch]) -> Iterator[None]:
    """Inside, all kernels are on, in Metal, and give zeros; their launches are kept, one for each source and size."""
    make = kernel.build

    def build(op: str, body: str, names: tuple[str, ...], outputs: tuple[str, ...], atomic: bool) -> Any:
        def run(**call: Any) -> list[mx.array]:
            inputs = call.pop("inputs")
            arrays = tuple((array.shape, array.dtype) for array in inputs)
            key = (op, body, arrays, tuple(call["template"]), call["grid"], call["threadgroup"])
            if key not in launches:
                launches[key] = record_call(make(op, body, names, outputs, atomic), inputs, call, names)
            return [mx.zeros(*output) for output in zip(call["output_shapes"], call["output_dtypes"], strict=True)]

        return run

    with (
        mock.patch.object(gru, "orthogonal", lambda *shape: mx.zeros(shape)),  # the initial weights that are not lazy
        mock.patch.object(kernel, "build", build),
        mock.patch.object(kernel, "backend", lambda: "metal"),
        mock.patch.object(host, "by_host", lambda op: False),  # nothing is evaluated: NumPy reads its inputs
        mock.patch.dict("os.environ", {kernel.VARIABLE: "on"}),
    ):
        yield


def sources(launches: Sequence[Launch]) -> dict[str, str]:
    """What MLX gives the compiler, by the kernel's name: the file its prelude is made of, whose includes lie beside it, and the source."""
    prelude = f'#include "{PRELUDE.relative_to(PRELUDE.parents[4])}"\n'
    return {launch.name: prelude + launch.source for launch in launches}


def write(folder: Path, texts: dict[str, str]) -> list[Path]:
    """A file for each source, numbered: the names of kernels are too long for files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (name, text) in enumerate(sorted(texts.items())):
        files.append(folder / f"{number:03d}_{name.removeprefix('custom_kernel_')[:40]}.metal")
        files[-1].write_text(text, encoding="utf-8")
    return files


def compile_file(file: Path, standard: str) -> Failure | None:
    """Apple's compiler, with MLX's headers in reach."""
    includes = f"-I{PRELUDE.parents[4]}"
    command = ["xcrun", "-sdk", "macosx", "metal", f"-std={standard}", includes, "-c", str(file), "-o", str(file.with_suffix(".air"))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    return Failure(file.name, standard, ended.stderr.strip() or ended.stdout.strip()) if ended.returncode else None


def standards(folder: Path) -> tuple[list[str], str]:
    """The oldest and, where the installed compiler takes one, the newest language; and what it says to the oldest if it fails."""
    probe = folder / "probe.metal"
    probe.write_text("#include <metal_stdlib>\nkernel void probe(device float* y [[buffer(0)]]) { y[0] = 1; }\n", encoding="utf-8")
    failed = compile_file(probe, OLDEST)
    if failed is not None:
        return [], failed.message
    newest = next((standard for standard in NEWER if compile_file(probe, standard) is None), None)
    return [OLDEST, *([newest] if newest else [])], ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=PRESETS, help="default: all")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="of activations (default: all)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write the sources there and compile nothing")
    options = parser.parse_args(argv)
    if options.to is None and shutil.which("xcrun") is None:
        print("error: there is no xcrun here: Apple's compiler comes with Xcode, on a Mac (--to FOLDER writes the sources)", file=sys.stderr)
        return 2
    if options.to is not None and options.to.exists() and (not options.to.is_dir() or any(options.to.iterdir())):
        print(f"error: --to {options.to}: it has to be a new or an empty folder", file=sys.stderr)
        return 2
    texts = sources(captured(options.preset, options.dtype))
    if options.to is not None:
        print(f"{len(write(options.to, texts))} sources in {options.to}; they need -I{PRELUDE.parents[4]}")
        return 0
    with tempfile.TemporaryDirectory(prefix="energy-flow-metal-") as name:
        folder = Path(name)
        languages, said = standards(folder)
        if not languages:
            print(f"error: xcrun is here, but compiles nothing:\n{said}\n(Xcode 26: xcodebuild -downloadComponent MetalToolchain)", file=sys.stderr)
            return 2
        files = write(folder / "sources", texts)
        with ThreadPoolExecutor() as workers:
            tried = list(workers.map(compile_file, files * len(languages), [s for s in languages for _ in files]))
    failures = [failure for failure in tried if failure is not None]
    for failure in failures:
        print(f"{failure.name} does not compile as {failure.standard}:\n{failure.message}\n")
    print(f"{len(tried) - len(failures)} of {len(tried)} compile: {len(files)} sources as {' and '.join(languages)}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
