"""Kernels named in a trial run are compiled together; no GPU and no compiler are needed."""

import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from energy_flow_mlx.ops import cuda

BODY = "if (thread_position_in_grid.x < uint(x_shape[0])) y[0] = x[0] + z[0];"


class Compiler:
    """Stands for NVRTC and the launch: notes what is compiled and run."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.launched: list[tuple[str, bytes]] = []
        self.together = threading.Barrier(2, timeout=20)
        self.wait = False

    def compile(self, name: str, source: str, architecture: str) -> bytes:
        if self.wait:
            self.together.wait()  # only two at the same time come through
        self.sources.append(source)
        return name.encode()

    def launch(
        self, *, name: str, compiled_source: bytes, output_shapes: Any, output_dtypes: Any, **_: Any
    ) -> list[mx.array]:
        self.launched.append((name, compiled_source))
        return [mx.ones(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    stand_in = Compiler()
    monkeypatch.setattr(cuda, "compile_cuda", stand_in.compile)
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", stand_in.launch)
    monkeypatch.setattr(mx, "device_info", lambda: {"compute_capability_major": 9, "compute_capability_minor": 0})
    cuda._compiled.cache_clear()
    yield stand_in
    cuda._compiled.cache_clear()


def run(name: str, x: mx.array, z: mx.array) -> mx.array:
    return cuda.call_cuda(name, "", BODY, {"x": x, "z": z}, {"y": ((3,), mx.float32)}, {}, 32, 32, None)[0]


def test_planned_kernels_give_zeros_and_compile_at_the_same_time(compiler: Compiler) -> None:
    x, z = mx.ones((4,)), mx.ones((2, 2))
    compiler.wait = True
    with cuda.planned():
        assert run("first", x, z).tolist() == run("second", x, z).tolist() == [0.0, 0.0, 0.0]
    assert run("first", x, z).tolist() == run("second", x, z).tolist() == [1.0, 1.0, 1.0]
    assert len(compiler.sources) == 2  # not again for the run
    assert all(name.encode() == image for name, image in compiler.launched)


def test_dimensions_make_another_kernel_only_where_a_shape_is_read(compiler: Compiler) -> None:
    run("one", mx.ones((4,)), mx.ones((2, 2)))
    run("one", mx.ones((4,)), mx.ones((2, 2, 2)))
    assert len(compiler.sources) == 1
    run("one", mx.ones((4, 4)), mx.ones((2, 2)))
    assert len(compiler.sources) == 2


def test_what_does_not_compile_is_an_error_where_it_runs(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> bytes:
        raise cuda.CudaError("line 1: no")

    monkeypatch.setattr(cuda, "compile_cuda", refuse)
    with cuda.planned():
        run("broken", mx.ones((4,)), mx.ones((1,)))
    with pytest.raises(cuda.CudaError, match="line 1: no"):
        run("broken", mx.ones((4,)), mx.ones((1,)))
