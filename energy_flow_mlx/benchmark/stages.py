"""Timing the stages of a training step separately, with the FLOPs and bytes from which their limits follow."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config import EnergyConfig
from ..models.carrier import input_size
from ..models.energy_flow import EnergyFlow
from ..models.whole_step import WholeStep, unsuited, why_apart
from ..nn.precision import DTYPES
from ..ops.advance import advance
from ..ops.gru_gates import gru_gates
from ..ops.kernel import on_gpu
from ..train import memory
from ..train.loss import energy_flow_loss
from ..train.optimiser import clip_factors, gradient_norms, named_arrays
from .measure import per_call, timed
from .work import make_batches, make_model, make_step, product_flops


class Stage(NamedTuple):
    """One stage: `call(*arrays)` computes its outputs.

    calls: calls in one micro-batch.
    flops: FLOPs of its matrix products in one call.
    arrays: inputs and weights, in the shapes that `call` takes; their bytes are counted.
    """

    name: str
    calls: int
    flops: float
    call: Callable[..., Any]
    arrays: tuple[mx.array, ...]


def measure_stages(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, FLOPs and bytes of each stage in one micro-batch, and why evaluation does not take neuron to advance as one kernel ("": it does).

    Bytes are those that a stage must move at least once: weights, inputs and outputs. Each stage is timed separately,
    with random inputs and as many calls as in a micro-batch, without synchronisation between calls.
    """
    config = EnergyConfig.from_dict(job["config"])
    memory.limit(config)
    model = make_model(config, training=True, dropout=job["dropout"])
    repeats, limit = job["repeats"], job["limit_s"]
    rows = []
    for stage in _forward_stages(config, model):
        mx.eval(stage.arrays)
        outputs = named_arrays(stage.call(*stage.arrays)).values()
        moved = sum(array.nbytes for array in (*stage.arrays, *outputs))
        del outputs
        seconds = per_call(partial(stage.call, *stage.arrays), stage.calls, repeats=repeats, limit=limit)
        rows.append(_row(stage.name, stage.calls, seconds, stage.flops, moved))
        mx.clear_cache()
    return {"stages": rows + _whole_stages(config, model, repeats, limit), "why_apart": why_apart(model.processor.step)}


def _row(name: str, calls: int, seconds: float, flops: float, moved: float) -> dict[str, Any]:
    return {"stage": name, "calls": calls, "seconds": calls * seconds, "flops": calls * flops, "bytes": calls * moved}


def _forward_stages(config: EnergyConfig, model: EnergyFlow) -> list[Stage]:
    batch = make_batches(config)[0]
    moves, flops = config.flow_steps, product_flops(config)
    processor, step = model.processor, model.processor.step
    weights = step.weights(model.neuron, model.carrier)  # prepared once per micro-batch, shared by all moves
    dtype = step.dtype
    inputs = mx.array(batch.input_embedding)
    state = processor.lattice.place_initial_energy(model.map_to_surface(inputs), dtype)
    flows, size = state.position.shape[0], config.carrier_hidden_size
    features = mx.random.normal((flows, input_size(config))).astype(dtype)
    hidden = mx.tanh(mx.random.normal((flows, size))).astype(dtype)
    gates_in = mx.random.normal((flows, 3 * size)).astype(dtype)
    gates_hidden = mx.random.normal((flows, 3 * size)).astype(dtype)
    last = weights.carrier.layers[-1]
    displacement = 0.1 * mx.random.normal((flows, 3))
    surface = mx.random.uniform(-1, 1, (config.batch_size, config.surface_dim))
    ids, mask = mx.array(batch.input_ids), mx.array(batch.attention_mask)

    def parameters(module: nn.Module) -> tuple[mx.array, ...]:
        return tuple(named_arrays(module.parameters()).values())

    def products(x: mx.array, h: mx.array, *layers: mx.array) -> list[mx.array]:
        return [x @ layers[0].T, h @ layers[1].T, *(h @ weight.T for weight in layers[2:])]

    def gates(*arrays: mx.array) -> mx.array:
        return gru_gates(*arrays, bound=config.gru_output_clip_value)

    def moved(displacement: mx.array, energy: mx.array, position: mx.array, active: mx.array, age: mx.array) -> Any:
        return advance(
            displacement, energy, position, energy, None, active, age, reflection=config.boundary_reflection_enabled
        )  # fmt: skip

    def collected(energy: mx.array, position: mx.array) -> mx.array:
        return processor.lattice.collect(state._replace(energy=energy, position=position), state.active)

    def embedded(surface: mx.array, *_: mx.array) -> mx.array:
        products_in = DTYPES[config.compute_dtype]
        return model.collector(surface.astype(products_in)).astype(mx.float32)

    matrices = [matrix for layer in weights.carrier.layers for matrix in (layer.input, layer.hidden)]
    each_layer = config.carrier_num_layers * moves
    # Weights are listed even if a call takes them from its module, because their bytes are counted.
    stages = [
        Stage("mapper", 1, flops["mapper"], lambda x, *_: model.map_to_surface(x), (inputs, *parameters(model.mapper))),
        Stage("neuron", moves, flops["neuron"] / moves,
              lambda p, e, *w: step.features(weights._replace(neuron=list(w)), state._replace(position=p, energy=e)),
              (state.position, state.energy, *weights.neuron)),
        Stage("GRU products", moves, flops["gru"] / moves, products, (features, hidden, *matrices)),
        Stage("gates", each_layer, 0.0, gates, (gates_in, gates_hidden, last.bias, last.hidden_bias, hidden, state.active)),
        Stage("heads", moves, flops["heads"] / moves, lambda g, *_: step.steer(weights, g, model.carrier.scale(0)),
              (hidden, *weights.carrier.heads)),
        Stage("advance", moves, 0.0, moved, (displacement, state.energy, state.position, state.active, state.age)),
        Stage("collect", 1, 0.0, collected, (state.energy, state.position)),
        Stage("collector", 1, flops["collector"], embedded, (surface, *parameters(model.collector))),
        Stage("text encoder", 1, flops["text encoder"], lambda i, m, *_: model.text_to_surface(i, m),
              (ids, mask, *parameters(model.text_encoder))),
    ]  # fmt: skip
    if on_gpu() and not unsuited(step):  # measured even where it is off: to decide whether it should be
        whole = WholeStep(step, weights)
        start, scale = whole.start(state), model.carrier.scale(0)
        arrays = (start.position, start.energy, start.active, start.age, *start.hidden, *whole.packed)
        operations = sum(flops[part] for part in ("neuron", "gru", "heads")) / moves

        def moved_whole(*_: mx.array) -> Any:
            after, _trace = whole(weights, start, None, scale)
            return after.position, after.energy, after.active, after.age, after.hidden

        def lived(*_: mx.array) -> Any:
            after = whole.life(state, moves, scale)
            return after.position, after.energy, after.active, after.age

        stages[6:6] = [
            Stage("neuron to advance, one kernel", moves, operations, moved_whole, arrays),
            Stage("all moves, one kernel", 1, moves * operations, lived, (*arrays[:4], *whole.packed)),
        ]
    return stages


def _whole_stages(config: EnergyConfig, model: EnergyFlow, repeats: int, limit: float) -> list[dict[str, Any]]:
    """Loss, backward pass (time of the gradients minus the loss) and optimiser with clipping, for one micro-batch."""
    batch = make_batches(config)[0]
    step = make_step(config, model)

    def forward() -> None:
        mx.eval(energy_flow_loss(model, config, batch, key=mx.random.key(0), training_step=0))

    def gradients() -> Any:
        metrics, gradients = step.gradients(0, [batch])
        mx.eval(metrics, gradients)
        return gradients

    found = gradients()

    def update() -> None:
        norms = gradient_norms(found)[1]
        factors = clip_factors(norms, config.gradient_clip_per_tensor, config.gradient_clip)
        model.update(step.optimiser.apply_gradients(found, model.trainable_parameters(), factors))
        mx.eval(model.parameters(), step.optimiser.state)

    timing = {"warmup": 1, "repeats": repeats, "limit": limit}
    seconds = {
        name: statistics.median(timed(call, **timing))  # type: ignore[arg-type]
        for name, call in (("loss", forward), ("gradients", gradients), ("optimiser", update))
    }
    parts = product_flops(config)
    backward = 2 * (sum(parts.values()) - (0 if config.text_loss_weight else parts["text encoder"]))
    trained, given = (
        sum(array.nbytes for array in named_arrays(tree).values()) for tree in (model.trainable_parameters(), found)
    )
    return [
        _row("loss (forward, whole)", 1, seconds["loss"], backward / 2 + parts["mapper"], 0),
        _row("backward (whole)", 1, max(seconds["gradients"] - seconds["loss"], 0.0), backward, 0),
        # The norms and AdamW read the gradients; AdamW reads and writes weight and both moments.
        _row("optimiser", 1, seconds["optimiser"], 0, 2 * given + 6 * trained),
    ]
