"""The loss: its value, its targets, its guards."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from train.small import small_config, small_data, small_model

from energy_flow_mlx.train.loss import cosine, energy_flow_loss, number
from energy_flow_mlx.train.optimiser import gradient_norms


@pytest.fixture(scope="module")
def setting():
    config = small_config(use_exploration_noise=False)
    model = small_model(config)
    model.eval()  # no dropout: values can be compared
    outer = model.carrier.displacement_projection[-1]
    outer.bias = 0.8 * outer.bias  # flows stop short of the plane, so that the arrival term is not 0
    return config, model, small_data(config).train.batch(np.arange(6))


def test_loss_is_the_weighted_sum_of_its_parts(setting):
    config, model, batch = setting
    config = config.replace(
        surface_loss_weight=0.7, text_loss_weight=0.3, embedding_loss_weight=0.2, arrival_loss_weight=0.4
    )
    loss, parts = energy_flow_loss(model, config, batch)
    out = model(mx.array(batch.input_embedding))
    targets = np.array(batch.target_embedding)
    embedding = np.array(out.embedding)
    cosines = (embedding * targets).sum(1) / np.linalg.norm(embedding, axis=1) / np.linalg.norm(targets, axis=1)
    wanted = np.array(model.mapper.map_to_surface(mx.array(targets))).reshape(6, -1)
    text_wanted = np.array(model.mapper.map_to_surface(mx.array(batch.input_embedding))).reshape(6, -1)
    text = np.array(model.text_encoder(mx.array(batch.input_ids), mx.array(batch.attention_mask)))
    np.testing.assert_allclose(number(parts.surface), np.mean((np.array(out.surface) - wanted) ** 2), rtol=1e-5)
    np.testing.assert_allclose(number(parts.text), np.mean((text - text_wanted) ** 2), rtol=1e-5)
    np.testing.assert_allclose(number(parts.embedding), 1 - cosines.mean(), rtol=1e-5)
    np.testing.assert_allclose(number(parts.target_surface_variance), wanted.var(axis=0).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        number(loss),
        0.7 * number(parts.surface) + 0.3 * number(parts.text) + 0.2 * number(parts.embedding) + 0.4 * number(parts.arrival),
        rtol=1e-5,
    )
    states = model.processor(model.map_to_surface(mx.array(batch.input_embedding)))
    assert 0 < number(parts.arrival) == pytest.approx(number(states.distance), rel=1e-6)
    assert number(parts.ended) == 6 * config.surface_dim


def test_the_target_surface_gets_no_gradient(setting):
    """The surface term's gradient at the mapper is that of the input's way alone."""
    config, model, batch = setting
    config = config.replace(surface_loss_weight=1.0, text_loss_weight=0, embedding_loss_weight=0, arrival_loss_weight=0)
    fixed = mx.array(np.array(model.mapper.map_to_surface(mx.array(batch.target_embedding)))).reshape(6, -1)

    def through_the_input_alone(model):
        return mx.mean(mx.square(model(mx.array(batch.input_embedding)).surface - fixed))

    _, wanted = nn.value_and_grad(model, through_the_input_alone)(model)
    _, got = nn.value_and_grad(model, lambda model: energy_flow_loss(model, config, batch)[0])(model)
    names, norms = gradient_norms(wanted["mapper"])
    _, got_norms = gradient_norms(got["mapper"])
    assert np.all(np.array(norms) > 0), names
    np.testing.assert_allclose(np.array(got_norms), np.array(norms), rtol=1e-5)


def test_the_text_term_leaves_the_mapper_alone(setting):
    config, model, batch = setting
    config = config.replace(surface_loss_weight=0, embedding_loss_weight=0, arrival_loss_weight=0, text_loss_weight=1)
    _, gradients = nn.value_and_grad(model, lambda model: energy_flow_loss(model, config, batch)[0])(model)
    assert np.all(np.array(gradient_norms(gradients["mapper"])[1]) == 0)
    assert np.all(np.array(gradient_norms(gradients["text_encoder"])[1]) > 0)


def test_cosine_of_a_zero_row_is_0_with_a_finite_gradient():
    a = mx.array([[0.0, 0.0], [3.0, 4.0]])
    b = mx.array([[1.0, 0.0], [4.0, 3.0]])
    np.testing.assert_allclose(np.array(cosine(a, b)), [0.0, 0.96], rtol=1e-6)
    gradient = mx.grad(lambda a: mx.sum(cosine(a, b)))(a)
    assert np.all(np.isfinite(np.array(gradient)))


def test_without_a_text_weight_the_text_encoder_is_not_run(setting):
    config, model, batch = setting
    config = config.replace(text_loss_weight=0)
    broken = batch._replace(input_ids=np.zeros((2, 2, 2), np.int32))
    assert number(energy_flow_loss(model, config, broken)[1].text) == 0
