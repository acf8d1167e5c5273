"""Times the vectorised PyTorch model (torch_model.py) for `python -m energy_flow_mlx.benchmark --compare torch`.

    python scripts/torch_baseline.py JOB.json RESULT.json

Needs torch and numpy alone, so that MLX takes no memory in its process. The benchmark writes the job: configuration, batches,
and the weights of the MLX model by their names there. The work is the same: mapper, every move of every flow, collection,
collector, text encoder, the same loss, backward, both clippings, AdamW. No loop runs over flows. A variant is three words:

    precision  fp32 (TF32 products where the GPU has them), bf16 (autocast; positions, collection and loss in fp32)
    gru        cell (two products and the gates, which the compiler fuses), cudnn (torch.nn.GRU)
    mode       eager; step (one move is compiled); captured (step, and the training step with its AdamW is one CUDA graph);
               whole (loss and backward are compiled, moves unrolled); autotune (whole, max-autotune without CUDA graphs);
               graphs (whole, reduce-overhead: CUDA graphs); captured-whole (as captured, from whole)
"""

import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_model import TorchEnergyFlow

MODES = ("eager", "step", "captured", "whole", "autotune", "graphs", "captured-whole")
BY_MOVE = ("eager", "step", "captured")


def clip(gradients: list[Tensor], per_tensor: float, global_norm: float) -> None:
    """Both clippings in one multiplication; 0 leaves out either."""
    if not (per_tensor or global_norm):
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = torch.ones_like(norms)
    if per_tensor:
        factors = (per_tensor / (norms + 1e-6)).clamp(max=1)
    if global_norm:
        factors = factors * (global_norm / ((norms * factors).norm() + 1e-6)).clamp(max=1)
    torch._foreach_mul_(gradients, list(factors.unbind()))


class Run:
    """One variant made ready: `forward` and `train` do one call's work; neither waits for the device."""

    def __init__(self, job: Mapping[str, Any], device: torch.device) -> None:
        precision, gru, mode = job["variant"]
        config = job["config"]
        if mode not in MODES or precision not in ("fp32", "bf16") or gru not in ("cell", "cudnn"):
            raise ValueError(f"variant={job['variant']} is unknown: accepted are fp32 or bf16, cell or cudnn, {MODES}")
        self.config, self.mode, self.device = config, mode, device
        self.autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        with device:
            self.model = TorchEnergyFlow(config, gru, job["dropout"])
        if job["weights"]:
            with np.load(job["weights"]) as weights:
                self.model.load(dict(weights))
        self.model.hidden_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        training = job["what"] == "training"
        self.model.train(training)
        options: dict[str, Any] = {
            "autotune": {"mode": "max-autotune-no-cudagraphs"}, "graphs": {"mode": "reduce-overhead"}
        }.get(mode, {})  # fmt: skip
        if mode in ("step", "captured"):
            self.model.move = torch.compile(self.model._move, dynamic=False)
        target: Callable[..., Any] = self._loss if training else self._forward
        self.function = target if mode in BY_MOVE else torch.compile(target, dynamic=False, **options)
        if training:
            self.optimiser = torch.optim.AdamW(
                self.model.parameters(), config["learning_rate"], weight_decay=config["weight_decay"], fused=True,
                capturable=mode.startswith("captured"),
            )  # fmt: skip
        with np.load(job["data"]) as data:
            tensors = {name: torch.as_tensor(data[name]).to(device) for name in data.files}
        names = ("input_embedding", "target_embedding", "input_ids", "attention_mask")
        self.batches = [tuple(tensors[f"{name}.{k}"] for name in names) for k in range(int(tensors["count"]))]

    def _loss(self, *batch: Tensor) -> Tensor:
        with self.autocast:
            return self.model.loss(*batch)

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast:
            return self.model(inputs)

    def forward(self) -> Tensor:
        with torch.no_grad():
            if self.mode == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            return self.function(self.batches[0][0])[0].sum()

    def train(self) -> Tensor:
        """One optimiser step over all micro-batches."""
        total = 0.0
        self.optimiser.zero_grad(set_to_none=True)
        for batch in self.batches:
            if self.mode == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            loss = self.function(*batch) / len(self.batches)
            loss.backward()
            total = total + loss.detach().clone()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        clip(gradients, self.config["gradient_clip_per_tensor"], self.config["gradient_clip"])
        self.optimiser.step()
        return total  # type: ignore[return-value]

    def captured(self) -> Callable[[], Tensor]:
        """The training step (or the forward pass) as one replay of a CUDA graph."""
        call = self.train if self.model.training else self.forward
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def find_device(kind: str) -> str:
    """The torch device for `cpu` or `gpu`; an error where torch sees no GPU."""
    if kind == "cpu":
        return kind
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    raise RuntimeError("MLX works on a GPU and torch sees none: install a torch build for it")


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Build, call once, warm up, and time; the device is waited for around every timed call."""
    device = torch.device(find_device(job["device"]))
    cuda = device.type == "cuda"

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()

    start = time.perf_counter()
    run = Run(job, device)
    call = run.train if job["what"] == "training" else run.forward
    first = float(call())
    wait()
    first_call = time.perf_counter() - start
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if run.mode.startswith("captured"):
        call = run.captured()
    for _ in range(job["warmup"]):
        call()
    wait()
    times: list[float] = []
    while len(times) < job["repeats"] and (len(times) < 3 or sum(times) < job["limit_s"]):
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    began = time.perf_counter()
    before: torch.cuda.Event | None = None
    for _ in times:
        call()
        if before is not None:
            before.synchronize()  # one call late, as the MLX side is timed
        if cuda:
            before = torch.cuda.Event()
            before.record()
    wait()
    return {
        "seconds": statistics.median(times),
        "pipelined_s": (time.perf_counter() - began) / len(times),
        "times": times,
        "first_call_s": first_call,
        "peak_bytes": peak,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "first_value": first,
        "device": torch.cuda.get_device_name() if cuda else device.type,
        "version": torch.__version__,
    }


def main() -> None:
    job_file, result_file = sys.argv[1:]
    with open(job_file, encoding="utf-8") as file:
        job = json.load(file)
    result = measure(job)
    with open(result_file, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
