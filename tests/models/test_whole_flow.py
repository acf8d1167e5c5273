"""Whole flows against the plain-Python reference, with every switch of the schedule."""

import mlx.core as mx
import numpy as np
import pytest
from models import reference
from models.parity import assert_close
from models.paths import PATHS, changes_of, on_path
from models.small import lively_model, random_surface

SPAWN: dict = {"movement_based_spawn": True, "spawn_movement_threshold_ratio": 0.12, "max_spawn_per_step": 2}
CASES: dict[str, dict] = {
    "reflect": {},
    "clamp": {"boundary_reflection_enabled": False},
    "drop": {"project_unfinished": False},
    "bilinear": {"collection": "bilinear"},
    "spawn": {**SPAWN, "spawn_capacity": 8.0},
    "spawn without room": {**SPAWN, "spawn_capacity": 0.3},
    "spawn under a bound": {**SPAWN, "spawn_capacity": 8.0, "max_active_flows": 42},
    "spawn, bilinear, drop": {**SPAWN, "collection": "bilinear", "project_unfinished": False},
    "filter": {"enable_displacement_filtering": True, "min_displacement_threshold": 0.25},
    "filter and spawn": {**SPAWN, "enable_displacement_filtering": True, "min_displacement_threshold": 0.25},
    # Not larger: many moves of exactly 0.5 add up to positions half-way between two cells, where fp32 and float64 round apart.
    "scale": {
        "displacement_scale": 1.3,
        "displacement_scale_min": 0.1,
        "displacement_warmup_steps": 5,
        "displacement_scale_update_interval": 2,
    },
    "noise": {"use_exploration_noise": True, "exploration_noise": 0.3},
    "noise on x and y": {**SPAWN, "use_exploration_noise": True, "exploration_noise_apply_to_z": False},
}
COUNTS = ("reached_z0", "reached_zdepth", "projected", "dropped", "spawned", "overflowed")
# What each case must show beside agreement, so that it cannot pass by nothing happening.
MUST_HAPPEN = {
    "drop": ("dropped",),
    "spawn": ("spawned",),
    "spawn without room": ("spawned", "overflowed"),
    "spawn under a bound": ("spawned", "overflowed"),
    "spawn, bilinear, drop": ("spawned", "dropped"),
    "filter": ("dropped",),
    "filter and spawn": ("spawned", "dropped"),
    "noise on x and y": ("spawned",),
}


def drawn_noise(key: mx.array, steps: int, batch: int, slots: int, sigma: float, with_z: bool) -> list[np.ndarray]:
    """The noise that the processor draws from this key: one key a step, one row a slot."""
    noise = []
    for here in mx.random.split(key, steps):
        drawn = sigma * np.array(mx.random.normal((batch * slots, 3), key=here), dtype=np.float64)
        noise.append((drawn if with_z else drawn * [1, 1, 0]).reshape(batch, slots, 3))
    return noise


def ways(name: str) -> list[tuple[str, int | None, str]]:
    """How a case is run: (name, steps, path). Noise belongs to training, and so does a room for children that does not grow; the test
    of states below takes the kernels' other paths."""
    training = "use_exploration_noise" in CASES[name] or "spawn" in name
    paths = ["autodiff", "recomputed", "by hand"] if training else ["evaluation", "recomputed", "by hand"]
    return [(name, 6, paths[0]), *((name, None, path) for path in paths)]


@pytest.mark.parametrize(("name", "steps", "path"), [way for name in CASES for way in ways(name)])
def test_flow_by_flow(name: str, steps: int | None, path: str) -> None:
    model = lively_model(**CASES[name], **changes_of(path))
    config = model.config
    surface = random_surface(3, config.surface_dim)
    key, noise, step = None, None, 11 if name == "scale" else 0
    if config.use_exploration_noise:
        key = mx.random.key(4)
        sizes = (steps or config.flow_steps, 3, config.slots_per_sample)
        noise = drawn_noise(key, *sizes, config.exploration_noise, config.exploration_noise_apply_to_z)
    with on_path(path, model) as states:
        result = model.processor(surface, steps=steps, key=key, training_step=step)
        mx.eval(result)
    assert len(states) == (steps or config.flow_steps)
    expected = reference.run(model, surface, steps=steps, step=step, noise=noise)
    assert_close("surface", result.surface, expected.surface)
    assert {count: int(getattr(result, count)) for count in COUNTS} == {c: int(getattr(expected, c)) for c in COUNTS}
    happened = [
        expected.reached_z0 + expected.reached_zdepth,
        *(getattr(expected, c) for c in MUST_HAPPEN.get(name, ())),
    ]
    assert all(happened), happened


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (name, path)
        for name in ("reflect", "spawn", "spawn under a bound", "filter and spawn")
        for path in PATHS
        if not ("spawn" in name and path.startswith("evaluation"))
    ],
)
def test_states_agree_slot_by_slot(name: str, path: str) -> None:
    """Not the surface alone: every flow's position, energy, hidden state and age, in its deterministic slot."""
    model = lively_model(**CASES[name], **changes_of(path))
    config, surface = model.config, random_surface(2, model.config.surface_dim)
    with on_path(path, model) as states:
        model.processor(surface)
        mx.eval(states)
    expected = reference.run(model, surface)
    state, slots = states[-1], config.slots_per_sample
    position, energy = np.array(state.position).reshape(2, slots, 3), np.array(state.energy).reshape(2, slots)
    hidden = np.array(state.hidden).reshape(config.carrier_num_layers, 2, slots, -1)
    age, active = np.array(state.age).reshape(2, slots), np.array(state.active).reshape(2, slots)
    arrived = np.array(state.arrived).reshape(2, slots)
    for sample, flows in enumerate(expected.flows):
        live = slice(len(flows))
        assert_close("position", position[sample, live], [flow.position for flow in flows])
        assert_close("energy", energy[sample, live], [flow.energy for flow in flows])
        assert_close("hidden", hidden[:, sample, live], np.stack([flow.hidden for flow in flows], axis=1))
        assert age[sample, live].tolist() == [flow.age for flow in flows]
        assert active[sample, live].tolist() == [flow.active for flow in flows]
        assert arrived[sample, live].tolist() == [flow.arrived for flow in flows]
        assert not active[sample, len(flows) :].any() and not arrived[sample, len(flows) :].any()


def test_one_sample_does_not_see_the_others() -> None:
    model = lively_model(**CASES["spawn"])
    surface = random_surface(3, model.config.surface_dim)
    together = np.array(model.processor(surface).surface)
    apart = [np.array(model.processor(surface[i : i + 1]).surface)[0] for i in range(3)]
    assert_close("surface", together, apart)
    grid = surface.reshape(3, model.config.lattice_height, model.config.lattice_width)
    assert np.array_equal(together, np.array(model.processor(grid).surface))


def test_in_evaluation_the_room_for_children_grows_until_none_is_lost() -> None:
    surface = random_surface(2, 12)
    small, large = (lively_model(**{**SPAWN, "spawn_capacity": room}) for room in (0.1, 64.0))
    small.processor.train()
    lossy = small.processor(surface)
    assert int(lossy.overflowed) > 0
    small.processor.eval()
    result, wanted = small.processor(surface), large.processor(surface)
    assert int(result.overflowed) == int(wanted.overflowed) == 0
    assert int(result.spawned) == int(wanted.spawned) > int(lossy.spawned)
    assert_close("surface", result.surface, wanted.surface)
    with on_path("evaluation", small) as states:
        small.processor(surface)
    assert len(states) == small.config.flow_steps  # the room it took before is there from the start
    small.processor.train()
    assert int(small.processor(surface).overflowed) == int(lossy.overflowed)  # training keeps its own


def test_more_room_is_not_tried_where_the_bound_on_active_flows_loses_children() -> None:
    model = lively_model(**CASES["spawn under a bound"])
    with on_path("evaluation", model) as states:
        result = model.processor(random_surface(3, 12))
    assert int(result.overflowed) > 0 and len(states) == 2 * model.config.flow_steps
