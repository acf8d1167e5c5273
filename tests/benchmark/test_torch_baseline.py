"""The torch baseline does the same work: same loss, same gradients, same step, from the same weights."""

import mlx.core as mx
import numpy as np
import pytest
import torch
import torch_baseline
import torch_model
from models.parity import assert_close
from train.small import small_config

from energy_flow_mlx.benchmark.processes import save_batches
from energy_flow_mlx.benchmark.work import STILL, make_batches, make_model, make_step
from energy_flow_mlx.train.loss import energy_flow_loss
from energy_flow_mlx.train.optimiser import named_arrays

NAMES = ("input_embedding", "target_embedding", "input_ids", "attention_mask")
# Moves of these sizes make flows arrive, bounce off walls and stay unfinished.
LONG = {"displacement_scale": 20.0, "displacement_scale_min": 20.0, "lattice_depth": 12}
CASES = {
    "default": {},
    "long moves": LONG,
    "walls clamp": {**LONG, "boundary_reflection_enabled": False},
    "dropped": {**LONG, "project_unfinished": False},
    "no text": {"text_loss_weight": 0.0},
    "checkpointed": {"gradient_checkpointing": True},
    "unprotected": {"enable_gru_nan_protection": False},
}


def still_config(**changes):
    fields = {"carrier_num_layers": 2, "gradient_clip_per_tensor": 0.01, "flow_learning_rate_factor": 1.0, "dropout": 0.1}
    return small_config(**{**STILL, **fields, **changes})


def torch_twin(config, model, gru="cell"):
    twin = torch_model.TorchEnergyFlow(config.to_dict(), gru)
    twin.load({name: np.array(value) for name, value in named_arrays(model.parameters()).items()})
    return twin.train()


def in_our_terms(twin):
    """The gradients of the baseline (its GRU as cells) by our names."""
    gradients = {}
    for name, parameter in twin.named_parameters():
        gradient = parameter.grad.numpy()
        if "in_proj_" in name:
            for part, value in zip(("query", "key", "value"), np.split(gradient, 3), strict=True):
                gradients[name.replace("in_proj_", f"{part}_proj.")] = value
        elif name == "text_encoder.positional_encoding":
            gradients[f"{name}.weight"] = gradient
        else:
            gradients[name] = gradient
    return gradients


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gru", ["cell", "cudnn"])
def test_same_loss_and_gradients(case, gru):
    config = still_config(**CASES[case])
    model = make_model(config, training=True, dropout=False)
    twin = torch_twin(config, model, gru)
    (batch,) = make_batches(config)
    step = make_step(config, model)
    metrics, gradients = step.gradients(0, [batch])
    loss = twin.loss(*(torch.as_tensor(getattr(batch, name)) for name in NAMES))
    assert_close("loss", metrics.loss, loss.detach())
    loss.backward()
    if gru == "cell":
        ours, theirs = named_arrays(gradients), in_our_terms(twin)
        assert ours.keys() == theirs.keys()
        for name, gradient in ours.items():
            assert_close(name, gradient, theirs[name])
    if config.lattice_depth == LONG["lattice_depth"]:
        arrived, ended = metrics.parts.arrived.item(), metrics.parts.ended.item()
        assert 0 < arrived < ended == config.batch_size * config.surface_dim


def test_same_embedding_and_surface():
    config = still_config(**LONG)
    model = make_model(config, training=False, dropout=False)
    (batch,) = make_batches(config)
    ours = model(mx.array(batch.input_embedding))
    with torch.no_grad():
        embedding, surface = torch_twin(config, model).eval()(torch.as_tensor(batch.input_embedding))
    assert_close("embedding", ours.embedding, embedding)
    assert_close("surface", ours.surface, surface)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_same_losses_over_several_optimiser_steps(tmp_path, accumulated):
    config = still_config(gradient_accumulation_steps=accumulated, gradient_clip=0.05, learning_rate=1e-2)
    model = make_model(config, training=True, dropout=False)
    batches = make_batches(config)
    save_batches(tmp_path / "data.npz", batches)
    mx.savez(str(tmp_path / "weights.npz"), **named_arrays(model.parameters()))
    job = {
        "what": "training",
        "config": config.to_dict(),
        "dropout": False,
        "variant": ["fp32", "cell", "eager"],
        "data": str(tmp_path / "data.npz"),
        "weights": str(tmp_path / "weights.npz"),
    }
    run = torch_baseline.Run(job, torch.device("cpu"))
    step = make_step(config, model)
    ours = [step(number, batches, config.learning_rate).loss.item() for number in range(5)]
    theirs = [run.train().item() for _ in range(5)]
    assert_close("losses", ours, theirs)
    assert theirs[-1] < theirs[0]


def test_autocast_stays_near():
    config = still_config()
    model = make_model(config, training=True, dropout=False)
    twin = torch_twin(config, model)
    (batch,) = make_batches(config)
    expected = energy_flow_loss(model, config, batch)[0].item()
    twin.hidden_dtype = torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        loss = twin.loss(*(torch.as_tensor(getattr(batch, name)) for name in NAMES))
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected) < 0.02 * abs(expected)


def test_unknown_variants_are_refused():
    job = {"variant": ["fp8", "cell", "eager"], "config": {}}
    with pytest.raises(ValueError, match="fp8"):
        torch_baseline.Run(job, torch.device("cpu"))
