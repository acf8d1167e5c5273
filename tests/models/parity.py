"""Comparing one of our modules with its torch counterpart: outputs and the gradient of every parameter and input.

Weights travel through the package's key map. Where the map folds, sums or splits tensors, our gradients travel back
through its chain rule, so that the comparison is per torch parameter.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten

from energy_flow_mlx import EnergyConfig
from energy_flow_mlx.convert.torch_keys import from_torch

Arrays = Mapping[str, np.ndarray]
TOLERANCE = 1e-4


def assert_close(name: str, ours: object, theirs: object) -> None:
    """Within 1e-4, of the larger of 1 and the reference's largest entry."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert ours.shape == theirs.shape, f"{name}: {ours.shape} != {theirs.shape}"
    error = np.abs(ours - theirs).max()
    bound = TOLERANCE * max(1.0, np.abs(theirs).max())
    assert error < bound, f"{name}: differs by {error:.2e}, allowed is {bound:.2e}"


def gradients_in_torch_terms(gradients: Arrays, config: EnergyConfig) -> dict[str, np.ndarray]:
    """The adjoint of the key map: gradients by our full names -> gradients by torch's."""
    back: dict[str, np.ndarray] = {}
    span = np.array([config.lattice_width - 1, config.lattice_height - 1, config.lattice_depth - 1])
    for name, gradient in gradients.items():
        if name == "neuron.coord_encoder.weight":
            # folded = 2 W / span, shifted bias = b - W 1; the last nine of torch's outputs go nowhere.
            bias = gradients["neuron.coord_encoder.bias"]
            back[name] = np.pad(gradient * 2 / span - bias[:, None], ((0, 9), (0, 0)))
        elif name == "neuron.coord_encoder.bias":
            back[name] = np.pad(gradient, (0, 9))
        elif match := re.fullmatch(r"carrier\.gru\.(\d+)\.(Wx|Wh|b|bhn)", name):
            layer, kind = match.groups()
            if kind in ("Wx", "Wh"):
                back[f"carrier.gru.weight_{'ih' if kind == 'Wx' else 'hh'}_l{layer}"] = gradient
            elif kind == "b":
                inner = gradients[f"carrier.gru.{layer}.bhn"]
                back[f"carrier.gru.bias_ih_l{layer}"] = gradient
                back[f"carrier.gru.bias_hh_l{layer}"] = np.concatenate([gradient[: 2 * inner.size], inner])
        elif match := re.fullmatch(r"(.*self_attn)\.query_proj\.(\w+)", name):
            parts = [gradients[f"{match[1]}.{part}_proj.{match[2]}"] for part in ("query", "key", "value")]
            back[f"{match[1]}.in_proj_{match[2]}"] = np.concatenate(parts)
        elif not re.search(r"self_attn\.(key|value)_proj", name):
            torch_name = re.sub("^mapper", "input_mapper", re.sub("^collector", "output_collector", name))
            back[re.sub(r"(text_encoder\.positional_encoding)\.weight", r"\1", torch_name)] = gradient
    return back


def load(ours: nn.Module, theirs: torch.nn.Module, prefix: str, torch_prefix: str, config: EnergyConfig) -> None:
    """Give `ours`, in evaluation mode, the weights of `theirs`; every parameter must be there."""
    state = {torch_prefix + key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    converted = from_torch(state, config)
    ours.load_weights([(name.removeprefix(prefix), mx.array(item.value)) for name, item in converted.items()])
    ours.eval()
    theirs.eval()


def assert_agree(
    ours: nn.Module,
    theirs: torch.nn.Module,
    inputs: Sequence[np.ndarray],
    *,
    prefix: str,
    config: EnergyConfig,
    torch_prefix: str | None = None,
    forward: Callable[..., Sequence[mx.array]],
    torch_forward: Callable[..., Sequence[torch.Tensor]],
    unused: str = "$never",
) -> None:
    """Same outputs, same gradients of sum(output * random cotangent) in every parameter and input.

    Args:
        prefix, torch_prefix: what stands before the names in the full state dicts.
        forward, torch_forward: (module, *inputs) -> float outputs.
        unused: pattern of the torch parameters that this call does not touch; all others must have a gradient.
    """
    torch_prefix = torch_prefix or prefix
    load(ours, theirs, prefix, torch_prefix, config)
    tensors = [torch.tensor(array, requires_grad=True) for array in inputs]
    expected = torch_forward(theirs, *tensors)
    rng = np.random.default_rng(7)
    cotangents = [rng.standard_normal(tuple(out.shape)).astype(np.float32) for out in expected]
    sum((out * torch.tensor(c)).sum() for out, c in zip(expected, cotangents, strict=True)).backward()

    outputs = forward(ours, *map(mx.array, inputs))
    for number, (out, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(f"output {number}", out, wanted.detach())

    def loss(parameters: dict, arrays: list[mx.array]) -> mx.array:
        ours.update(parameters)
        return sum(mx.sum(out * mx.array(c)) for out, c in zip(forward(ours, *arrays), cotangents, strict=True))

    own, by_input = mx.grad(loss, argnums=(0, 1))(ours.parameters(), [mx.array(array) for array in inputs])
    named = {prefix + name: np.array(gradient, dtype=np.float64) for name, gradient in tree_flatten(own)}
    named = gradients_in_torch_terms(named, config)
    parameters = {torch_prefix + name: value for name, value in theirs.named_parameters()}
    assert set(named) == set(parameters)
    for name, parameter in parameters.items():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (wanted.abs().max() == 0) == bool(re.search(unused, name)), (
            f"{name}: largest gradient {wanted.abs().max()}"
        )
        assert_close(name, named[name], wanted)
    for number, (gradient, tensor) in enumerate(zip(by_input, tensors, strict=True)):
        assert_close(f"input {number}", gradient, tensor.grad)
