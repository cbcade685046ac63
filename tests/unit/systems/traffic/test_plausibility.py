"""Units of motion, and maps below the tracks."""

import re

import motion_scenes
import numpy as np
import pandas as pd
import pytest

from millrace.errors import DataError
from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary
from millrace.systems.traffic.tracks import write_recording

CONFIG = TokenConfig(motion=64, road=16, tolerance=0.2, block=1, train=0.9, validation=0.05)


@pytest.fixture
def base(tmp_path):
    random = np.random.default_rng(0)
    scenes = [motion_scenes.scenario(f"scene{i}", random) for i in range(2)]
    write_recording(tmp_path, "place", scenes)
    return tmp_path


def change(base, folder="tracks", **columns):
    """Replace columns of a table, each by what a function makes of the table."""
    path = base / folder / "place.csv"
    table = pd.read_csv(path)
    table.assign(**columns).to_csv(path, index=False)


def build(base):
    return build_vocabulary(base, base / "v.h5", CONFIG)


def test_plausible_scenarios_are_read_without_a_warning(base, capsys):
    build(base)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"heading": lambda t: np.degrees(t["heading"])}, "degrees counter-clockwise from +x"),
        ({"heading": lambda t: 90 - np.degrees(t["heading"])}, "degrees clockwise from north"),
        ({"heading": lambda t: np.pi / 2 - t["heading"]}, "radians clockwise from north"),
        (
            {name: lambda t, name=name: 3.6 * t[name] for name in ("velocity_x", "velocity_y")},
            "3.6 times the speed of the positions, probably km/h; expected metres and m/s",
        ),
        (
            {name: lambda t, name=name: 2.237 * t[name] for name in ("velocity_x", "velocity_y")},
            "probably mph",
        ),
        (
            {name: lambda t, name=name: t[name] / 0.3048 for name in ("position_x", "position_y")},
            "but the positions in feet",
        ),
        ({"length": lambda t: 100 * t["length"]}, "length 460; expected m, below 100"),
        (
            {"velocity_x": lambda t: t["velocity_x"].where(t.index != 40, -999.0)},
            "step 40: speed 999; expected m/s",
        ),
    ],
)
def test_another_unit_is_refused_and_named(base, columns, told):
    change(base, **columns)
    with pytest.raises(DataError, match=rf"place\.csv: scenario 'scene0'.*{re.escape(told)}"):
        build(base)


def test_headings_and_velocities_of_no_known_unit_are_warned_of(base, capsys):
    change(base, heading=lambda t: 0.6, velocity_x=lambda t: 0.0)
    build(base)
    out = capsys.readouterr().out
    assert "of the headings do not follow the paths; expected radians" in out
    assert "times the speed of the positions; expected m/s" in out


def test_a_map_elsewhere_is_refused_with_both_places(base):
    change(base, "map", position_x=lambda t: t["position_x"] + 50_000)
    told = (
        r"tracks/place\.csv: scenario 'scene0', track '\w+', step \d+: at \(.*\), 50\.\d km from the "
        r"nearest line of .*map/place\.csv, which lies between \(49970\.0"
    )
    with pytest.raises(DataError, match=told):
        build(base)


@pytest.mark.parametrize("apart", [1000.0, 40_000.0])
def test_a_second_site_in_a_file_is_refused(base, apart):
    change(base, position_y=lambda t: t["position_y"] + apart * (t["scenario_id"] == "scene1"))
    with pytest.raises(DataError, match=r"scenario 'scene1'.* k?m from the nearest line of"):
        build(base)


def test_a_value_that_stands_for_no_position_is_refused_with_its_step(base):
    change(base, position_x=lambda t: t["position_x"].where(t.index != 40, -9999.0))
    with pytest.raises(DataError, match=r"track 'track0', step 40: at \(-9999\.0"):
        build(base)


def test_two_sites_in_one_scenario_are_refused_though_the_map_has_both(base):
    road = pd.read_csv(base / "map/place.csv")
    away = road.assign(
        position_x=road["position_x"] + 30_000, polyline_id=road["polyline_id"] + "b"
    )
    pd.concat([road, away]).to_csv(base / "map/place.csv", index=False)
    moved = {"position_x": lambda t: t["position_x"] + 30_000 * (t["track_id"] == "track1")}
    change(base, **moved)
    with pytest.raises(
        DataError, match=r"holds agents 30\.\d km apart.*expected one place, divide it"
    ):
        build(base)
