"""Kernel bodies compiled for CUDA.

`mx.fast.cuda_kernel` compiles every body together with MLX's headers, which takes NVRTC two to three seconds a kernel. The bodies need
none of them: `kernels/cuda.h` has the few words they use, so NVRTC, which MLX has loaded, takes a few hundredths of a second.
"""

import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

TYPES = {
    mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat",
    mx.int32: "int", mx.uint32: "uint", mx.bool_: "bool",
}  # fmt: skip


class CudaError(RuntimeError):
    """A kernel does not compile, or NVRTC is not there; the text holds what the compiler says, with the line."""


def cuda_source(
    name: str,
    header: str,
    body: str,
    inputs: Mapping[str, tuple[mx.Dtype, int]],
    outputs: Mapping[str, mx.Dtype],
    template: Mapping[str, Any],
    group: int,
) -> str:
    """The complete CUDA source for a body.

    Args:
        name: of the kernel.
        header: what stands before it.
        inputs: dtype and number of dimensions of each input; the body may use its `<input>_shape`.
        outputs: dtype of each output.
        template: constants of the body.
        group: threads of a group; the compiler then takes no more registers than so many threads can have.
    """
    parameters = [f"const {TYPES[dtype]}* __restrict__ {parameter}" for parameter, (dtype, _) in inputs.items()]
    parameters += [f"{TYPES[dtype]}* __restrict__ {parameter}" for parameter, dtype in outputs.items()]
    lines = []
    for parameter in shapes_used(body, tuple(inputs)):
        sizes = [f"{parameter}_size_{axis}" for axis in range(inputs[parameter][1])]
        parameters += [f"int {size}" for size in sizes]
        lines.append(f"const int {parameter}_shape[] = {{{', '.join(sizes)}}};")
    for key, value in template.items():
        if isinstance(value, mx.Dtype):
            lines.append(f"using {key} = {TYPES[value]};")
        else:
            lines.append(f"constexpr {type(value).__name__} {key} = {str(value).lower()};")
    head = f'extern "C" __global__ void __launch_bounds__({group}) {name}({", ".join(parameters)}) {{'
    return "\n".join([header, head, *lines, f'#line 1 "{name}"', body, "}", ""])


@functools.cache
def shapes_used(body: str, inputs: tuple[str, ...]) -> list[str]:
    """The inputs whose shape a body asks for, in order."""
    return [name for name in inputs if f"{name}_shape" in body]


def call_cuda(
    name: str,
    header: str,
    body: str,
    inputs: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
    template: Mapping[str, Any],
    threads: int,
    group: int,
    init_value: float | None,
) -> list[mx.array]:
    """Run a body on the GPU; compiled at the first call with these dtypes and constants."""
    shaped = shapes_used(body, tuple(inputs))
    # Only where the body reads a shape does the number of dimensions make another kernel.
    types = tuple((key, array.dtype, array.ndim if key in shaped else 0) for key, array in inputs.items())
    results = tuple((parameter, dtype) for parameter, (_, dtype) in outputs.items())
    label, image = _compiled(name, header, body, types, results, tuple(template.items()), group)
    if _planned:
        return [mx.zeros(shape, dtype) for shape, dtype in outputs.values()]
    sizes = [size for parameter in shaped for size in inputs[parameter].shape]
    return mx.fast.precompiled_cuda_kernel(
        name=label,
        compiled_source=image.result(),
        inputs=list(inputs.values()),
        output_shapes=[tuple(shape) for shape, _ in outputs.values()],
        output_dtypes=[dtype for _, dtype in outputs.values()],
        scalars=sizes,
        grid=(threads, 1, 1),
        threadgroup=(group, 1, 1),
        init_value=init_value,
        ensure_row_contiguous=True,
    )


@functools.cache
def _compiled(
    name: str,
    header: str,
    body: str,
    inputs: tuple[tuple[str, mx.Dtype, int], ...],
    outputs: tuple[tuple[str, mx.Dtype], ...],
    template: tuple[tuple[str, Any], ...],
    group: int,
) -> tuple[str, Future[bytes]]:
    """A unique name for the kernel with these types and constants, as MLX caches modules by name, and a future with its machine code."""
    label = f"{name}_{len(_labels)}"
    _labels.append(label)
    given = {parameter: (dtype, ndim) for parameter, dtype, ndim in inputs}
    source = cuda_source(label, header, body, given, dict(outputs), dict(template), group)
    info = mx.device_info()
    architecture = f"sm_{info['compute_capability_major']}{info['compute_capability_minor']}"
    return label, _compilers().submit(compile_cuda, label, source, architecture)


_labels: list[str] = []
_planned: list[bool] = []  # holds something while kernels are planned


@functools.cache
def _compilers() -> ThreadPoolExecutor:
    """NVRTC leaves Python's lock alone and compiles on as many cores as it is asked to."""
    return ThreadPoolExecutor(thread_name_prefix="nvrtc")


@contextmanager
def planned() -> Iterator[None]:
    """Inside, kernels do not run but give zeros, and those that are new are being compiled, all at the same time.

    A first step that is built once in here and thrown away, and then for good, waits for its slowest kernel rather than for
    forty in a row.
    """
    _planned.append(True)
    try:
        yield
    finally:
        _planned.pop()


def compile_cuda(name: str, source: str, architecture: str) -> bytes:
    """The machine code (cubin) of a CUDA source that includes nothing.

    Raises:
        CudaError: it does not compile; the text is NVRTC's log.
    """
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None))
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if failed:
            log = _text(nvrtc, program, "ProgramLog").decode(errors="replace")
            raise CudaError(f"kernel {name} does not compile as CUDA:\n{log}")
        return _text(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text.raw


def _check(nvrtc: ctypes.CDLL, code: int) -> None:
    if code:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CudaError(f"NVRTC: {nvrtc.nvrtcGetErrorString(code).decode()}")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """The NVRTC that MLX's CUDA backend has loaded."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        loaded = {line.split(maxsplit=5)[5].strip() for line in maps if "libnvrtc.so" in line}
    if not loaded:
        raise CudaError("NVRTC, the CUDA compiler that MLX's CUDA backend brings, is not loaded in this process")
    return ctypes.CDLL(min(loaded))
