"""Figures of traffic."""

import dataclasses

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from millrace.errors import ConfigError
from millrace.systems.traffic.figures import (
    Drawing,
    error_by_horizon,
    event_rates,
    rollout_animation,
    rollout_maps,
    token_usage,
    vocabulary_plates,
)
from millrace.systems.traffic.scores import FORECASTS
from millrace.systems.traffic.tracks import CLASSES
from millrace.systems.traffic.vocabulary import Coverage, Vocabulary

STEPS = 40


@pytest.fixture
def drawing():
    """A car and a pedestrian on a road along x; in the rollouts the car leaves it to the left."""
    x = np.linspace(-40, 40, 17)
    line = np.stack([[x[:-1], x[:-1] + 2.5, x[1:]], np.full((3, 16), -6.0)], axis=-1)
    pose = np.zeros((2, 11 + STEPS, 3))
    pose[0, :, 0] = np.linspace(-20, 20, 11 + STEPS)
    pose[1, :, 1] = np.linspace(-5, 5, 11 + STEPS)
    pose[1, 30:] = np.nan
    rollout = np.repeat(np.nan_to_num(pose[None, :, 11:]), 3, axis=0)
    rollout[:, 0, :, 1] = np.linspace(0, 20, STEPS)
    return Drawing(
        "a scenario", line.transpose(1, 0, 2), np.full(16, 2), np.array([0, 1]),
        np.array([[4.8, 2.0], [0.6, 0.6]]), pose[:, :11], pose[:, 11:], rollout,
    )  # fmt: skip


def blue(path):
    """Pixels in the colour of vehicles: [row, column]."""
    pixels = imread(path)[..., :3]
    return np.argwhere((pixels[..., 2] - pixels[..., 0] > 0.3) & (pixels[..., 1] < 0.75))


def test_rollouts_are_drawn_along_their_paths(drawing, tmp_path):
    rollout_maps([drawing], tmp_path / "one.png")
    flat = dataclasses.replace(drawing, rollout_SAT3=np.zeros_like(drawing.rollout_SAT3))
    rollout_maps([flat], tmp_path / "flat.png")
    assert len(blue(tmp_path / "one.png")) > len(blue(tmp_path / "flat.png")) + 200


def test_four_scenarios_fill_the_page(drawing, tmp_path):
    rollout_maps([drawing] * 4, tmp_path / "four.png")
    rollout_maps([drawing] * 3, tmp_path / "three.png")
    four, three = (imread(tmp_path / f"{name}.png") for name in ("four", "three"))
    assert four.shape == three.shape
    corner = np.s_[four.shape[0] * 3 // 5 :, four.shape[1] * 3 // 5 :]
    assert four[corner].std() > 0.05
    assert three[corner].std() == 0


def test_the_animation_runs_in_real_time(drawing, tmp_path):
    rollout_animation(drawing, tmp_path / "a.gif", fps=5)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 26  # 5.1 s
        assert film.info["duration"] == 200
        frames = []
        for number in (0, 25):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB"), dtype=float))
    moved = np.abs(frames[1] - frames[0]).max(axis=2) > 60
    half = moved.shape[1] // 2
    assert moved[:, :half].any()
    assert moved[:, half:].any()
    with pytest.raises(ConfigError, match=r"ends in \.gif"):
        rollout_animation(drawing, tmp_path / "a.png")


def test_scores_are_drawn(tmp_path):
    curve = {"tokens": [1, 10, 100], "share": [0.4, 0.8, 1.0]}
    coverage = {name: dict.fromkeys(CLASSES, curve) for name in ("truth", "model")}
    token_usage(coverage, tmp_path / "tokens.png")
    scores = {"collision_rate": 0.1, "off_road_rate": None, "realism": 0.7}
    scores["error_by_step"] = [0.1, 0.2, None]
    forecasts = dict.fromkeys(FORECASTS, scores)
    event_rates(forecasts, tmp_path / "rates.png")
    error_by_horizon(forecasts, tmp_path / "errors.png")
    for path in tmp_path.glob("*.png"):
        assert imread(path).std() > 0.05
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_plates_show_classes_that_do_not_occur(tmp_path):
    random = np.random.default_rng(0)
    tokens = np.cumsum(random.uniform(-0.1, 1, (30, 6, 3)), axis=1) * [1, 0.2, 0.1]
    still = np.zeros((1, 6, 3))
    coverage = dict.fromkeys((*CLASSES, "road"), Coverage(30, 0.01, 0.04, 0.05, 1.0))
    road = np.array([[[0, 0], [2.5, 0.1], [5, 0]]], dtype=float)
    vocabulary_plates(Vocabulary((tokens, still, still), road, coverage), tmp_path / "v.png")
    pixels = imread(tmp_path / "v.png")
    half = pixels.shape[0] // 2
    first, second = pixels[:half, : half - 50, :3], pixels[:half, half:-200, :3]
    assert (np.ptp(first, axis=2) > 0.2).sum() > 3 * (np.ptp(second, axis=2) > 0.2).sum()
