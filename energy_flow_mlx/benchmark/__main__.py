"""python -m energy_flow_mlx.benchmark: time a preset against the machine's peak rates and torch."""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import blas
from ..checks import whole_number
from ..cli import Parser, add_config_flags, check_writable, exit_code, given_fields, run_command
from ..config import ConfigError, EnergyConfig
from ..distributed import launched
from ..figures import ENDINGS
from ..ops.kernel import on_gpu
from ..program import call_of
from ..train import memory
from . import output, scaling
from .compare import TORCH_CPU, TORCH_CUDA, TORCH_EAGER, WHATS, Plan, measure_mlx, measure_torch, ratios, weights_file
from .machines import MACHINES, floors
from .processes import MeasurementFailed, run_mlx, run_together, workshop
from .scenarios import SCENARIOS
from .work import benchmark_config, compute_dtype, flow_steps, require_comparable, total_flops

_USAGE = "%(prog)s [--preset NAME] [--config FILE] [--FIELD VALUE ...] [--compare torch] [--stages] [--sweep] [...]"
_DESCRIPTION = (
    "Time the forward pass and the training step of a preset. Spawning, exploration noise and dropout are off, and a step "
    "has one micro-batch, unless --as-trained or a flag enables them. Each measurement runs in a separate process. Times are "
    "medians over synchronised calls; memory is the peak of allocated arrays during the timed calls. For tiny on two CPU cores that "
    "is about a minute; a row of a larger preset ends after --seconds, or its first 3 calls."
)

_ALONE = {"machine": "counts and measures nothing", "scaling": "times the training step alone"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a measurement of the MLX model failed), 2 (invalid argument), 130 (interrupted)."""
    arguments = _parser(argv).parse_args(argv)
    return exit_code(lambda: _benchmark(arguments), refused=(ConfigError, OSError), failed=(MeasurementFailed,))


def _benchmark(arguments: Namespace) -> int:
    _require(arguments)
    config = benchmark_config(
        arguments.preset, arguments.config, given_fields(arguments), as_trained=arguments.as_trained
    )
    config = memory.within_budget(config)
    if arguments.compare:
        require_comparable(config)
    machine = _machine(arguments) if arguments.machine else None
    check_writable(arguments.json)
    check_writable(arguments.plot, ENDINGS)
    if arguments.scaling is not None:
        return _scaling(config, arguments)
    results = machine or _measure(config, arguments)
    print(output.text(results) if machine is None else output.floors(machine))
    if arguments.json is not None:
        output.save(arguments.json, results)
    if arguments.plot is not None:
        output.draw(arguments.plot, results)
    return int(any("error" in row for row in results["rows"] if row.get("framework") == "mlx"))


def _machine(arguments: Namespace) -> dict[str, Any]:
    """What --machine prints: the least that the presets take there."""
    names = [arguments.preset] if arguments.preset else ["debug", "experiment", "optimized"]
    presets = [
        (name, benchmark_config(name, arguments.config, given_fields(arguments), as_trained=arguments.as_trained)) for name in names
    ]
    return {"machine": arguments.machine, **MACHINES[arguments.machine]._asdict(), "rows": floors(arguments.machine, presets)}


def _parser(argv: Sequence[str] | None) -> Parser:
    parser = Parser(prog=call_of("benchmark"), usage=_USAGE, description=_DESCRIPTION)
    parser.add_argument(
        "--compare",
        choices=("torch",),
        help="also time the vectorised torch baseline, in --torch-limit seconds at most; needs torch and a clone of the repository",
    )
    parser.add_argument(
        "--stages", action="store_true", help="time the stages of a step and compare each with the machine's limit: seconds for tiny"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="vary B, W*H, D and Hd, and fit the growth of time and memory: some three times as long as the table"
    )
    parser.add_argument(
        "--scaling", nargs="?", const=scaling.COUNTS, metavar="N,…",
        help="time the training step alone, by so many processes on this machine, each with the whole batch_size "
        f"(default: {scaling.COUNTS}); under mlx.launch by one process and by all that it starts",
    )  # fmt: skip
    parser.add_argument(
        "--scenario",
        action="append",
        choices=SCENARIOS,
        default=[],
        help="train a small reference model on CPU and GPU, a few seconds each; repeatable",
    )
    parser.add_argument(
        "--scenario-steps", type=int, default=200, metavar="N", help="steps of a scenario (default: 200)"
    )
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed calls (default: 20)")
    parser.add_argument(
        "--warmup", type=int, default=3, metavar="N", help="untimed calls after the first one (default: 3)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="stop timing a row after S seconds and 3 calls (default: 30)",
    )
    parser.add_argument(
        "--machine",
        choices=MACHINES,
        metavar="CHIP",
        help=f"measure nothing, and print what debug, experiment and optimized (or --preset) take at least on an Apple GPU: {', '.join(MACHINES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to a file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the results (.png, .svg or .pdf)")
    parser.add_argument(
        "--as-trained",
        action="store_true",
        help="keep the preset's spawning, noise, dropout and gradient accumulation",
    )
    parser.add_argument(
        "--warm-cache",
        action="store_true",
        help="use existing caches of compiled kernels, so that first calls are not cold",
    )
    parser.add_argument("--torch-eager", action="store_true", help="torch without torch.compile")
    parser.add_argument(
        "--torch-variants", metavar="LIST", help="precision/gru/mode, joined by commas; see scripts/torch_baseline.py"
    )
    parser.add_argument(
        "--torch-limit", type=float, default=420.0, metavar="S", help="total seconds for torch; variants beyond it are reported as left out (default: 420)"
    )  # fmt: skip
    add_config_flags(parser, argv)
    return parser


def _require(arguments: Namespace) -> None:
    for alone, what in _ALONE.items():
        for name in ("machine", "scaling", "compare", "stages", "sweep", "scenario", "plot"):
            if getattr(arguments, alone) and name != alone and getattr(arguments, name):
                raise ConfigError(f"--{name} is not accepted with --{alone}, which {what}")
    if arguments.scaling is not None:
        _counts(arguments.scaling)
    for name, least in (("repeats", 1), ("warmup", 0), ("scenario_steps", 1)):
        if getattr(arguments, name) < least:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(arguments, name)} is not accepted: it takes an integer from {least}"
            )
    for name in ("seconds", "torch_limit"):
        if not getattr(arguments, name) > 0:  # nor NaN
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)} is not accepted: it takes a number of seconds above 0")
    if arguments.compare is None:
        for name in ("torch_eager", "torch_variants"):
            if getattr(arguments, name):
                raise ConfigError(f"--{name.replace('_', '-')} is accepted only with --compare torch")
        return
    if arguments.as_trained:
        raise ConfigError(
            "--as-trained is not accepted with --compare torch: the baseline has no spawning and no noise"
        )
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("--compare torch needs PyTorch, which is not installed: pip install torch (or '.[convert]')")
    for variant in _variants(arguments):
        parts = variant.split("/")
        if len(parts) != 3 or parts[0] not in ("fp32", "bf16") or parts[1] not in ("cell", "cudnn"):
            raise ConfigError(
                f"--torch-variants: accepted are fp32 or bf16 / cell or cudnn / a mode, as in {TORCH_CUDA[0]}, got {variant!r}"
            )


def _variants(arguments: Namespace) -> tuple[str, ...]:
    if arguments.torch_variants:
        return tuple(arguments.torch_variants.split(","))
    if arguments.torch_eager or sys.platform == "darwin":  # torch.compile is experimental on Metal
        return TORCH_EAGER
    return TORCH_CUDA if on_gpu() else TORCH_CPU


def _measure(config: EnergyConfig, arguments: Namespace) -> dict[str, Any]:
    plan = Plan(
        warmup=arguments.warmup,
        repeats=arguments.repeats,
        limit_s=arguments.seconds,
        dropout=arguments.as_trained,
        cold=not arguments.warm_cache,
        torch_limit_s=arguments.torch_limit,
    )
    flows = config.batch_size * config.slots_per_sample
    title = f"{arguments.preset or 'tiny'}: batch {config.batch_size}, {flows:,} flows, {config.flow_steps} steps, {compute_dtype(config)}"
    results: dict[str, Any] = {
        "title": title,
        "config": config.to_dict(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]
        "blas": blas.description(),
        "counted": {
            what: {"flops": total_flops(config, what), "flow_steps": flow_steps(config, what)} for what in WHATS
        },
    }
    _say(
        title
        + (f"; matrix products on the CPU use {blas.description()}" if blas.description() and not on_gpu() else "")
    )
    with workshop() as folder:
        basis = {
            "config": config.to_dict(),
            "repeats": plan.repeats,
            "limit_s": min(plan.limit_s, 10.0),
            "dropout": plan.dropout,
        }
        dtypes = {"float32", "bfloat16", compute_dtype(config)} if on_gpu() else {compute_dtype(config)}
        _say("ceilings …")
        ceilings = run_mlx(folder, {**basis, "what": "ceilings", "dtypes": sorted(dtypes)})
        results["ceilings"] = ceilings
        weights = weights_file(config, folder) if arguments.compare else None
        results["rows"] = measure_mlx(config, plan, folder, ceilings, weights, _say)
        if arguments.compare:
            device, variants = "gpu" if on_gpu() else "cpu", _variants(arguments)
            results["rows"] += measure_torch(config, plan, folder, ceilings, weights, variants, device, _say)
            results["ratios"] = ratios(results["rows"])
        if arguments.stages:
            _say("stages …")
            stages = run_mlx(folder, {**basis, "what": "stages"})
            results["stages"] = [_beside_limit(stage, ceilings, compute_dtype(config)) for stage in stages["stages"]]
            results["why_apart"] = stages["why_apart"]
        if arguments.sweep:
            _say("sweep …")
            results["sweep"] = run_mlx(folder, {**basis, "what": "sweep"})
        results["scenarios"] = []
        for scenario in arguments.scenario:
            _say(f"scenario {scenario} …")
            job = {**basis, "what": "scenario", "scenario": scenario, "steps": arguments.scenario_steps}
            results["scenarios"].append(run_mlx(folder, job))
    return results


def _scaling(config: EnergyConfig, arguments: Namespace) -> int:
    job = {
        "what": "scaling",
        "config": config.to_dict(),
        "repeats": arguments.repeats,
        "warmup": arguments.warmup,
        "limit_s": arguments.seconds,
        "dropout": arguments.as_trained,
    }
    if launched():
        rows = scaling.scaling_rows(job)
    else:
        rows = []
        with workshop() as folder:
            for count in _counts(arguments.scaling):
                _say(f"{count} processes …")
                rows.append(run_together(folder, job, count))
    if rows is not None:
        print(scaling.text(rows, config.batch_size))
        if arguments.json is not None:
            output.save(arguments.json, {"config": config.to_dict(), "scaling": rows})
    return 0


def _counts(text: str) -> list[int]:
    counts = [whole_number(part) for part in text.split(",")]
    if not all(count and count <= scaling.MOST for count in counts):
        raise ConfigError(
            f"--scaling {text:.80} is not accepted: it takes numbers of processes joined by commas, such as {scaling.COUNTS}, up to {scaling.MOST}"
        )
    return [count for count in counts if count]


def _beside_limit(stage: Mapping[str, Any], ceilings: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Add the roofline limit of a stage, max(FLOPs / peak FLOP/s, bytes / peak bytes/s), and limit / measured time."""
    limit = max(stage["flops"] / ceilings["flops"][dtype], stage["bytes"] / ceilings["bytes_per_s"])
    share = limit / stage["seconds"] if stage["seconds"] else None
    return {**stage, "limit_seconds": limit, "share_of_limit": share}


def _say(line: str) -> None:
    """Print progress to standard error, because standard output has only the tables."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
