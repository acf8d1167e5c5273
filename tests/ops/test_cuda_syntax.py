"""Every kernel body, with cuda.h, is CUDA that nvcc compiles. Skipped where there is no nvcc; no GPU is needed."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from energy_flow_mlx.ops import kernel
from energy_flow_mlx.ops.adamw import AdamStep, adamw

from . import (
    test_advance,
    test_bias_gelu_norm,
    test_collect_kernel,
    test_gru_gates,
    test_heads,
    test_masked_mean,
    test_neuron,
    test_spawn_kernel,
)

TYPES = {
    mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16",
    mx.int32: "int32_t", mx.uint32: "uint32_t", mx.bool_: "bool",
}  # fmt: skip
PRELUDE = """
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
template <typename T> struct List {
    T values[10];
    __device__ T operator[](int i) const { return values[i]; }
};
using Shape = List<int32_t>;
using Strides = List<int64_t>;
"""

ALL = (mx.float32, mx.float16, mx.bfloat16)


def moves() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """advance in its four forms; only what the carrier gives is in 16 bits."""
    given = test_advance.arguments(9)

    def form(noise: mx.array | None, reflection: bool) -> Callable[..., Any]:
        return lambda displacement, energy: test_advance.advance(
            displacement, energy, *given[2:4], noise, *given[5:], width=7, height=5, reflection=reflection, kernels=True
        )

    return [(form(noise, reflection), given[:2]) for noise in (None, given[4]) for reflection in (False, True)]


def neurons() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """Its weights are float32; the result may have 16 bits."""
    given = test_neuron.arguments(9, 8, 5)
    return [
        (test_neuron.of_arrays(test_neuron.neuron, kernels=True, padded=8, bound=bound, dtype=dtype), given)
        for bound, dtype in ((None, mx.float32), (10.0, mx.bfloat16))
    ]


def steps() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    step = AdamStep(mx.ones((7,)), mx.ones((3,)), mx.array([True]))

    def update(*tensors: mx.array) -> Any:
        return mx.stop_gradient(adamw(*tensors, step, 1, kernels=True)[0])

    return [(update, [mx.ones((5,))] * 4)]


# op -> functions with their arguments, and the dtypes to give those that are floats.
CALLS: dict[str, tuple[list[tuple[Callable[..., Any], list[mx.array]]], tuple[mx.Dtype, ...]]] = {
    "adamw": (steps(), (mx.float32,)),
    "advance": (moves(), ALL),
    "bias_gelu_norm": (test_bias_gelu_norm.calls(), ALL),
    "collect": (test_collect_kernel.calls(), ALL),
    "gru_gates": ([(test_gru_gates.kernel, test_gru_gates.arguments(9, size)) for size in (8, 5)], ALL),
    "heads": ([(test_heads.scaled(test_heads.kernel), test_heads.arguments(9, 16, 8))], ALL),
    "masked_mean": ([(test_masked_mean.kernel, test_masked_mean.arguments(3, 9, 33))], ALL),
    "neuron": (neurons(), (mx.float32,)),
    "spawn": (test_spawn_kernel.calls(), (mx.float32,)),
}


class Recorder:
    """Stands for `mx.fast.cuda_kernel`: writes the source MLX would compile, and gives zeros."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}

    def cuda_kernel(
        self, name: str, input_names: Sequence[str], output_names: Sequence[str], source: str, header: str
    ) -> Callable[..., list[mx.array]]:
        def run(
            inputs: Sequence[mx.array],
            template: Sequence[tuple[str, Any]],
            output_shapes: Sequence[Sequence[int]],
            output_dtypes: Sequence[mx.Dtype],
            **_: Any,
        ) -> list[mx.array]:
            parameters = []
            for parameter, array in zip(input_names, inputs, strict=True):
                parameters.append(f"const {TYPES[array.dtype]}* {parameter}")
                for suffix, kind in (("shape", "Shape"), ("strides", "Strides"), ("ndim", "int")):
                    if f"{parameter}_{suffix}" in source:
                        parameters.append(f"const __grid_constant__ {kind} {parameter}_{suffix}")
            outputs = zip(output_names, output_dtypes, strict=True)
            parameters += [f"{TYPES[dtype]}* {parameter}" for parameter, dtype in outputs]
            constants = [
                f"using {key} = {TYPES[value]};" if isinstance(value, mx.Dtype)
                else f"constexpr {type(value).__name__} {key} = {str(value).lower()};"
                for key, value in template
            ]  # fmt: skip
            place = f"kernel_{len(self.sources)}"
            text = "\n".join(
                [f"namespace {place} {{", header, f"__global__ void {name}(", ", ".join(parameters), ") {", *constants,
                 f'#line 1 "{name}"', source, "}", "}"]
            )  # fmt: skip
            self.sources.setdefault(text.replace(place, "PLACE"), text)
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

        return run


def differentiate(function: Callable[..., Any], arguments: Sequence[mx.array], dtype: mx.Dtype) -> None:
    """Call `function`, and its vjp where it has floating-point results, with float arguments in `dtype`."""
    arguments = [x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x for x in arguments]
    floats = [i for i, x in enumerate(arguments) if mx.issubdtype(x.dtype, mx.floating)]

    def outputs(*given: mx.array) -> list[mx.array]:
        filled = dict(enumerate(arguments)) | dict(zip(floats, given, strict=True))
        results = function(*filled.values())
        results = list(results) if isinstance(results, (tuple, list)) else [results]
        mx.eval([x for x in results if not mx.issubdtype(x.dtype, mx.floating)])
        return [x for x in results if mx.issubdtype(x.dtype, mx.floating)]

    primals = [arguments[i] for i in floats]
    cotangents = [mx.ones_like(x) for x in outputs(*primals)]
    mx.eval(mx.vjp(outputs, primals, cotangents) if cotangents else [])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("op", CALLS)
def test_compiles_as_cuda(op: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder()
    monkeypatch.setattr(kernel, "backend", lambda: "cuda")
    monkeypatch.setattr(mx.fast, "cuda_kernel", recorder.cuda_kernel)
    kernel.build.cache_clear()
    try:
        calls, dtypes = CALLS[op]
        for function, arguments in calls:
            for dtype in dtypes:
                differentiate(function, arguments, dtype)
    finally:
        kernel.build.cache_clear()
    assert recorder.sources
    source = tmp_path / f"{op}.cu"
    source.write_text(PRELUDE + "\n".join(recorder.sources.values()), encoding="utf-8")
    command = ["nvcc", "-std=c++20", "-arch=sm_90", "-ptx", "-Xcicc", "-O0", "-o", str(tmp_path / "out.ptx"), str(source)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_source_is_tried() -> None:
    folder = next(f for f in kernel.folders() if f.is_dir())
    assert {file.stem for file in folder.glob("*.metal")} == set(CALLS)
