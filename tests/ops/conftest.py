"""In tests that run kernels through the Metal harness, kernels are Metal, whatever this machine has."""

import pytest

from energy_flow_mlx.ops import kernel

from .kernel_parity import GPU


@pytest.fixture(autouse=True)
def metal_in_the_harness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("where") != GPU:
        monkeypatch.setattr(kernel, "backend", lambda: "metal")
