"""The ways that flows can be run, each of which must take the same steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from metal_cpu import metal_on_cpu

from energy_flow_mlx import EnergyFlow, FlowState
from energy_flow_mlx.ops.kernel import VARIABLE, build

PLAIN = ("evaluation", "autodiff", "recomputed")
KERNELS = ("evaluation, kernels", "by hand", "by hand, recomputed")  # through the Metal harness
PATHS = PLAIN + KERNELS


def changes_of(path: str) -> dict[str, Any]:
    """What the configuration needs for this path."""
    return {"gradient_checkpointing": path.endswith("recomputed"), "checkpoint_steps": 2}


@contextmanager
def on_path(path: str, model: EnergyFlow) -> Iterator[list[FlowState]]:
    """Inside, the model's processor takes this path; yields a list of the flows after each step."""
    states: list[FlowState] = []
    kind = type(model.processor.step)
    step = kind.__call__

    def recording(self: object, *arguments: Any) -> Any:
        flows, trace = step(self, *arguments)
        states.append(flows)
        return flows, trace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "__call__", recording)
        model.processor.train(not path.startswith("evaluation"))
        if path in KERNELS:
            patch.setenv(VARIABLE, "on")
            with metal_on_cpu(caches=[build]):
                yield states
        else:
            patch.setenv(VARIABLE, "off")
            yield states
    model.processor.eval()
