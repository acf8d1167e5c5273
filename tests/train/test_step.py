"""One optimiser step: accumulation, determinism, and stopping on non-finite numbers."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from train.small import overflow_a_gradient, small_config, small_data, small_model

from energy_flow_mlx.data.source import EpochOrder, PairBatch
from energy_flow_mlx.distributed import World
from energy_flow_mlx.train.loss import number
from energy_flow_mlx.train.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.train.stages import STAGES
from energy_flow_mlx.train.step import NonFiniteLoss, TrainStep, micro_batches, step_keys


def make_step(**changes):
    config = small_config(**changes)
    model = small_model(config)
    optimiser = make_optimiser(config)
    return TrainStep(model, optimiser, config), model, optimiser, small_data(config).train


def as_numpy(tree):
    return {name: np.array(array) for name, array in named_arrays(tree).items()}


def test_accumulation_equals_the_large_batch():
    results = []
    for size, count in ((8, 1), (2, 4)):
        step, model, _, data = make_step(batch_size=size, gradient_accumulation_steps=count, use_exploration_noise=False)
        model.eval()  # dropout differs between one large and four small batches
        order = EpochOrder(8, size, seed=0)
        batches = [data.batch(np.arange(start, start + size)) for start in range(0, 8, size)]
        assert order.steps_per_epoch == count
        metrics, gradients = step.gradients(0, batches)
        results.append((as_numpy(gradients), number(metrics.loss), number(metrics.parts.ended)))
    (large, large_loss, large_ended), (small, small_loss, small_ended) = results
    assert large.keys() == small.keys()
    for name, gradient in large.items():
        np.testing.assert_allclose(small[name], gradient, atol=1e-6, rtol=1e-4, err_msg=name)
    assert small_loss == pytest.approx(large_loss, rel=1e-5)
    assert small_ended == large_ended == 8 * 6


def test_micro_batches_take_turns_in_the_order_of_the_data():
    _, _, _, data = make_step()
    order = EpochOrder(len(data), 4, seed=3)
    taken = [batch.indices for step in range(3) for batch in micro_batches(data, order, step, 2)]
    np.testing.assert_array_equal(np.concatenate(taken), np.concatenate([order.indices(i) for i in range(6)]))


def test_a_step_moves_every_trainable_parameter_and_no_other():
    step, model, _, data = make_step(weight_decay=0)
    before = as_numpy(model.parameters())
    trainable = named_arrays(model.trainable_parameters()).keys()
    for number_ in range(3):
        step(number_, [data.batch(np.arange(4 * number_, 4 * number_ + 4))], 1e-2)
    after = as_numpy(model.parameters())
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == trainable
    assert model.trained_steps == 3


def test_the_same_step_twice_is_the_same_and_another_step_is_not():
    losses = []
    for number_ in (5, 5, 6):
        step, _, _, data = make_step()
        mx.random.normal((number_,))  # what was drawn before must not matter
        losses.append(number(step(number_, [data.batch(np.arange(4))], 1e-3).loss))
    assert losses[0] == losses[1] != losses[2]


def test_keys_differ_between_steps_and_micro_batches():
    seeds = {step_keys(seed, step, micro)[0] for seed in range(3) for step in range(3) for micro in range(3)}
    assert len(seeds) == 27


def broken(batch: PairBatch) -> PairBatch:
    embedding = batch.input_embedding.copy()
    embedding[1] = np.nan
    return batch._replace(input_embedding=embedding)


def test_a_non_finite_loss_names_step_batch_and_parameter_and_updates_nothing():
    step, model, optimiser, data = make_step(gradient_accumulation_steps=2)
    step(0, [data.batch(np.arange(4)), data.batch(np.arange(4, 8))], 1e-3)
    weights, state = as_numpy(model.parameters()), as_numpy(optimiser.state)
    with pytest.raises(NonFiniteLoss) as caught:
        step(1, [data.batch(np.array([9, 8, 7, 6])), broken(data.batch(np.array([1, 2, 3, 4])))], 1e-3)
    assert caught.value.step == 1
    assert caught.value.indices == [9, 8, 7, 6, 1, 2, 3, 4]
    assert caught.value.parameter in weights
    for word in ("step 1", "nan", "the input embedding of training pair 2 is not finite", caught.value.parameter, "[9, 8, 7, 6, 1, 2, 3, 4]"):
        assert word in str(caught.value)
    assert model.trained_steps == 1
    for before, after in ((weights, as_numpy(model.parameters())), (state, as_numpy(optimiser.state))):
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_several_processes_name_what_one_of_them_found_and_all_pairs():
    """This process found nothing in its own share; the other one's share of the batches stands beside it."""

    class Two(World):
        def exchange(self, value):
            return [value, ["the target embedding of training pair 9 is not finite", [[2, 3], [8, 9]]]]

    step, _, _, data = make_step()
    launched = step.launch(0, [data.batch(np.array([0, 1])), data.batch(np.array([6, 7]))], 1e-3)
    step.world = Two()
    error = step._non_finite(launched, math.nan)
    assert error.indices == [0, 1, 2, 3, 6, 7, 8, 9]
    assert "the loss is nan: the target embedding of training pair 9 is not finite" in str(error)


def poisoned(function):
    """`function` with every float that it gives NaN."""
    return lambda *arguments, **options: tree_map(
        lambda array: array * math.nan if mx.issubdtype(array.dtype, mx.floating) else array, function(*arguments, **options)
    )


@pytest.mark.parametrize(("owner", "attribute", "name"), STAGES, ids=[name for *_, name in STAGES])
def test_the_first_stage_whose_output_is_not_finite_is_named(owner, attribute, name, monkeypatch):
    step, _, _, data = make_step(enable_gru_nan_protection=False)
    monkeypatch.setattr(owner, attribute, poisoned(getattr(owner, attribute)))
    with pytest.raises(NonFiniteLoss, match=f"is that of the stage {name}. The largest"):
        step(0, [data.batch(np.arange(4))], 1e-3)


def test_a_parameter_that_is_not_finite_is_named():
    step, model, _, data = make_step()
    model.carrier.gru[0].bhn = mx.full(model.carrier.gru[0].bhn.shape, math.nan)
    with pytest.raises(NonFiniteLoss, match=r"not finite is the parameter carrier\.gru\.0\.bhn\. The"):
        step(0, [data.batch(np.arange(4))], 1e-3)


def test_the_parameter_with_the_largest_gradient_is_named():
    """A finite loss whose gradient overflows in one place."""
    step, model, _, data = make_step()
    mapper = model.mapper
    mapper.energy_scale = mx.array([1e-30])
    overflow_a_gradient(step)
    with pytest.raises(NonFiniteLoss, match=r"not the gradient of mapper\.energy_bias\. .*energy_bias, has norm inf"):
        step(0, [data.batch(np.arange(4))], 1e-3)
