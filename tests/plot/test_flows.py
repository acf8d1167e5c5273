"""Pictures of a trace show what is in it, and leave matplotlib as it was."""

import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from models.small import lively_model

from energy_flow_mlx import plot
from energy_flow_mlx.figures import BLUE
from energy_flow_mlx.plot.styling import RED

SPAWNING = {"movement_based_spawn": True, "spawn_movement_threshold_ratio": 0.15}
FLAT = [plot.surfaces, plot.side, plot.landings, plot.energies, plot.arrivals, plot.births]


@pytest.fixture(scope="module")
def trace():
    return lively_model(**SPAWNING).trace(np.random.default_rng(0).normal(size=(3, 10)))


def shown(ax):
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize("draw", [*FLAT, plot.lattice], ids=lambda draw: draw.__name__)
def test_on_a_new_figure_and_on_a_given_axes(draw, trace):
    settings = dict(matplotlib.rcParams)
    new = draw(trace)
    assert new.figure in map(plt.figure, plt.get_fignums()) and new.figure.get_size_inches()[0] == pytest.approx(3.3)
    assert len(np.unique(shown(new).reshape(-1, 3), axis=0)) > 20
    count = len(plt.get_fignums())
    given = plt.figure().add_subplot(projection="3d" if draw is plot.lattice else None)
    assert draw(trace, ax=given) is given and len(plt.get_fignums()) == count + 1
    assert dict(matplotlib.rcParams) == settings


def test_a_flat_axes_has_no_room_for_the_lattice(trace):
    with pytest.raises(ValueError, match="accepted is one made with projection='3d'"):
        plot.lattice(trace, ax=plt.figure().add_subplot())
    with pytest.raises(ValueError, match="axis='z' came, accepted are 'x' and 'y'"):
        plot.side(trace, axis="z")


def test_importing_neither_package_loads_pyplot_or_chooses_a_backend():
    code = "import sys, energy_flow_mlx; assert 'matplotlib' not in sys.modules; import energy_flow_mlx.plot; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


def test_side_shows_the_moves(trace):
    ax = plot.side(trace, sample=1, axis="y")
    pieces = ax.collections[0].get_segments()
    moving = trace.active[:-1, 1] & trace.exists[:-1, 1]
    assert len(pieces) == moving.sum()
    step, flow = np.argwhere(moving)[7]
    np.testing.assert_allclose(pieces[7], trace.position[step : step + 2, 1, flow][:, [2, 1]])
    np.testing.assert_array_equal(ax.collections[0].get_array()[7], trace.energy[step + 1, 1, flow])
    few = plot.side(trace, sample=1, most=5).collections[0]
    assert 0 < len(few.get_segments()) <= 5 * trace.steps


def test_surfaces_have_their_own_scales(trace):
    target = np.linspace(-2, 1, 12)
    ax = plot.surfaces(trace, sample=2, target=target)
    assert [image.get_clim()[1] for image in ax.images] == pytest.approx([np.abs(trace.start[2]).max(), np.abs(trace.surface[2]).max(), 2.0])
    np.testing.assert_array_equal(ax.images[2].get_array(), target.reshape(3, 4))
    assert [text.get_text().split(",")[0] for text in ax.texts] == ["input", "flow", "target"]


def test_landings_count_flows_and_collisions():
    model = lively_model()
    x = np.random.default_rng(0).normal(size=(3, 10))
    trace, out = model.trace(x), model(x)
    image = plot.landings(trace).images[0].get_array()
    np.testing.assert_allclose(image.sum(), 12)  # all are collected
    cells = trace.cell[..., 0]
    np.testing.assert_allclose(image.reshape(-1), [np.mean(np.sum(cells == cell, axis=1)) for cell in range(12)])
    title = plot.landings(trace).get_title("left")
    assert title.startswith(f"12 flows, {(36 - out.flow.occupied.item()) / 3:.0f} collisions")


def test_arrivals_are_shares_of_all_flows(trace):
    ax = plot.arrivals(trace, sample=0)
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    assert np.sum(list(heights.values()), axis=0) == pytest.approx([100] * 4)
    last = trace.arrived[-1, 0] & (trace.position[-1, 0, :, 2] < 0)
    assert heights["on z = -1"][-1] == pytest.approx(100 * last.sum() / trace.exists[-1, 0].sum())


def test_energies_end_with_the_life(trace):
    ax = plot.energies(trace, sample=0)
    lines, colours = ax.collections[0].get_segments(), ax.collections[0].get_colors()
    flows = np.flatnonzero(trace.born[0] >= 0)
    assert len(lines) == len(flows)
    for line, flow, colour in zip(lines, flows, colours, strict=True):
        born, age = trace.born[0, flow], trace.age[-1, 0, flow]
        assert line[0, 0] == born and line[-1, 0] == born + age
        np.testing.assert_array_equal(line[:, 1], trace.energy[born : born + age + 1, 0, flow])
        assert to_hex(colour).upper() == (RED if line[0, 1] > 0 else BLUE)
    assert ax.lines[0].get_ydata()[0] == pytest.approx(np.abs(trace.start[0]).mean())


def test_births_are_a_tree(trace):
    ax = plot.births(trace, sample=1, most=10_000)
    children = int((trace.parent[1] >= 0).sum())
    heads = {int(parent) for parent in trace.parent[1] if 0 <= parent < 12}
    assert ax.get_title("left") == f"{children} children in {len(heads)} families; {children + len(heads)} flows shown"
    lives, links = (each.get_segments() for each in ax.collections)
    assert len(lives) == children + len(heads) and len(links) == children
    rows = {flow: line[0, 1] for flow, line in zip(_walk(trace.parent[1], sorted(heads)), lives, strict=True)}
    for child in np.flatnonzero(trace.parent[1] >= 0):
        ends = [rows[trace.parent[1, child]], rows[child]]
        assert any(np.array_equal(link, [[trace.born[1, child], ends[0]], [trace.born[1, child], ends[1]]]) for link in links)
    assert plot.births(lively_model().trace(np.ones((1, 10)))).get_title("left") == "0 children in 0 families"


def _walk(parent, heads):
    """Families in the order in which they are drawn: each flow before its descendants."""
    for head in heads:
        yield head
        yield from _walk(parent, np.flatnonzero(parent == head).tolist())


def test_a_trace_shows_itself(trace):
    assert trace._repr_png_()[:4] == b"\x89PNG"
    page = lively_model().trace(np.ones((1, 10)))._repr_html_()
    assert "<th>arrived</th>" in page and "data:image/png;base64," in page and plt.get_fignums() == []
