"""The page of a run's flows: what is in it, what a browser makes of it, and what the command refuses."""

import base64
import functools
import json
import re

import numpy as np
import pytest
from models.small import lively_model
from PIL import Image
from view import browser

from energy_flow_mlx.plot import animation
from energy_flow_mlx.text import Tokeniser
from energy_flow_mlx.view import __main__ as command
from energy_flow_mlx.view.__main__ import main
from energy_flow_mlx.view.page import FULL, NONE, page

TEXT = "a dog </script> runs"


def saved(folder, **changes):
    model = lively_model(**changes)
    model.text_encoder.tokeniser = Tokeniser.whitespace([TEXT], 20)
    model.save_pretrained(folder)
    return model


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def unpacked(run, name, kind, *shape):
    return np.frombuffer(base64.b64decode(run[name]), kind).reshape(shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of two runs, one of them with children, as the command writes it; and the folder."""
    folder = tmp_path_factory.mktemp("runs")
    saved(folder / "plain", lattice_width=12, lattice_height=9)
    saved(folder / "children", movement_based_spawn=True, spawn_movement_threshold_ratio=0.15)
    arguments = [str(folder / "plain"), "--other", str(folder / "children"), "--text", TEXT, "--out", str(folder / "flows.html")]
    assert main(arguments) == 0
    return folder


def test_steps_of_a_run_stand_beside_each_other(written, capsys):
    for step, seed in ((5, 1), (10, 2)):
        folder = written / "plain" / "steps" / f"{step:07}"
        saved(folder, seed=seed)
        (folder / "trainer.json").write_text("{}")
    out = written / "steps.html"
    for options, names in (
        (["--step", "5", "--other-step", "10"], ["plain, step 5", "plain, step 10"]),
        (["--other-step", "10"], ["plain", "plain, step 10"]),
        (["--step", "10", "--other", str(written / "children")], ["plain, step 10", "children"]),
    ):
        assert main([str(written / "plain"), *options, "--text", TEXT, "--out", str(out)]) == 0
        runs = data_of(out.read_text())["runs"]
        assert [run["name"] for run in runs] == names
        assert runs[0]["position"] != runs[1]["position"]
    capsys.readouterr()
    assert main([str(written / "plain"), "--step", "7", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {written / 'plain' / 'steps'} holds no checkpoint of step 7: there are 5, 10\n"
    assert main([str(written / "plain"), "--other-step", "5", "--out", str(written / "steps.gif")]) == 2
    assert "--other-step 5: two runs or steps stand beside each other on a page; give --out FILE.html" in capsys.readouterr().err


def test_the_page_has_the_flows_and_needs_no_network(written):
    text = (written / "flows.html").read_text()
    assert "://" not in text and "__DATA__" not in text and len(text) < 200_000
    data = data_of(text)
    assert data["text"] == TEXT and data["steps"] == 3 and [run["name"] for run in data["runs"]] == ["plain", "children"]
    trace = saved(written / "again", movement_based_spawn=True, spawn_movement_threshold_ratio=0.15).trace([TEXT])
    run, count = data["runs"][1], trace.born.shape[1]
    np.testing.assert_allclose(unpacked(run, "position", "<i2", 4, count, 3) / FULL, trace.position[:, 0], atol=2e-5)
    np.testing.assert_allclose(unpacked(run, "energy", "<i2", 4, count) / FULL * run["most"], trace.energy[:, 0], atol=2e-5)
    state = unpacked(run, "state", "u1", 4, count)
    np.testing.assert_array_equal(state > 0, trace.exists[:, 0])
    np.testing.assert_array_equal(state == 2, trace.arrived[:, 0])
    np.testing.assert_array_equal(unpacked(run, "parent", "<i4", count), trace.parent[0])
    planes = unpacked(run, "planes", "<i2", 4, 2, 12)
    assert np.all(planes[0] == NONE)
    whole = np.where(planes[-1] == NONE, 0, planes[-1] / FULL).sum(axis=0) * np.abs(trace.surface[0]).max()
    np.testing.assert_allclose(whole, trace.surface[0], atol=1e-4)
    assert "all 108 flows are drawn" in data["runs"][0]["said"]


def test_many_flows_are_thinned_out_and_the_page_says_so():
    model = lively_model(lattice_width=12, lattice_height=9)
    trace = model.trace(np.ones((1, 10)))
    run = data_of(page({"run": trace}, most=50))["runs"][0]
    assert "50 of 108 flows are drawn; the planes show all" in run["said"]
    slots = unpacked(run, "slot", "<i4", 50)
    np.testing.assert_allclose(unpacked(run, "position", "<i2", 4, 50, 3) / FULL, trace.position[:, 0, slots], atol=2e-5)
    assert run["planes"] == data_of(page({"run": trace}, most=1000))["runs"][0]["planes"]


@pytest.mark.skipif(browser.find() is None, reason=f"no Chromium ({', '.join(browser.NAMES)}): the page is not opened")
def test_in_a_browser_the_flows_move(written, tmp_path):
    with browser.Browser() as tab:
        tab.open(written / "flows.html")
        tab.wait("runs.length === 2 && runs[0].near[0] > 0")
        assert tab.value("document.getElementById('text').textContent") == TEXT
        tab.screenshot(tmp_path / "before.png")
        before = tab.value("Array.from(runs[0].x)")
        tab.value("document.getElementById('play').click()")
        tab.wait("time >= data.steps && !playing")
        after = tab.value("Array.from(runs[0].x)")
        assert np.mean(np.abs(np.subtract(after, before)) > 5) > 0.5  # pixels
        assert tab.value("document.getElementById('step').textContent") == "step 3 of 3"
        tab.screenshot(tmp_path / "after.png")
        # Pointing at a flow shows its numbers.
        flow = tab.value("runs[1].slot.length - 1")
        tab.value(
            f"(() => {{ const run = runs[1], at = run.canvas.getBoundingClientRect(), [x, y] = [run.x[{flow}], run.y[{flow}]];"
            "run.canvas.dispatchEvent(new PointerEvent('pointermove', {clientX: at.left + x, clientY: at.top + y})) })()"
        )
        assert re.match(r"flow \d+, (moving|arrived), age \d+\nenergy -?\d\.\d{3}\nx -?\d\.\d\d", tab.value("tip.textContent"))
        # So does turning the lattice.
        tab.value("camera.turn += 1, ask()")
        tab.wait(f"Math.abs(runs[0].x[0] - {after[0]}) > 5")
        assert tab.faults == []
    for name in ("before.png", "after.png"):
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()


def test_an_animation_of_a_text(written, capsys, monkeypatch):
    monkeypatch.setattr(command, "animate", functools.partial(command.animate, frames_a_step=1))
    monkeypatch.setattr(animation, "HOLD", 2)
    assert main([str(written / "plain"), "--text", TEXT, "--out", str(written / "flows.gif"), "--flows", "40"]) == 0
    assert "flows.gif: plain: Trace(samples: 1, lattice: 12x9x6" in capsys.readouterr().out
    with Image.open(written / "flows.gif") as gif:
        assert gif.n_frames >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "flows.avi"], "--out flows.avi: accepted are files in .gif, .mp4, .webm, .html"),
        (["--other", "plain", "--out", "flows.gif"], "two runs or steps stand beside each other on a page; give --out FILE.html"),
        (["--flows", "0"], "--flows 0: accepted is 1 or more"),
        (["--out", "no/such/folder/flows.html"], "no/such/folder"),
        (["--other", "nothing"], "nothing/config.json is missing"),
    ],
)
def test_refusals(written, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(written)
    assert main(["plain", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_a_run_without_a_tokeniser_is_refused(written, capsys):
    lively_model().save_pretrained(written / "silent")
    assert main([str(written / "silent"), "--out", str(written / "silent.html")]) == 2
    assert "error: tokeniser: None" in capsys.readouterr().err and not (written / "silent.html").exists()
