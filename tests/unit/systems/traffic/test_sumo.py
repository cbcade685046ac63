"""Traffic of SUMO; what needs the simulator itself is skipped where it is not installed."""

import itertools
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import motion_scenes
import numpy as np
import pytest

from millrace.errors import ConfigError
from millrace.systems.traffic.formats.sumo_network import distance
from millrace.systems.traffic.geometry import wrap
from millrace.systems.traffic.simulator.sumo import SumoConfig, program, simulate
from millrace.systems.traffic.tracks import LIGHT_STATES

CONFIG = SumoConfig(towns=1, scenes=2, seed=1)


def installed():
    try:
        return bool(program("netgenerate") and program("sumo"))
    except ConfigError:
        return False


def test_bounds():
    with pytest.raises(ConfigError, match=r"demo.scenes: expected a whole number of 1"):
        SumoConfig.parse({"scenes": 0}, "demo")
    with pytest.raises(
        ConfigError, match=r"cyclists_per_minute: expected a number from 0 .* got -1"
    ):
        SumoConfig.parse({"cyclists_per_minute": -1}, "demo")


def write_programs(folder, netgenerate, sumo):
    """Write shell scripts in place of the programs of SUMO."""
    folder.mkdir(parents=True)
    for name, script in (("netgenerate", netgenerate), ("sumo", sumo)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("SUMO_HOME", str(tmp_path / "home"))
    if shutil.which("netgenerate"):
        pytest.skip("SUMO is a package of this system")


def test_a_missing_simulator_is_named(tmp_path, nothing_installed):
    with pytest.raises(ConfigError, match=r"no program 'netgenerate', .* run `make demo-sumo`"):
        simulate(CONFIG, tmp_path / "raw")


@pytest.mark.parametrize("place", ["beside", "home"])
def test_an_error_of_the_simulator_is_reported(tmp_path, nothing_installed, place):
    fails = "echo 'Error: out of tarmac' >&2\nexit 3"
    write_programs(tmp_path / ("venv/bin" if place == "beside" else "home/bin"), fails, fails)
    with pytest.raises(ConfigError, match=r"netgenerate failed \(Error: out of tarmac\)"):
        simulate(CONFIG, tmp_path / "raw")


def write_network(path, *ends):
    """Four intersections with a road between any two; all ends of the network are at the first."""
    places = {"A": (0, 0), "B": (200, 0), "C": (0, 200), "D": (200, 200)}
    places |= {name: (-100, 100 * number) for number, name in enumerate(ends)}
    roads = [*itertools.combinations("ABCD", 2), *(("A", name) for name in ends)]
    lines = ["<net>"]
    for one, other in [*roads, *(road[::-1] for road in roads)]:
        shape = " ".join(f"{x},{y}" for x, y in (places[one], places[other]))
        lane = f'<lane id="{one}{other}_0" index="0" shape="{shape}"/>'
        lines.append(f'<edge id="{one}{other}" from="{one}" to="{other}">{lane}</edge>')
    for name, (x, y) in places.items():
        kind = "dead_end" if name in ends else "traffic_light"
        lines.append(f'<junction id="{name}" type="{kind}" x="{x}" y="{y}"/>')
    path.write_text("\n".join([*lines, "</net>"]))


def test_trips_lead_to_every_other_end(tmp_path, nothing_installed):
    # The first network that is drawn has one end, from which no trip is possible.
    write_network(tmp_path / "0", "x")
    write_network(tmp_path / "1", "x", "y", "z")
    draw = f'for last; do true; done; cp {tmp_path}/0 "$last"; cp {tmp_path}/1 {tmp_path}/0'
    write_programs(tmp_path / "home/bin", draw, "true")
    simulate(CONFIG, tmp_path / "raw")
    routes = ElementTree.parse(tmp_path / "raw/town00.rou.xml")
    trips = {(e.get("from"), e.get("to")) for e in [*routes.iter("trip"), *routes.iter("walk")]}
    ends = itertools.permutations("xyz", 2)
    assert trips == {(f"{start}A", f"A{goal}") for start, goal in ends}


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    if not installed():
        pytest.skip("SUMO is not installed: make demo-sumo does it")
    return read(tmp_path_factory.mktemp("sumo"))


def read(base):
    simulate(CONFIG, base / "raw")
    return motion_scenes.read(base / "raw", "sumo")


def test_all_classes_occur(scenarios):
    places = {one.name[:8] for one in scenarios}
    assert len(places) >= 2, "intersections"
    assert len(scenarios) == CONFIG.scenes * len(places)
    kinds = np.concatenate([one.kind_A for one in scenarios])
    assert set(kinds.tolist()) == {0, 1, 2}


def test_vehicles_are_on_lanes_and_point_along_them(scenarios):
    apart, turned = [], []
    for scenario in scenarios:
        lanes = [line.points_P2 for line in scenario.road if line.type == "lane"]
        for a in np.flatnonzero(scenario.kind_A == 0):
            pose = scenario.pose_AT3[a, ::30]
            for x, y, heading in pose[np.isfinite(pose[:, 0])]:
                # Where lanes cross, the one that points the same way is meant.
                pairs = [_beside(np.array([x, y]), heading, lane) for lane in lanes]
                off, turn = min(pairs, key=lambda pair: pair[0] + 3 * pair[1])
                apart.append(off)
                turned.append(turn)
    assert len(apart) > 50
    assert np.quantile(apart, 0.9) < 0.3
    assert np.quantile(turned, 0.9) < np.radians(4)


def _beside(place, heading, lane):
    middles = (lane[1:] + lane[:-1]) / 2
    nearest = int(np.argmin([distance(place, lane[i : i + 2]) for i in range(len(middles))]))
    along = np.arctan2(*(lane[nearest + 1] - lane[nearest])[::-1])
    return distance(place, lane), abs(wrap(along - heading))


def test_motion_agrees_with_speed_and_heading(scenarios):
    for scenario in scenarios:
        moved = np.diff(scenario.pose_AT3[..., :2], axis=1) / 0.1
        error = np.linalg.norm(moved - scenario.velocity_AT2[:, 1:], axis=2)
        assert np.nanquantile(error[scenario.kind_A == 0], 0.9) < 0.5


def test_lights_change(scenarios):
    shown = {state for one in scenarios for series in one.lights.values() for state in series}
    assert {LIGHT_STATES[state] for state in shown} >= {"red", "green"}
    lines = {line.name: line.type for line in scenarios[0].road}
    kinds = {lines[name] for name in scenarios[0].lights}
    assert kinds == {"lane", "bike_lane", "stop_line", "crosswalk"}


def test_equal_seeds_give_equal_traffic(scenarios, tmp_path):
    for one, other in zip(read(tmp_path), scenarios, strict=True):
        assert one.track_A == other.track_A
        np.testing.assert_array_equal(one.pose_AT3, other.pose_AT3)
