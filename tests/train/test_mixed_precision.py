"""16-bit training: weights stay float32, float16 overflows are skipped, losses stay near those of float32."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from train.small import overflow_a_gradient, small_config, small_data, small_model

from energy_flow_mlx.data.source import EpochOrder
from energy_flow_mlx.nn import LayerNorm, Linear
from energy_flow_mlx.train.loss import number
from energy_flow_mlx.train.loss_scale import GROWTH_INTERVAL, LARGEST_SCALE, LossScale
from energy_flow_mlx.train.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.train.step import NonFiniteLoss, TrainStep, micro_batches


def make_step(**changes):
    config = small_config(use_exploration_noise=False, **changes)
    model, optimiser = small_model(config), make_optimiser(config)
    optimiser.init(model.trainable_parameters())
    return TrainStep(model, optimiser, config), model, small_data(config).train, config


def losses(steps: int, dtype: str) -> list[float]:
    # A scale that does not overflow: a skipped step would shift the losses against the others.
    step, _, data, config = make_step(compute_dtype=dtype, gradient_scale_init=2.0**8)
    order = EpochOrder(len(data), config.batch_size, config.seed)
    return [number(step(n, micro_batches(data, order, n, 1), 2e-3).loss) for n in range(steps)]


def test_losses_stay_in_a_band_around_float32():
    # The model has 6 cells: after some 30 steps a flow that ends one cell further moves a loss by more than rounding does.
    exact = np.array(losses(20, "float32"))
    for dtype, band in (("bfloat16", 0.05), ("float16", 0.01)):
        half = np.array(losses(20, dtype))
        assert not np.array_equal(half, exact)
        assert np.abs(half / exact - 1).max() < band, dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("gru_in_float32", [True, False])
def test_weights_surfaces_and_moments_stay_float32(dtype, gru_in_float32):
    step, model, data, _ = make_step(compute_dtype=dtype, gru_force_fp32=gru_in_float32)
    step(0, [data.batch(np.arange(4))], 1e-3)
    for tree in (model.parameters(), step.optimiser.state):
        assert all(a.dtype == mx.float32 for a in named_arrays(tree).values() if mx.issubdtype(a.dtype, mx.floating))
    output = model(mx.array(data.batch(np.arange(4)).input_embedding))
    assert output.surface.dtype == output.embedding.dtype == mx.float32
    hidden = model.processor.step.weights(model.neuron, model.carrier).carrier.heads.inner.dtype
    assert hidden == (mx.float32 if gru_in_float32 else getattr(mx, dtype))


@pytest.mark.parametrize("gru_in_float32", [True, False])
def test_layers_compute_in_the_dtype_of_the_run(gru_in_float32, monkeypatch):
    """The dtypes of every product's factors and of every LayerNorm's input, seen where MLX is called."""
    _, model, data, _ = make_step(compute_dtype="bfloat16", gru_force_fp32=gru_in_float32)
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "off")
    batch, seen = data.batch(np.arange(2)), {}
    kinds = (Linear, LayerNorm)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            seen[id(module)] = name
    dtypes: dict[str, set] = {}

    def watch(kind):
        call = kind.__call__

        def watching(self, x):
            y = call(self, x)
            dtypes.setdefault(seen[id(self)].split(".")[0], set()).update((x.dtype, y.dtype))
            return y

        monkeypatch.setattr(kind, "__call__", watching)

    for kind in kinds:
        watch(kind)
    for training in (True, False):
        model.train(training)
        dtypes.clear()
        model(mx.array(batch.input_embedding))
        model.text_to_surface(mx.array(batch.input_ids), mx.array(batch.attention_mask))
        assert dtypes == {part: {mx.bfloat16} for part in ("mapper", "collector", "text_encoder")}
    weights = model.processor.step.weights(model.neuron, model.carrier).carrier
    products = [*(matrix for layer in weights.layers for matrix in layer[:2]), weights.heads.inner]
    assert {matrix.dtype for matrix in products} == {mx.float32 if gru_in_float32 else mx.bfloat16}
    assert {array.dtype for array in named_arrays(model.parameters()).values()} == {mx.float32}


def test_gradients_of_16_bit_weights_are_summed_over_micro_batches_in_float32():
    step, model, data, config = make_step(compute_dtype="bfloat16")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module._p_1 = 1.0  # keeps everything, so that micro-batches of the same pairs are alike
    batch = data.batch(np.arange(config.batch_size))
    single = named_arrays(step.gradients(0, [batch])[1])
    mean = named_arrays(step.gradients(0, [batch] * 3)[1])
    in_16_bits = {name for name, gradient in single.items() if gradient.dtype == mx.bfloat16}
    assert {"mapper.projection.4.weight", "carrier.gru.0.Wh", "text_encoder.token_embedding.weight"} <= in_16_bits
    assert "carrier.gru.0.b" not in in_16_bits
    assert {gradient.dtype for gradient in mean.values()} == {mx.float32}
    for name, gradient in single.items():  # in bfloat16 the sum of three would be off by 4e-3
        exact = np.array(gradient.astype(mx.float32))
        np.testing.assert_allclose(np.array(mean[name]), exact, rtol=1e-6, atol=0, err_msg=name)
    for count in (1, 2):
        assert step.gradients(0, [batch] * count)[0].parts.arrived.dtype == mx.int32


def test_an_overflow_skips_the_step_and_halves_the_scale():
    step, model, data, _ = make_step(compute_dtype="float16", gradient_scale_init=2.0**24)
    batch = [data.batch(np.arange(4))]
    before = {name: np.array(array) for name, array in named_arrays(model.parameters()).items()}
    metrics = step(0, batch, 1e-3)
    assert number(metrics.skipped) == 1 and number(metrics.loss_scale) == 2.0**24
    assert number(step.loss_scale.scale) == 2.0**23 and number(step.loss_scale.skipped) == 1
    for name, array in named_arrays(model.parameters()).items():
        np.testing.assert_array_equal(np.array(array), before[name], err_msg=name)
    assert number(step.optimiser.state["step"]) == 0
    skipped = 1
    while number(step(skipped, batch, 1e-3).skipped):
        skipped += 1
        assert skipped < 24
    assert number(step.loss_scale.skipped) == skipped
    assert any(not np.array_equal(np.array(a), before[n]) for n, a in named_arrays(model.parameters()).items())


def test_a_scale_that_falls_under_one_stops_the_run():
    step, _, data, _ = make_step(compute_dtype="float16", gradient_scale_init=1.0)
    overflow_a_gradient(step)
    with pytest.raises(NonFiniteLoss, match=r"mapper\.energy_bias"):
        step(0, [data.batch(np.arange(4))], 1e-3)


def test_the_scale_grows_after_good_steps_and_is_bounded():
    state = LossScale.start(4.0, good=GROWTH_INTERVAL - 1)
    grown = state.after(mx.array(True))
    assert (number(grown.scale), number(grown.good), number(grown.skipped)) == (8.0, 0, 0)
    shrunk = grown.after(mx.array(False))
    assert (number(shrunk.scale), number(shrunk.good), number(shrunk.skipped)) == (4.0, 0, 1)
    top = LossScale.start(LARGEST_SCALE, good=GROWTH_INTERVAL - 1).after(mx.array(True))
    assert number(top.scale) == LARGEST_SCALE
