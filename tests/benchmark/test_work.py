"""What is measured: the configuration, the batches, and the operations that are counted."""

import mlx.core as mx
import numpy as np
import pytest
from train.small import small_config

from energy_flow_mlx import ConfigError, EnergyConfig
from energy_flow_mlx.benchmark.work import (
    STILL,
    benchmark_config,
    flow_steps,
    make_batches,
    make_model,
    product_flops,
    require_comparable,
    total_flops,
)


def recorded_flops(call):
    """Operations of the products that MLX would run for `call()`, read off its graph."""
    total = 0.0

    def note(event):
        nonlocal total
        if event["type"] == "primitive" and event["name"] in ("Matmul", "AddMM"):
            (_, left, _), (_, right, _) = event["inputs"][:2]
            total += 2.0 * np.prod(left) * right[-1]

    mx.disable_compile()  # a compiled piece would be one primitive
    try:
        with mx.stream(mx.cpu):  # attention is plain products there, on a GPU one kernel
            mx.export_function(note, lambda: call())
    finally:
        mx.enable_compile()
    return total


def test_counted_forward_is_what_mlx_runs(monkeypatch):
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "off")  # by NumPy the two heads are one product, with zeros that are not counted
    # F + 1 is a multiple of 8, so that the GRU's input has no padding, which is not counted.
    config = small_config(
        use_exploration_noise=False, carrier_num_layers=3, carrier_hidden_size=12, neuron_output_dim=7
    )
    model = make_model(config, training=False, dropout=False)
    (batch,) = make_batches(config)
    inputs = mx.array(batch.input_embedding)
    assert recorded_flops(lambda: model(inputs).embedding) == total_flops(config, "forward")


def test_counted_text_encoder_is_what_mlx_runs():
    config = small_config()
    model = make_model(config, training=False, dropout=False)
    (batch,) = make_batches(config)
    ids, mask = mx.array(batch.input_ids), mx.array(batch.attention_mask)
    assert recorded_flops(lambda: model.text_encoder(ids, mask)) == product_flops(config)["text encoder"]


def test_training_counts_each_product_three_times_and_the_targets_once():
    config = small_config(gradient_accumulation_steps=2)
    parts = product_flops(config)
    assert total_flops(config, "training") == 2 * (3 * sum(parts.values()) + parts["mapper"])
    silent = config.replace(text_loss_weight=0.0)
    assert total_flops(config, "training") - total_flops(silent, "training") == 2 * 3 * parts["text encoder"]


def test_experiment_has_the_known_size():
    config = EnergyConfig.experiment().replace(**STILL)
    assert flow_steps(config, "training") == 16 * 28 * 28 * 20
    assert total_flops(config, "training") == pytest.approx(6.3e12, rel=0.02)


def test_flags_and_files_go_over_what_is_off(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("gradient_accumulation_steps: 2\n")
    config = benchmark_config("experiment", file, {"use_exploration_noise": True}, as_trained=False)
    assert (config.movement_based_spawn, config.use_exploration_noise, config.gradient_accumulation_steps) == (
        False,
        True,
        2,
    )
    assert benchmark_config("experiment", None, {}, as_trained=True) == EnergyConfig.experiment()


@pytest.mark.parametrize(
    "change", [{"movement_based_spawn": True}, {"use_exploration_noise": True}, {"collection": "bilinear"}, {"input_residual": True}]
)
def test_what_torch_does_not_do_is_refused(change):
    require_comparable(small_config(**STILL))
    (name,) = change
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        require_comparable(small_config(**{**STILL, **change}))


def test_batches_are_reproducible_and_of_the_configured_sizes():
    config = small_config(gradient_accumulation_steps=2)
    first, again = make_batches(config), make_batches(config)
    assert len(first) == 2
    for batch, same in zip(first, again, strict=True):
        for array, other in zip(batch, same, strict=True):
            np.testing.assert_array_equal(array, other)
        np.testing.assert_allclose(np.linalg.norm(batch.input_embedding, axis=1), 1, rtol=1e-5)
        assert batch.input_ids.shape == (config.batch_size, config.text_max_length)
        assert batch.input_ids.max() < config.text_vocab_size
        tokens = batch.attention_mask.sum(axis=1)
        assert (tokens >= config.text_max_length / 2).all() and batch.attention_mask[:, 0].all()


def test_dropout_is_off_unless_asked_for():
    config = small_config(use_exploration_noise=False, dropout=0.1)
    (batch,) = make_batches(config)
    ids, mask, x = (mx.array(a) for a in (batch.input_ids, batch.attention_mask, batch.input_embedding))
    for dropout in (False, True):
        model = make_model(config, training=True, dropout=dropout)
        for call in (lambda m=model: m.text_encoder(ids, mask), lambda m=model: m.mapper(x)):
            assert mx.array_equal(call(), call()).item() is not dropout
