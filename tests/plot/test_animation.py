"""Animations of a trace."""

import shutil

import numpy as np
import pytest
from models.small import lively_model
from PIL import Image

from energy_flow_mlx import plot
from energy_flow_mlx.plot import animation
from energy_flow_mlx.plot.animation import collected


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(animation, "HOLD", 2)


@pytest.fixture(scope="module")
def trace():
    return lively_model(project_unfinished=False, collection="bilinear").trace(np.random.default_rng(0).normal(size=(1, 10)))


def test_a_gif_moves_from_the_start_to_the_end(trace, tmp_path):
    plot.save_animation(plot.animate(trace, frames_a_step=1, title="a dog"), tmp_path / "flows.gif")
    with Image.open(tmp_path / "flows.gif") as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert len(frames) >= 4  # equal frames at the end are joined
    assert all(np.abs(one - other).max() > 100 for one, other in zip(frames[:3], frames[1:4], strict=True))
    assert [each.name for each in tmp_path.iterdir()] == ["flows.gif"]


def test_the_surface_fills_up_to_that_of_the_model(trace):
    arrived = [collected(trace, 0, trace.arrived[step, 0]) for step in range(trace.steps + 1)]
    assert np.isnan(arrived[0]).all() and np.isnan(arrived[-1]).any()
    np.testing.assert_allclose(np.nan_to_num(arrived[-1]), trace.surface[0], atol=1e-6)


def test_html_has_the_frames_and_a_video_needs_ffmpeg(trace, tmp_path, monkeypatch):
    film = plot.animate(trace, frames_a_step=1)
    if shutil.which("ffmpeg"):
        plot.save_animation(film, tmp_path / "flows.mp4")
        assert (tmp_path / "flows.mp4").read_bytes()[4:8] == b"ftyp"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "data:image/png;base64" in film._repr_html_()
    with pytest.raises(ValueError, match=r"flows\.mp4: ffmpeg, which writes \.mp4, is not installed; \.gif and \.html need none"):
        plot.save_animation(film, tmp_path / "flows.mp4")
    with pytest.raises(ValueError, match=r"\.avi extension came, accepted are \.gif, \.mp4, \.webm, \.html"):
        plot.save_animation(film, tmp_path / "flows.avi")
