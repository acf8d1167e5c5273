"""Pictures of runs and of texts."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from energy_flow_mlx import EnergyConfig, Evaluation, Results, Run, Scores, plot
from energy_flow_mlx.figures import BLUE
from energy_flow_mlx.metrics import columns, read_lines
from energy_flow_mlx.plot.curves import smoothed

LINES = [
    {"step": 1, "loss": 1.0, "embedding": 0.6, "surface": 0.2, "text": 0.0, "arrival": 0.1, "arrived": 5.0, "ended": 10.0, "learning_rate": 1e-3, "gradient_norm": 0.5},
    {"step": 2, "loss": 0.5, "embedding": 0.4, "surface": 0.1, "text": 0.0, "arrival": 0.0, "arrived": 9.0, "ended": 10.0, "learning_rate": 5e-4, "gradient_norm": None},
    {"step": 2, "validation_cosine": 0.3, "validation_arrived": 0.9},
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "tiny-seed0"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 3, "lo')
    return folder


def test_metrics_are_arrays_in_step(run):
    metrics = columns(read_lines(run))
    np.testing.assert_array_equal(metrics["step"], [1, 2, 2])
    np.testing.assert_array_equal(metrics["loss"], [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(metrics["gradient_norm"], [0.5, np.nan, np.nan])
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: no such file; it is in the folder of a run"):
        read_lines(run.parent)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{')
    assert read_lines(run) == [{"step": 1}]
    (run / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 1 is not JSON"):
        read_lines(run)


def test_curves_of_folders_objects_and_metrics(run):
    metrics = columns(read_lines(run))
    ax = plot.curves(run, SimpleNamespace(metrics=metrics, folder=run / "other"), metrics, metric="loss")
    assert [line.get_label() for line in ax.lines] == ["tiny-seed0", "other", "run 3"]
    for line in ax.lines:
        np.testing.assert_array_equal(line.get_xydata(), [[1, 1.0], [2, 0.5]])
    ax = plot.curves(metrics, metric="loss", smooth=0.5, labels=["a"])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.0, (0.25 * 1.0 + 0.5 * 0.5) / 0.75])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1.0, 0.5])
    with pytest.raises(ValueError, match="smooth=1 came"):
        plot.curves(metrics, smooth=1)
    with pytest.raises(ValueError, match="metric='los' came, accepted are loss, embedding"):
        plot.curves(metrics, metric="los")


def test_smoothing_keeps_a_constant():
    np.testing.assert_allclose(smoothed(np.full(9, 0.3), 0.9), 0.3)


def test_scores_are_in_order_and_the_flow_stands_out():
    rows = {"input itself": 0.4, "energy flow (5 steps)": [0.5, 0.7], "ridge": SimpleNamespace(cosine=0.8)}
    ax = plot.scores(rows)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["input itself", "energy flow (5 steps)", "ridge"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.4, 0.6, 0.8])
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert colours[0] == colours[2] != colours[1]


FLOW = Evaluation(0.5, 0.25, 1.0, 0.9, 0.1, 0.01, 0.875, 0.125, 0.4)


def bars(ax):
    """Heights by name, from below; and which of them stand out."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    values = dict(zip(names, (bar.get_width() for bar in ax.patches), strict=True))
    return values, {name for name, bar in zip(names, ax.patches, strict=True) if bar.get_facecolor() == to_rgba(BLUE)}


def test_runs_are_curves_and_scores(run):
    EnergyConfig.tiny().to_json(run / "config.json")
    loaded, rows = Run.load(run), {"input itself": Scores(0.4, 0.0, 0.5), "energy flow (2 steps)": FLOW}
    with pytest.raises(FileNotFoundError, match=r"results\.json: no such file"):
        plot.scores(loaded)
    Results("mine", {"test": 4}, {"test": rows}, 2).save(run)
    assert [line.get_label() for line in plot.curves(loaded).lines] == ["tiny-seed0"]
    for given in (loaded, str(run), run, loaded.results):
        assert bars(plot.scores(given)) == ({"input itself": 0.4, "energy flow (2 steps)": 0.5}, {"energy flow (2 steps)"})
        assert bars(plot.scores(given, metric="arrived")) == ({"energy flow (2 steps)": 0.875}, {"energy flow (2 steps)"})
        with pytest.raises(ValueError, match="metric='los' came, accepted are cosine, top1, top10, loss"):
            plot.scores(given, metric="los")
    mixed = {"ridge": rows["input itself"], "one": loaded, "a folder": run, "seeds": [loaded, str(run), FLOW, 0.9], "array": np.array([0.2, 0.4])}
    values, blue = bars(plot.scores(mixed))
    assert values == pytest.approx({"array": 0.3, "ridge": 0.4, "one": 0.5, "a folder": 0.5, "seeds": 0.6})
    assert blue == {"one", "a folder", "seeds"}
    with pytest.raises(ValueError, match="metric='arrived' came, accepted are cosine, top1, top10$"):
        plot.scores(mixed, metric="arrived")


def test_a_run_in_four_panels(run):
    figure = plot.training(run, {"ridge regression": 0.8, "MLP": 0.7})
    cosines, arrivals, parts, rates, right = figure.axes
    drawn = {line.get_label(): line for line in cosines.lines}
    assert {"training", "validation", "ridge regression", "MLP"} <= set(drawn)
    np.testing.assert_allclose(drawn["validation"].get_xydata(), [[2, 0.3]])
    np.testing.assert_allclose(arrivals.lines[0].get_ydata(), [50, 90])
    assert [line.get_label() for line in parts.lines] == ["1 - cosine", "surface", "distance to a plane"]  # the text's is 0
    np.testing.assert_allclose(rates.lines[0].get_ydata(), [1e-3, 5e-4])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 0.5]])
    figure.canvas.draw()
    for ax in (cosines, arrivals, parts, rates):
        legend, data = ax.get_legend().get_window_extent(), ax.get_window_extent()
        assert legend.y0 >= data.y1 - 2, ax.get_title("left")  # off the data
        labels = [label.get_text() for each in (ax.yaxis, ax.xaxis) for label in each.get_ticklabels()]
        assert labels and not any("\\times" in label or "^" in label for label in labels)
    assert not plt.get_fignums()


def test_curves_png_is_drawn_whatever_backend_is_wanted(run):
    code = f"from pathlib import Path; from energy_flow_mlx.train.report import draw_curves; draw_curves(Path({str(run)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MPLBACKEND": "none"})
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_attention_of_a_head_and_of_all():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 4, 3))
    ax = plot.attention(["[CLS]", "dog", "[SEP]"], weights)
    np.testing.assert_allclose(ax.images[0].get_array(), weights[1].mean(axis=0))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["[CLS]", "dog", "[SEP]"]
    np.testing.assert_allclose(plot.attention("abc", weights, layer=0, head=2).images[0].get_array(), weights[0, 2])
    with pytest.raises(ValueError, match=r"weights: shape \(2, 4, 3, 3\) came, accepted is \(layers, heads, 2, 2\)"):
        plot.attention("ab", weights)


def test_the_map_keeps_what_varies_most(monkeypatch):
    random = np.random.default_rng(0)
    angles = random.uniform(0, 2 * np.pi, 50)
    plane = np.linalg.qr(random.normal(size=(6, 2)))[0]
    rows = np.stack([np.cos(angles), 0.5 * np.sin(angles)], axis=1) @ plane.T  # in a plane of six dimensions
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ax = plot.embedding_map({"one": 3 * rows[:20], "two": rows[20:]})  # lengths do not count
    points = np.concatenate([each.get_offsets() for each in ax.collections])

    def distances(x):
        return np.linalg.norm(x[:, None] - x, axis=-1)

    np.testing.assert_allclose(distances(points), distances(rows), atol=1e-5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="umap-learn is not installed"):
        plot.embedding_map(rows, method="umap")
    with pytest.raises(ValueError, match="method='tsne' came, accepted are 'pca' and 'umap'"):
        plot.embedding_map(rows, method="tsne")
    with pytest.raises(ValueError, match=r"embeddings: shape \(2, 6\) came"):
        plot.embedding_map(rows[:2])
