"""The stages of a training step, one at a time, each beside the machine's limit for it."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config import EnergyConfig
from ..models.energy_flow import EnergyFlow
from ..nn import run
from ..ops.advance import advance
from ..ops.gru_gates import gru_gates
from ..training.losses import energy_flow_loss
from ..training.optimiser import clip_gradients, named_arrays
from .measure import on_gpu, per_call, timed
from .work import compute_dtype, make_batches, make_model, make_step, product_flops


class Stage(NamedTuple):
    """One stage: `call(*arrays)` gives its outputs; `calls` times in one micro-batch; `flops` of its products in a call."""

    name: str
    calls: int
    flops: float
    call: Callable[..., Any]
    arrays: tuple[mx.array, ...]


def measure_stages(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of each stage in one micro-batch, operations and bytes.

    Bytes are those a stage must move at least once: its weights, inputs and outputs. Every stage runs alone, compiled by
    itself on a GPU: what the whole step fuses or overlaps across stages makes the sum larger than the step.
    """
    config = EnergyConfig.from_dict(job["config"])
    model = make_model(config, training=True, dropout=job["dropout"])
    repeats, limit = job["repeats"], job["limit_s"]
    rows = []
    for stage in _forward_stages(config, model):
        mx.eval(stage.arrays)
        call = mx.compile(stage.call) if on_gpu() else stage.call
        outputs = named_arrays(call(*stage.arrays)).values()
        moved = sum(array.nbytes for array in (*stage.arrays, *outputs))
        del outputs
        seconds = per_call(partial(call, *stage.arrays), stage.calls, repeats=repeats, limit=limit)
        rows.append(_row(stage.name, stage.calls, seconds, stage.flops, moved))
        mx.clear_cache()
    return {"stages": rows + _whole_stages(config, model, repeats, limit)}


def _row(name: str, calls: int, seconds: float, flops: float, moved: float) -> dict[str, Any]:
    return {"stage": name, "calls": calls, "seconds": calls * seconds, "flops": calls * flops, "bytes": calls * moved}


def _forward_stages(config: EnergyConfig, model: EnergyFlow) -> list[Stage]:
    batch = make_batches(config)[0]
    dtype = getattr(mx, compute_dtype(config))
    moves, flops = config.flow_steps, product_flops(config)
    carrier, neuron = model.carrier, model.neuron
    inputs = mx.array(batch.input_embedding)
    state = model.processor.lattice.place_initial_energy(model.mapper.map_to_surface(inputs))
    flows, size = state.position.shape[0], config.carrier_hidden_size
    features = mx.random.normal((flows, config.neuron_output_dim + 1)).astype(dtype)
    hidden = mx.tanh(mx.random.normal((flows, size))).astype(dtype)
    layers = [(layer.Wx.astype(dtype), layer.Wh.astype(dtype)) for layer in carrier.gru]
    gates_in = mx.random.normal((flows, 3 * size)).astype(dtype)
    gates_hidden = mx.random.normal((flows, 3 * size)).astype(dtype)
    bias = carrier.gru[0].bhn.astype(dtype)
    displacement = 0.1 * mx.random.normal((flows, 3))
    surface = mx.random.uniform(-1, 1, (config.batch_size, config.surface_dim))
    ids, mask = mx.array(batch.input_ids), mx.array(batch.attention_mask)

    def parameters(*modules: Any) -> tuple[mx.array, ...]:
        return tuple(array for module in modules for array in named_arrays(module).values())

    def products(x: mx.array, h: mx.array, *weights: mx.array) -> list[mx.array]:
        first = [x @ weights[0].T, h @ weights[1].T]
        return first + [h @ weight.T for weight in weights[2:]]

    def heads(g: mx.array, *_: mx.array) -> list[mx.array]:
        return [run(carrier.energy_projection, g), run(carrier.displacement_projection, g)]

    def moved(*arrays: mx.array) -> Any:
        return advance(*arrays, reflection=config.boundary_reflection_enabled)

    def collected(energy: mx.array, position: mx.array) -> mx.array:
        return model.processor.lattice.collect(state._replace(energy=energy, position=position), state.active)

    def weights_of(module: nn.Module) -> tuple[mx.array, ...]:
        return parameters(module.parameters())

    projections = [layer.parameters() for layer in (*carrier.energy_projection, *carrier.displacement_projection)]
    each_layer = config.carrier_num_layers * moves
    return [
        Stage("mapper", 1, flops["mapper"], lambda x, *_: model.mapper(x), (inputs, *weights_of(model.mapper))),
        Stage("neuron", moves, flops["neuron"] / moves, lambda p, e, *_: neuron(p, e),
              (state.position, state.energy, *weights_of(neuron))),
        Stage("GRU products", moves, flops["gru"] / moves, products, (features, hidden, *parameters(*layers))),
        Stage("gates", each_layer, 0.0, gru_gates, (gates_in, gates_hidden, bias, hidden, state.active)),
        Stage("heads", moves, flops["heads"] / moves, heads, (hidden, *parameters(*projections))),
        Stage("advance", moves, 0.0, moved, (displacement, state.position)),
        Stage("collect", 1, 0.0, collected, (state.energy, state.position)),
        Stage("collector", 1, flops["collector"], lambda s, *_: model.collector(s), (surface, *weights_of(model.collector))),
        Stage("text encoder", 1, flops["text encoder"], lambda i, m, *_: model.text_encoder(i, m),
              (ids, mask, *weights_of(model.text_encoder))),
    ]  # fmt: skip


def _whole_stages(config: EnergyConfig, model: EnergyFlow, repeats: int, limit: float) -> list[dict[str, Any]]:
    """Backward as what the gradients take beyond the loss, and the optimiser with its clipping, both of one micro-batch."""
    batch = make_batches(config)[0]
    step = make_step(config, model)

    def forward() -> None:
        mx.eval(energy_flow_loss(model, config, batch, training_step=0))

    def gradients() -> Any:
        metrics, gradients = step.gradients(0, [batch])
        mx.eval(metrics, gradients)
        return gradients

    found = gradients()

    def update() -> None:
        clipped = clip_gradients(found, config.gradient_clip_per_tensor, config.gradient_clip)
        step.optimiser.update(model, clipped)
        mx.eval(model.parameters(), step.optimiser.state)

    timing = {"warmup": 1, "repeats": repeats, "limit": limit}
    whole = {
        name: statistics.median(timed(call, **timing))  # type: ignore[arg-type]
        for name, call in (("loss", forward), ("gradients", gradients), ("optimiser", update))
    }
    parts = product_flops(config)
    backward = 2 * (sum(parts.values()) - (0 if config.text_loss_weight else parts["text encoder"]))
    trained = sum(array.nbytes for array in named_arrays(model.trainable_parameters()).values())
    return [
        _row("loss (forward, whole)", 1, whole["loss"], backward / 2 + 2 * parts["mapper"], 0),
        _row("backward (whole)", 1, max(whole["gradients"] - whole["loss"], 0.0), backward, 0),
        # AdamW reads the gradient, the weight and two moments, and writes the last three; clipping reads and writes the first.
        _row("optimiser", 1, whole["optimiser"], 0, 9 * trained),
    ]
