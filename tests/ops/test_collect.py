"""Collection: which cell, which weight, and which gradient the two methods give."""

import mlx.core as mx
import numpy as np
import pytest

from energy_flow_mlx.ops.collect import _bilinear, collect

SIZE = {"batch": 2, "width": 4, "height": 3}


def random_flows(number: int, seed: int = 0) -> dict[str, mx.array]:
    rng = np.random.default_rng(seed)
    return {
        "energy": mx.array(rng.uniform(-1, 1, (number, 1)).astype(np.float32)),
        "position": mx.array(rng.uniform(-1, 1, (number, 3)).astype(np.float32)),
        "age": mx.array(rng.integers(1, 5, number).astype(np.int32)),
        "sample": mx.array(rng.integers(0, 2, number).astype(np.int32)),
        "collected": mx.array(rng.random(number) < 0.8),
    }


def on_centres(flows: dict[str, mx.array]) -> dict[str, mx.array]:
    rng = np.random.default_rng(5)
    number = flows["energy"].shape[0]
    cells = np.stack([rng.integers(0, 4, number), rng.integers(0, 3, number)], axis=1)
    position = np.array(flows["position"])
    position[:, :2] = 2 * cells / [3, 2] - 1
    return flows | {"position": mx.array(position)}


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_empty_cells_are_zero(method: str) -> None:
    flows = random_flows(6)
    nobody = flows | {"collected": mx.zeros((6,), dtype=mx.bool_)}
    assert not np.array(collect(**nobody, **SIZE, method=method)).any()
    one = on_centres(flows) | {"collected": mx.arange(6) == 2}
    surface = np.array(collect(**one, **SIZE, method=method))
    assert np.count_nonzero(np.abs(surface) > 1e-6) == 1
    assert surface[int(one["sample"][2])].sum() == pytest.approx(one["energy"][2].item(), abs=1e-6)


def test_a_cell_is_the_softmax_mean_of_its_flows() -> None:
    energy, z, age = np.array([0.9, -0.4, 0.1]), np.array([1.0, -0.5, 0.25]), np.array([1, 2, 3])
    position = np.stack([np.full(3, -1.0), np.full(3, 1.0), z], axis=1).astype(np.float32)  # cell (0, 2)
    weight = np.abs(energy) / (1 + (1 - np.abs(z))) * (1 + 0.1 * age)
    share = np.exp(weight) / np.exp(weight).sum()
    surface = collect(
        mx.array(energy[:, None].astype(np.float32)), mx.array(position), mx.array(age),
        mx.ones((3,), dtype=mx.int32), mx.ones((3,), dtype=mx.bool_), **SIZE,
    )  # fmt: skip
    assert surface[1, 8].item() == pytest.approx((share * energy).sum(), abs=1e-6)


def test_bilinear_equals_nearest_on_cell_centres() -> None:
    flows = on_centres(random_flows(40))
    nearest, bilinear = (np.array(collect(**flows, **SIZE, method=method)) for method in ("nearest", "bilinear"))
    np.testing.assert_allclose(bilinear, nearest, atol=1e-5)


def test_bilinear_is_continuous_where_nearest_jumps() -> None:
    one = {name: value[:1] for name, value in random_flows(1).items()} | {"collected": mx.array([True])}

    def surfaces(method: str) -> list[np.ndarray]:
        sides = [one | {"position": mx.array([[x, 0.1, 0.5]])} for x in (-1e-5, 1e-5)]  # x = 0 lies between two cells
        return [np.array(collect(**side, **SIZE, method=method)) for side in sides]

    assert np.abs(np.subtract(*surfaces("bilinear"))).max() < 1e-4
    assert np.abs(np.subtract(*surfaces("nearest"))).max() > 0.1 * abs(one["energy"].item())


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_position_gradient(method: str) -> None:
    """Along x and y only bilinear has one; both agree with central differences along z, energy and, where smooth, x, y."""
    # Few enough flows that a cell's coverage is under 1 in places and over it in others, both away from the kink.
    flows = random_flows(12, seed=3) | {"collected": mx.ones((12,), dtype=mx.bool_)}
    cotangent = mx.array(np.random.default_rng(1).standard_normal((2, 12)).astype(np.float32))

    def loss(position: mx.array, energy: mx.array) -> mx.array:
        return mx.sum(cotangent * collect(**(flows | {"position": position, "energy": energy}), **SIZE, method=method))

    by_position, by_energy = (np.array(g) for g in mx.grad(loss, argnums=(0, 1))(flows["position"], flows["energy"]))
    if method == "nearest":
        assert not by_position[:, :2].any()
    else:
        assert (by_position[:, :2] != 0).mean() > 0.9
    for argument, gradient in (("position", by_position), ("energy", by_energy)):
        for row, column in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                shifted = np.array(flows[argument])
                shifted[row, column] += sign * 2e-3
                values = {name: flows[name] for name in ("position", "energy")} | {argument: mx.array(shifted)}
                ends.append(loss(**values).item())
            slope = (ends[0] - ends[1]) / 4e-3
            if method == "nearest" and argument == "position" and column < 2:
                continue  # a jump there is no slope
            assert abs(slope - gradient[row, column]) < 2e-3 * max(1, np.abs(gradient).max()), (argument, row, column)


def test_long_lives_do_not_overflow() -> None:
    flows = random_flows(4) | {"age": mx.full((4,), 800), "energy": mx.ones((4, 1))}
    flows["position"] = mx.concatenate([flows["position"][:, :2], mx.ones((4, 1))], axis=1)
    surface = np.array(collect(**flows | {"collected": mx.ones((4,), dtype=mx.bool_)}, **SIZE))
    assert np.isfinite(surface).all() and surface.max() == pytest.approx(1.0)


@pytest.mark.parametrize("where", [float("nan"), float("inf"), -float("inf")])
def test_a_position_that_is_not_finite_indexes_no_cell_outside(where):
    """An index out of bounds would end the process."""
    cells, _ = _bilinear(mx.array([[where, 0.5, 0.0], [0.5, where, 0.0], [where, where, where]]), 4, 3)
    assert np.array(cells).min() >= 0 and np.array(cells).max() < 12
