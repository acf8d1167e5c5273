"""Every kernel body, with cuda.h, is CUDA that nvcc compiles. Skipped where there is no nvcc; no GPU is needed."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from energy_flow_mlx.ops import kernel
from energy_flow_mlx.ops.cuda import cuda_source

from . import (
    test_adamw,
    test_advance,
    test_bias_gelu_norm,
    test_collect_kernel,
    test_embedding,
    test_flow_step,
    test_gru_gates,
    test_heads,
    test_inherit,
    test_masked_mean,
    test_neuron,
    test_norms,
    test_spawn_kernel,
)

ALL = (mx.float32, mx.float16, mx.bfloat16)


def moves() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """advance in its four forms; only what the carrier gives is in 16 bits."""
    given = test_advance.arguments(9)

    def form(noise: mx.array | None, reflection: bool) -> Callable[..., Any]:
        return lambda displacement, energy: test_advance.advance(
            displacement, energy, *given[2:4], noise, *given[5:], reflection=reflection, kernels=True
        )

    return [(form(noise, reflection), given[:2]) for noise in (None, given[4]) for reflection in (False, True)]


def neurons() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """Its weights are float32; the result may have 16 bits."""
    given = test_neuron.arguments(9, 8, 5)
    return [
        (test_neuron.of_arrays(test_neuron.neuron, kernels=True, padded=8, bound=bound, dtype=dtype), given)
        for bound, dtype in ((None, mx.float32), (10.0, mx.bfloat16))
    ]


# op -> functions with their arguments, and the dtypes to give those that are floats.
CALLS: dict[str, tuple[list[tuple[Callable[..., Any], list[mx.array]]], tuple[mx.Dtype, ...]]] = {
    "adamw": ([(test_adamw.kernel, test_adamw.arguments([(3, 5), (2,), (9,), (4,)]))], (mx.float32,)),
    "advance": (moves(), ALL),
    "bias_gelu_norm": (test_bias_gelu_norm.calls(), ALL),
    "collect": (test_collect_kernel.calls(), ALL),
    "embedding": ([(test_embedding.kernel, test_embedding.arguments(9, size, (3, 5))) for size in (8, 6, 5)], ALL),
    "flow_step": (test_flow_step.calls(), (mx.float32,)),
    "gru_gates": ([(test_gru_gates.kernel, test_gru_gates.arguments(9, size)) for size in (8, 6, 5)], ALL),
    "heads": ([(test_heads.scaled(test_heads.kernel), test_heads.arguments(9, 16, 8))], ALL),
    "inherit": ([(test_inherit.kernel, test_inherit.arguments(2, 9, 5, size)) for size in (8, 6, 5)], ALL),
    "masked_mean": ([(test_masked_mean.kernel, test_masked_mean.arguments(3, 9, 33))], ALL),
    "neuron": (neurons(), (mx.float32,)),
    "norms": ([(test_norms.kernel, test_norms.arguments([(3, 5), (2,)]))], (mx.float32,)),
    "spawn": (test_spawn_kernel.calls(), (mx.float32,)),
}


class Recorder:
    """Stands for `call_cuda`: keeps the source that would be compiled, and gives zeros."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}

    def call_cuda(
        self,
        name: str,
        header: str,
        body: str,
        inputs: Mapping[str, mx.array],
        outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
        template: Mapping[str, Any],
        threads: int,
        group: int,
        *_: Any,
    ) -> list[mx.array]:
        given = {parameter: (array.dtype, array.ndim) for parameter, array in inputs.items()}
        results = {parameter: dtype for parameter, (_, dtype) in outputs.items()}
        body_alone = cuda_source("NAME", "", body, given, results, template, group)
        label = f"{name}_{len(self.sources)}"
        self.sources.setdefault(body_alone, cuda_source(label, "", body, given, results, template, group))
        self.header = header
        return [mx.zeros(shape, dtype) for shape, dtype in outputs.values()]


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
    monkeypatch.setattr(kernel, "call_cuda", recorder.call_cuda)
    calls, dtypes = CALLS[op]
    for function, arguments in calls:
        for dtype in dtypes:
            differentiate(function, arguments, dtype)
    assert recorder.sources
    source = tmp_path / f"{op}.cu"
    source.write_text("\n".join([recorder.header, *recorder.sources.values()]), encoding="utf-8")
    command = ["nvcc", "-std=c++20", "-arch=sm_90", "-ptx", "-Xcicc", "-O0", "-o", str(tmp_path / "out.ptx"), str(source)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_source_is_tried() -> None:
    folder = next(f for f in kernel.folders() if f.is_dir())
    assert {file.stem for file in folder.glob("*.metal")} == set(CALLS)
