"""What a preset must take at least on an Apple GPU that is not here, from counted operations, bytes and launches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..config import EnergyConfig
from ..models.carrier import DISPLACEMENT_WIDTH, input_size
from .work import compute_dtype, flow_steps, product_flops, total_flops

ALUS = 128  # of a core of an Apple GPU; each does a multiplication and an addition in a cycle, in 16 bits as in 32


class Machine(NamedTuple):
    """The largest GPU of a chip. docs/metal.md says where the figures come from."""

    cores: int
    gigahertz: float
    gigabytes_per_s: float

    @property
    def flops(self) -> float:
        """Peak FLOP/s."""
        return self.cores * ALUS * 2 * self.gigahertz * 1e9


MACHINES = {
    "m1": Machine(8, 1.278, 68.25), "m1-pro": Machine(16, 1.296, 200), "m1-max": Machine(32, 1.296, 400), "m1-ultra": Machine(64, 1.296, 800),
    "m2": Machine(10, 1.398, 100), "m2-pro": Machine(19, 1.398, 200), "m2-max": Machine(38, 1.398, 400), "m2-ultra": Machine(76, 1.398, 800),
    "m3": Machine(10, 1.398, 100), "m3-pro": Machine(18, 1.398, 150), "m3-max": Machine(40, 1.398, 400), "m3-ultra": Machine(80, 1.398, 819),
    "m4": Machine(10, 1.578, 120), "m4-pro": Machine(20, 1.578, 273), "m4-max": Machine(40, 1.578, 546),
}  # fmt: skip


class Counts(NamedTuple):
    """What one forward pass or one training step does.

    products, gates: bytes that the products of the flows' steps and the kernels between them read and write, each once; fused: what is left
    of both where a step, or its backward pass, is one kernel; ends: bytes of mapper, collector and optimiser; launches: of the flows alone.
    """

    flops: float
    products: float
    gates: float
    fused: float
    ends: float
    launches: int


def counts(config: EnergyConfig, what: str) -> Counts:
    """Count `forward` or `training`, without checkpointing."""
    size, layers, steps = config.carrier_hidden_size, config.carrier_num_layers, config.flow_steps
    number = 4 if compute_dtype(config) == "float32" else 2  # bytes
    inner = size // 2 + DISPLACEMENT_WIDTH
    inputs = [input_size(config), *[size] * (layers - 1)]
    calls, moves = (1 if what == "forward" else config.gradient_accumulation_steps), flow_steps(config, what)
    weights = sum(3 * size * (width + size) for width in inputs) + inner * size
    # Numbers of a flow in a step.
    products = sum(width + size + 6 * size for width in inputs) + size + inner
    gates = layers * 8 * size + inputs[0] + inner
    fused = 2 * layers * size
    launches = 3 * layers + 4
    passes = 1
    if what == "training":
        products += sum(2 * width + 14 * size for width in inputs) + 2 * (inner + size)
        gates += layers * 15 * size + inputs[0] + 2 * inner
        fused += 3 * layers * size  # reads hidden states and their gradients, writes the latter
        launches += 5 * layers + 7
        passes = 4  # forward, both products of backward, and the gradient
    parts = product_flops(config)
    held = (parts["mapper"] + parts["collector"]) / (2 * config.batch_size)
    ends = calls * passes * held * number + (0 if what == "forward" else 28 * (held + weights))
    streamed = calls * steps * passes * weights
    return Counts(
        flops=total_flops(config, what),
        products=number * (moves * products + streamed),
        gates=number * moves * gates,
        fused=number * (moves * fused + streamed),
        ends=ends,
        launches=calls * steps * launches,
    )


def floors(machine: str, presets: Sequence[tuple[str, EnergyConfig]]) -> list[dict[str, Any]]:
    """A row for the forward pass and one for the training step of each preset.

    seconds: what products and kernels take one after another at the machine's peak rates; fused_s: what one kernel a step would;
    break_even: the share of the rate of the present products that its own must reach to be as fast.
    """
    rows = []
    rates = MACHINES[machine]
    for name, config in presets:
        for what in ("forward", "training"):
            found = counts(config, what)
            products = max(found.flops / rates.flops, found.products / rates.gigabytes_per_s / 1e9)
            between, ends = (size / rates.gigabytes_per_s / 1e9 for size in (found.gates, found.ends))
            fused = max(found.flops / rates.flops, found.fused / rates.gigabytes_per_s / 1e9)
            rows.append(
                {"preset": name, "what": what, "dtype": compute_dtype(config), **found._asdict(), "seconds": products + between + ends,
                 "fused_s": fused + ends, "break_even": products / (products + between)}
            )  # fmt: skip
    return rows
