"""The numbers of a split, the baselines and the table."""

import numpy as np
import pytest
from train.small import small_config, small_data, small_model

from energy_flow_mlx.data.source import ArrayPairs, PairData
from energy_flow_mlx.text.tokeniser import TokenBatch
from energy_flow_mlx.train.loss import cosine
from energy_flow_mlx.train.report import RidgeFit, Row, baselines, draw_curves, evaluate, held_out_rows, table


def pairs(inputs, targets):
    count = len(inputs)
    tokens = TokenBatch(np.ones((count, 3), np.int32), np.ones((count, 3), np.int32))
    return ArrayPairs([("a", "b")] * count, inputs.astype(np.float32), targets.astype(np.float32), tokens)


def linear_data(noise):
    """Targets that are a linear map of the inputs, and noise."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(5, 5)), random.normal(size=5)

    def part(count):
        inputs = random.normal(size=(count, 5))
        return pairs(inputs, inputs @ weight + bias + noise * random.normal(size=(count, 5)))

    return PairData(part(2000), part(50), part(50), None, "linear"), weight, bias


def test_ridge_is_the_least_squares_solution():
    data, weight, bias = linear_data(noise=0.0)
    fit = RidgeFit.of(data.train).solve(1e-3)
    np.testing.assert_allclose(fit.weight, weight, atol=1e-4)
    np.testing.assert_allclose(fit.bias, bias, atol=1e-4)
    batch = data.train.batch(np.arange(2000))
    x, y = (array - array.mean(0) for array in (batch.input_embedding, batch.target_embedding))
    normal = np.linalg.solve(x.T @ x + 100.0 * np.eye(5), x.T @ y)
    np.testing.assert_allclose(RidgeFit.of(data.train).solve(100.0).weight, normal, atol=1e-4)


def test_baselines_on_data_where_they_are_known():
    data, *_ = linear_data(noise=0.0)
    rows = {row.method.split(" (")[0]: row.cosine for row in baselines(data)}
    batch = data.test.batch(np.arange(50))

    def mean_cosine(predicted):
        y = batch.target_embedding
        return np.mean((predicted * y).sum(1) / np.linalg.norm(predicted, axis=1) / np.linalg.norm(y, axis=1))

    assert rows["ridge regression"] == pytest.approx(1.0, abs=1e-4)
    assert rows["input itself"] == pytest.approx(mean_cosine(batch.input_embedding), abs=1e-5)
    mean = data.train.batch(np.arange(2000)).target_embedding.mean(0)
    assert rows["mean target"] == pytest.approx(mean_cosine(np.tile(mean, (50, 1))), abs=1e-5)


def test_the_penalty_is_chosen_on_the_validation_split():
    """With few, noisy pairs to fit on, a large penalty predicts better than a small one."""
    random = np.random.default_rng(1)
    def part(count):
        return pairs(random.normal(size=(count, 20)), 1 + random.normal(size=(count, 20)))
    data = PairData(part(25), part(200), part(200), None, "noise")
    ridge = baselines(data)[-1]
    assert ridge.method == "ridge regression (penalty 1000)"
    assert ridge.cosine > 0.5


def test_evaluation_is_the_mean_over_all_pairs_whatever_the_batch_size():
    config = small_config()
    model, data = small_model(config), small_data(config)
    results = [evaluate(model, data.validation, config.replace(batch_size=size)) for size in (3, 8, 100)]
    assert model.training
    for result in results[1:]:
        assert vars(result) == pytest.approx(vars(results[0]), rel=1e-5)
    model.eval()
    import mlx.core as mx

    batch = data.validation.batch(np.arange(8))
    wanted = cosine(model(mx.array(batch.input_embedding)).embedding, mx.array(batch.target_embedding))
    assert results[0].cosine == pytest.approx(float(np.array(wanted).mean()), rel=1e-5)


def test_the_table_has_all_rows_and_the_best_last():
    config = small_config()
    model, data = small_model(config), small_data(config)
    rows = held_out_rows(model, data, config.replace(batch_size=4))
    assert [row.method.split(" (")[0] for row in rows] == ["input itself", "mean target", "ridge regression", "energy flow"]
    text = table([Row("model", 0.5, 0.25, 1.0), Row("mean", 0.25)], "a title")
    assert text.split("\n") == [
        "a title",
        "        cosine  surface MSE  arrived",
        "mean    0.2500",
        "model   0.5000       0.2500   100.0%",
    ]


def test_curves_are_drawn(tmp_path):
    parts = {"surface": 0.5, "text": 0.0, "embedding": 0.5, "target_surface_variance": 0.1}
    metrics = [{"step": step, "loss": 1.0, **parts} for step in (1, 2)] + [{"step": 2, "validation_cosine": 0.3}]
    draw_curves(tmp_path / "curves.png", metrics)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
