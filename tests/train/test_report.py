"""The numbers of a split, the baselines and the table."""

import mlx.core as mx
import numpy as np
import pytest
from train.small import small_config, small_data, small_model
from worlds import together

from energy_flow_mlx.data.source import ArrayPairs, PairData
from energy_flow_mlx.scores import Evaluation, Scores, table
from energy_flow_mlx.text.tokeniser import TokenBatch
from energy_flow_mlx.train.baselines import RidgeFit, simple_baselines
from energy_flow_mlx.train.checkpoint import append_metrics
from energy_flow_mlx.train.evaluation import evaluate, score
from energy_flow_mlx.train.loss import cosine
from energy_flow_mlx.train.report import draw_curves, held_out


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
    rows = {name.split(" (")[0]: scores.cosine for name, scores in simple_baselines(data).items()}
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
    name, ridge = list(simple_baselines(data).items())[-1]
    assert name == "ridge regression (penalty 1000)"
    assert ridge.cosine > 0.5


def test_retrieval_counts_targets_that_are_nearer_than_the_own_one():
    """Twelve targets on a circle, so that the ranks of a prediction are known; the last two are the same."""
    angles = np.append(np.arange(11), 10) * 0.2
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    data = pairs(np.ones((12, 2)), circle)
    perfect = score(lambda batch: 3 * batch.target_embedding, data, 5)
    assert perfect == Scores(pytest.approx(1.0), 1.0, 1.0)  # equal targets do not outrank each other
    first = score(lambda batch: np.tile(circle[:1], (len(batch.indices), 1)), data, 5)
    assert first.top1 == pytest.approx(1 / 12) and first.top10 == pytest.approx(10 / 12)
    assert first.cosine == pytest.approx(np.cos(angles).mean(), abs=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_processes_share_the_batches_and_have_the_same_scores(size):
    random = np.random.default_rng(0)
    data = pairs(random.normal(size=(14, 3)), random.normal(size=(14, 3)))
    seen = []

    def predict(batch):
        seen.append(tuple(batch.indices.tolist()))
        return batch.input_embedding

    found = together(lambda world: score(predict, data, 4, world), size)  # 4 batches, the last of two pairs
    assert sorted(seen) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13)]
    assert found == [score(lambda batch: batch.input_embedding, data, 4)] * size


def test_evaluation_says_what_the_flows_did():
    config = small_config()
    model, data = small_model(config), small_data(config)
    result = evaluate(model, data.validation, config)
    assert result.arrived > 0.8 and result.arrival < 0.1 and result.sideways == 0  # carrying weights go straight
    assert result.collisions == 0
    head = model.carrier.displacement_projection[2]
    head.bias = head.bias + mx.array([0.5, 0.0, 0.0])  # one column to the right is 1.0, and they move twice
    moved = evaluate(model, data.validation, config)
    assert 0.5 < moved.sideways <= 2 and moved.collisions > 0.2


def test_evaluation_is_the_mean_over_all_pairs_whatever_the_batch_size():
    config = small_config()
    model, data = small_model(config), small_data(config)
    results = [evaluate(model, data.validation, config.replace(batch_size=size)) for size in (3, 8, 100)]
    assert model.training
    for result in results[1:]:
        assert vars(result) == pytest.approx(vars(results[0]), rel=1e-5)
    model.eval()
    batch = data.validation.batch(np.arange(8))
    wanted = cosine(model(mx.array(batch.input_embedding)).embedding, mx.array(batch.target_embedding))
    assert results[0].cosine == pytest.approx(float(np.array(wanted).mean()), rel=1e-5)


def test_the_table_has_all_rows_and_the_best_last():
    config = small_config()
    model, data = small_model(config), small_data(config)
    model.trained_steps = 2
    results = held_out(model, data, config.replace(batch_size=4), mlp=True, ablation=True)
    rows = results.splits["test"]
    names = [name.split(" (")[0] for name in rows]
    assert names == ["input itself", "mean target", "ridge regression", "energy flow", "MLP", "flow left out"]
    assert results.evaluation is rows["energy flow (2 steps)"]
    assert results.splits["validation"] == {"energy flow (2 steps)": evaluate(model, data.validation, config.replace(batch_size=4))}
    assert results.pairs == {"train": 40, "validation": 8, "test": 8}
    flows = Evaluation(0.5, 0.25, 1.0, 0.9, 0.1, 0.01, 1.0, 0.125, 0.4)
    text = table({"model": flows, "mean": Scores(0.25, 0.0, 0.5)}, "a title")
    assert text.split("\n") == [
        "a title",
        "        cosine    top-1   top-10  arrived  collisions a cell  cells sideways",
        "mean    0.2500     0.0%    50.0%",
        "model   0.5000    25.0%   100.0%   100.0%              0.125            0.40",
    ]


def test_curves_are_drawn(tmp_path):
    parts = {"surface": 0.5, "text": 0.0, "embedding": 0.5, "arrival": 0.1, "arrived": 5.0, "ended": 6.0}
    rates = {"learning_rate": 1e-3, "gradient_norm": 0.5}
    for step in (1, 2):
        append_metrics(tmp_path, {"step": step, "loss": 1.0, **parts, **rates})
    append_metrics(tmp_path, {"step": 2, "validation_cosine": 0.3, "validation_arrived": 0.9})
    draw_curves(tmp_path, {"mean target": Scores(0.25, 0.0, 0.5)})
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
