"""Timing calls, and measuring the model and the machine's peak rates."""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from ..config import EnergyConfig
from ..data.source import PairBatch
from ..models.energy_flow import EnergyFlow
from ..ops.compilation import compiled, compiles
from ..ops.kernel import on_gpu
from ..train import memory
from ..train.loss import number
from ..train.optimiser import named_arrays
from ..train.step import Launched
from .work import make_batches, make_model, make_step

LEAST_REPEATS = 3


def timed(
    call: Callable[[], Any], *, warmup: int, repeats: int, limit: float, wait: Callable[[], Any] = mx.synchronize
) -> list[float]:
    """Time up to `repeats` synchronised calls.

    Args:
        call: what to time.
        warmup: untimed calls before.
        repeats: the most timed calls.
        limit: after this many seconds in total no further call starts, except for the first 3.
        wait: waits for the device.

    Returns:
        Seconds of each call.
    """
    for _ in range(warmup):
        call()
    wait()
    times: list[float] = []
    while len(times) < repeats and (len(times) < LEAST_REPEATS or sum(times) < limit):
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return times


def per_call(
    call: Callable[[], Any],
    calls: int,
    *,
    repeats: int,
    limit: float,
    choose: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Seconds per call, with `calls` calls submitted before waiting, as inside a training step: the median of several such bursts.

    Args:
        call: returns arrays that are not evaluated yet.
        choose: which of the bursts' times counts.
    """

    def burst() -> None:
        for _ in range(calls):
            mx.async_eval(call())

    return choose(timed(burst, warmup=2, repeats=repeats, limit=limit)) / calls


def pipelined(start: Callable[[], Any], finish: Callable[[Any], Any], calls: int) -> float:
    """Mean seconds per call, where each call is finished only after the next has been started, as in training."""
    began = time.perf_counter()
    started = start()
    for _ in range(calls - 1):
        following = start()
        finish(started)
        started = following
    finish(started)
    return (time.perf_counter() - began) / calls


def clear_memory() -> None:
    """Free MLX's cached memory and reset the peak."""
    mx.clear_cache()
    mx.reset_peak_memory()


def device_name() -> str:
    """A human-readable name of the device."""
    info = mx.device_info()
    return str(info.get("device_name", mx.default_device().type.name))


def measure_model(job: Mapping[str, Any]) -> dict[str, Any]:
    """Build the model, call it once, and time further calls; `job["what"]` is forward or training.

    `peak_bytes` is the peak during the timed calls of arrays in use (weights, optimiser state, activations), without
    MLX's cache of freed memory.
    """
    config = EnergyConfig.from_dict(job["config"])
    training = job["what"] == "training"
    if not training:
        memory.limit_evaluation(config, config.batch_size)  # first: `limit` leaves the size of buffers as it finds it
    memory.limit(config)
    start = time.perf_counter()
    batches = make_batches(config)
    model = make_model(config, training=training, dropout=job["dropout"])
    if job["save_weights"]:
        mx.eval(model.parameters())  # initialisation counts as part of the first call, saving does not
        began = time.perf_counter()
        mx.savez(job["save_weights"], **named_arrays(model.parameters()))
        start += time.perf_counter() - began
    start_call, finish = _training(config, model, batches) if training else _forward(config, model, batches)

    def call() -> mx.array:
        return finish(start_call())

    first = call()
    mx.synchronize()
    first_call = time.perf_counter() - start
    value = number(mx.sum(first))
    clear_memory()
    times = timed(call, warmup=job["warmup"], repeats=job["repeats"], limit=job["limit_s"])
    peak = mx.get_peak_memory()
    overlapped = pipelined(start_call, finish, len(times))
    return {
        "seconds": statistics.median(times),
        "pipelined_s": overlapped,
        "times": times,
        "first_call_s": first_call,
        "first_value": value,
        "peak_bytes": peak,
        "process_peak_bytes": peak_of_process(),
        "device": device_name(),
        "version": mx.__version__,  # type: ignore[attr-defined]
    }


class _Calls(NamedTuple):
    """`start` submits a call without waiting; `finish` waits for its result: the loss [], or the embeddings [B, E]."""

    start: Callable[[], Any]
    finish: Callable[[Any], mx.array]


def _training(config: EnergyConfig, model: EnergyFlow, batches: Sequence[PairBatch]) -> _Calls:
    step, numbers = make_step(config, model), itertools.count()

    def start() -> Launched:
        return step.launch(next(numbers), batches, config.learning_rate)

    def finish(launched: Launched) -> mx.array:
        return step.settle(launched).loss

    return _Calls(start, finish)


def _forward(config: EnergyConfig, model: EnergyFlow, batches: Sequence[PairBatch]) -> _Calls:
    inputs = mx.array(batches[0].input_embedding)

    def forward(inputs: mx.array) -> tuple[mx.array, mx.array]:
        output = model(inputs)
        return output.embedding, output.surface

    run = compiled(forward, inputs=model.state, outputs=None) if compiles(config) else forward

    def start() -> tuple[mx.array, mx.array]:
        output: tuple[mx.array, mx.array] = run(inputs)
        mx.async_eval(output)
        return output

    def finish(output: tuple[mx.array, mx.array]) -> mx.array:
        mx.eval(output)
        return output[0]

    return _Calls(start, finish)


def peak_of_process() -> int:
    """The peak resident memory of this process, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def measure_ceilings(job: Mapping[str, Any]) -> dict[str, Any]:
    """The machine's peak rates: FLOP/s of a large matrix product by dtype, and bytes/s (read and written) of a copy."""
    gpu = on_gpu()
    size = 8192 if gpu else 2048
    timing = {"repeats": job["repeats"], "limit": job["limit_s"], "choose": min}  # the limit of a machine is its best, not its usual
    products = {}
    for name in job["dtypes"]:
        dtype = getattr(mx, name)
        a, b = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
        mx.eval(a, b)
        products[name] = 2.0 * size**3 / per_call(partial(mx.matmul, a, b), 4 if gpu else 1, **timing)
    x = mx.zeros((2**28 if gpu else 2**26,), dtype=mx.float32)
    mx.eval(x)
    copied = 2 * x.nbytes / per_call(lambda: -x, 4 if gpu else 1, **timing)
    return {"flops": products, "bytes_per_s": copied, "size": size, "copy_bytes": x.nbytes, "device": device_name()}
