"""Figures of weather."""

import contextlib

import numpy as np
import pytest
from matplotlib.image import imread

from millrace.figures.style import figure
from millrace.systems.weather import figures
from millrace.systems.weather.figures import (
    loss_share,
    scorecard,
    weather_by_lead,
    weather_maps,
    zonal_spectra,
)

GROUPS = {"2t": ["2t"], "msl": ["msl"], "z": ["z_500", "z_850"]}
HOURS = [6, 12, 18, 24, 30]


@pytest.fixture
def drawn(monkeypatch):
    """Give the list of figures made, to read their labels."""
    made = []

    @contextlib.contextmanager
    def keep(*args, **kwargs):
        with figure(*args, **kwargs) as fig:
            made.append(fig)
            yield fig

    monkeypatch.setattr(figures, "figure", keep)
    return made


def scores(skill):
    """A channel -> skill at all lead times; the RMSE of persistence grows, climatology stays."""
    persistence = np.linspace(0.5, 2.5, len(HOURS))
    climatology = np.full(len(HOURS), 1.5)
    best = np.minimum(persistence, climatology)
    channels = {
        name: {
            "rmse": {
                "model": (best * (1 - value)).tolist(),
                "persistence": persistence.tolist(),
                "climatology": climatology.tolist(),
            },
            "acc": {
                "model": np.linspace(1, 0.5, len(HOURS)).tolist(),
                "persistence": [0.9, 0.5, None, -0.2, -0.4],
            },
            "skill": [value] * len(HOURS),
        }
        for name, value in skill.items()
    }
    return {"lead_hours": HOURS, "channels": channels}


def names():
    return [name for group in GROUPS.values() for name in group]


def colours(path):
    pixels = imread(path)[..., :3]
    red, blue = (pixels[..., a] - pixels[..., b] > 0.3 for a, b in ((0, 2), (2, 0)))
    # The colour bar on the right has all colours.
    cut = int(0.75 * pixels.shape[1])
    return red[:, :cut].mean(), blue[:, :cut].mean()


def test_the_scorecard_is_blue_where_the_model_is_better(tmp_path):
    for value, name in ((0.8, "better"), (-0.8, "worse")):
        made = scores(dict.fromkeys(names(), value))
        scorecard(made, GROUPS, tmp_path / f"{name}.png")
    red, blue = colours(tmp_path / "better.png")
    assert blue > 0.1 > red
    red, blue = colours(tmp_path / "worse.png")
    assert red > 0.1 > blue


def test_a_scorecard_says_which_level_or_variable_a_row_is(tmp_path, drawn):
    groups = {"2t": ["2t"], "sea_ice": ["sea_ice"], "z": ["z_500", "z_850"]}
    every = scores(dict.fromkeys(["2t", "sea_ice", "z_500", "z_850", "q_700"], 0.2))
    scorecard(every, groups, tmp_path / "card.png")
    scorecard(every, {"q": ["q_700"]}, tmp_path / "one.png")
    (surface, air, _), (one, _) = (fig.axes for fig in drawn)
    rows = [[text.get_text() for text in axes.get_yticklabels()] for axes in (surface, air, one)]
    assert rows == [["2t", "sea_ice"], ["500", "850"], ["q_700"]]
    assert [axes.get_title("left") for axes in (surface, air, one)] == ["Surface", "z", "One level"]
    assert (surface.get_ylabel(), air.get_ylabel()) == ("", "Level (hPa)")
    assert drawn[0].get_supxlabel() == "Lead time (h)"


def test_units_and_times_are_those_of_the_data(tmp_path, drawn):
    made = scores(dict.fromkeys(names(), 0.2))
    weather_by_lead(made, GROUPS["z"], "m²/s²", tmp_path / "lead.png")
    loss_share({"mae": {"2t": 1.0}, "mse": {"2t": 1.0}}, 12, tmp_path / "share.png")
    latitude, longitude = np.linspace(84, -84, 16), np.arange(32) * 11.25
    fields = np.random.default_rng(0).normal(size=(1, 16, 32))
    shown = ((24,), (latitude, longitude))
    days = 11382.25  # 2001-03-01, 06:00
    weather_maps(fields, fields + 1, *shown, ("own", ""), tmp_path / "maps.png", issued=days)
    weather_maps(fields, fields + 1, *shown, ("2t", "K"), tmp_path / "kelvin.png")
    zonal_spectra(
        {"z": np.ones((1, 9))}, {"z": np.ones((1, 9))}, (24,), "", tmp_path / "spectra.png"
    )
    lead, share, maps, kelvin, spectra = drawn
    assert lead.axes[-1].get_xlabel() == "Lead time (h)"
    assert lead.axes[-1].lines[0].get_xdata().tolist() == HOURS
    assert lead.axes[0].get_ylabel() == "RMSE (m²/s²)"
    assert share.axes[0].get_xlabel() == "Share of the loss of a forecast of 12 h (%)"
    assert maps.get_suptitle() == "Forecast issued 2001-03-01 06:00 UTC"
    assert [axes.get_xlabel() for axes in maps.axes[-2:]] == ["own", "Difference"]
    assert [axes.get_xlabel() for axes in kelvin.axes[-2:]] == ["2t (K)", "Difference (K)"]
    assert maps.axes[0].get_xlabel() == "Longitude (°)"
    assert maps.axes[0].get_ylabel() == "Latitude (°)"
    assert spectra.axes[0].get_ylabel() == "Power"


def test_a_scorecard_of_one_unusual_lead_time(tmp_path):
    made = scores(dict.fromkeys(names(), 0.2)) | {"lead_hours": [5, 10, 15, 20, 25]}
    made["channels"]["2t"]["skill"] = [None] * len(HOURS)
    scorecard(made, {"2t": ["2t"]}, tmp_path / "card.png")
    assert imread(tmp_path / "card.png").std() > 0.02


def test_errors_by_lead_time(tmp_path):
    made = scores(dict.fromkeys(names(), 0.2))
    weather_by_lead(made, GROUPS["z"], "m²/s²", tmp_path / "two.png")
    weather_by_lead(made, ["2t"], "K", tmp_path / "one.png")
    two, one = (imread(tmp_path / f"{name}.png") for name in ("two", "one"))
    assert two.shape[0] > 1.5 * one.shape[0]
    assert one.std() > 0.05


def test_a_perfect_forecast_has_an_empty_difference(tmp_path):
    latitude, longitude = np.linspace(84, -84, 16), np.arange(32) * 11.25
    truth = np.cos(np.deg2rad(latitude))[:, None] * np.sin(np.deg2rad(2 * longitude))
    fields = np.stack([truth, 2 * truth])
    land = (truth > 0.5).astype(float)
    shown = ((24, 72), (latitude, longitude), ("z_500", "m²/s²"))
    weather_maps(fields, fields, *shown, tmp_path / "same.png", land)
    weather_maps(fields, fields + truth, *shown, tmp_path / "other.png")
    for name, expected in (("same", False), ("other", True)):
        pixels = imread(tmp_path / f"{name}.png")[..., :3]
        height, width = pixels.shape[:2]
        part = pixels[: int(0.35 * height), int(0.72 * width) :]  # of the first row on the right
        coloured = np.ptp(part, axis=2) > 0.2
        assert (coloured.mean() > 0.1) == expected


@pytest.mark.parametrize("unit", ["K", "m/s", "m²/s²", ""])
def test_spectra(tmp_path, unit):
    power = np.exp(-np.arange(17.0))[None].repeat(2, axis=0)
    zonal_spectra({"z": power}, {"z": 2 * power}, (24, 72), unit, tmp_path / "spectra.png")
    assert imread(tmp_path / "spectra.png").std() > 0.03


def test_shares_of_the_loss(tmp_path):
    shares = {
        "mae": {"2t": 0.6, "z": 0.4},
        "mse": {"2t": 0.5, "z": 0.5},
        "mae_physical": {"2t": 0.01, "z": 0.99},
    }
    loss_share(shares, 12, tmp_path / "share.png")
    pixels = imread(tmp_path / "share.png")[..., :3]
    orange = (pixels[..., 0] > 0.75) & (pixels[..., 2] < 0.3) & (pixels[..., 1] < 0.5)
    longest = orange.sum(
        axis=1
    )  # by row: the legend is short, the bar of z nearly all of the width
    assert longest.max() > 0.8 * pixels.shape[1]
    assert longest.argmax() > 0.6 * pixels.shape[0]
