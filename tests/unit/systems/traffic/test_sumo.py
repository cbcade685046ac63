"""Traffic of SUMO; what needs the simulator itself is skipped where it is not installed."""

import itertools
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from millrace.errors import ConfigError
from millrace.systems.traffic.formats import convert
from millrace.systems.traffic.formats.sumo_network import distance
from millrace.systems.traffic.simulator.sumo import SumoConfig, program, simulate
from millrace.systems.traffic.tracks import LIGHTS, find_recordings, read_recording

CONFIG = SumoConfig(towns=1, scenes=2, seed=1)


def installed():
    try:
        return bool(program("netgenerate") and program("sumo"))
    except ConfigError:
        return False


def test_bounds():
    with pytest.raises(ConfigError, match="at least one town"):
        SumoConfig(scenes=0)
    with pytest.raises(
        ConfigError, match=r"demo\.cyclists_per_minute: expected 0 or more .* got -1"
    ):
        SumoConfig(cyclists_per_minute=-1)


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("SUMO_HOME", raising=False)
    if shutil.which("netgenerate"):
        pytest.skip("SUMO is a package of this system")


def test_missing_simulator_is_told(tmp_path, nothing_installed):
    with pytest.raises(ConfigError, match=r"no program 'netgenerate', .* run `make demo-sumo`"):
        simulate(CONFIG, tmp_path / "raw")


@pytest.mark.parametrize("place", ["beside", "home"])
def test_what_the_simulator_says_is_passed_on(tmp_path, nothing_installed, monkeypatch, place):
    folder = tmp_path / ("venv/bin" if place == "beside" else "home/bin")
    folder.mkdir(parents=True)
    monkeypatch.setenv("SUMO_HOME", str(tmp_path / "home"))
    for name in ("netgenerate", "sumo"):
        script = folder / name
        script.write_text("#!/bin/sh\necho 'Error: out of tarmac' >&2\nexit 3\n")
        script.chmod(0o755)
    with pytest.raises(ConfigError, match=r"netgenerate failed \(Error: out of tarmac\)"):
        simulate(CONFIG, tmp_path / "raw")


def write_network(path, *ends):
    """Four intersections with a road between any two; all ends of the network hang on the first."""
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


def test_trips_lead_to_every_other_end(tmp_path, nothing_installed, monkeypatch):
    folder = tmp_path / "home/bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SUMO_HOME", str(tmp_path / "home"))
    # The first network that is drawn has one end, with nowhere to go to.
    write_network(tmp_path / "0", "x")
    write_network(tmp_path / "1", "x", "y", "z")
    draw = f'cp {tmp_path}/0 "$last"; cp {tmp_path}/1 {tmp_path}/0'
    for name, does in (("netgenerate", draw), ("sumo", "true")):
        script = folder / name
        script.write_text(f"#!/bin/sh\nfor last; do true; done\n{does}\n")
        script.chmod(0o755)
    simulate(CONFIG, tmp_path / "raw")
    routes = ElementTree.parse(tmp_path / "raw/town00.rou.xml")
    trips = {(e.get("from"), e.get("to")) for e in [*routes.iter("trip"), *routes.iter("walk")]}
    ends = itertools.permutations("xyz", 2)
    assert trips == {(f"{start}A", f"A{goal}") for start, goal in ends}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    if not installed():
        pytest.skip("SUMO is not installed: make demo-sumo does it")
    return read(tmp_path_factory.mktemp("sumo"))


def read(base):
    simulate(CONFIG, base / "raw")
    convert("sumo", base / "raw", base / "tracks")
    return [s for files in find_recordings(base / "tracks") for s in read_recording(files)]


def test_everybody_is_there(scenes):
    towns = {scene.name[:8] for scene in scenes}
    assert len(towns) >= 2, "intersections"
    assert len(scenes) == CONFIG.scenes * len(towns)
    kinds = np.concatenate([scene.kind_A for scene in scenes])
    assert set(kinds.tolist()) == {0, 1, 2}


def test_vehicles_are_on_lanes_and_point_along_them(scenes):
    apart, turned = [], []
    for scene in scenes:
        lanes = [line.points_P2 for line in scene.road if line.type == "lane"]
        for a in np.flatnonzero(scene.kind_A == 0):
            pose = scene.pose_AT3[a, ::30]
            for x, y, heading in pose[np.isfinite(pose[:, 0])]:
                # Where lanes cross, the one that points the same way is meant.
                off, turn = min(
                    (_beside(np.array([x, y]), heading, lane) for lane in lanes),
                    key=lambda pair: pair[0] + 3 * pair[1],
                )
                apart.append(off)
                turned.append(turn)
    assert len(apart) > 50
    assert np.quantile(apart, 0.9) < 0.3
    assert np.quantile(turned, 0.9) < np.radians(4)


def _beside(place, heading, lane):
    middles = (lane[1:] + lane[:-1]) / 2
    nearest = int(np.argmin([distance(place, lane[i : i + 2]) for i in range(len(middles))]))
    along = np.arctan2(*(lane[nearest + 1] - lane[nearest])[::-1])
    turn = abs((along - heading + np.pi) % (2 * np.pi) - np.pi)
    return distance(place, lane), turn


def test_motion_agrees_with_speed_and_heading(scenes):
    for scene in scenes:
        vehicles = scene.kind_A == 0
        moved = np.diff(scene.pose_AT3[vehicles, :, :2], axis=1) / 0.1
        said = scene.velocity_AT2[vehicles, 1:]
        error = np.linalg.norm(moved - said, axis=2)
        assert np.nanquantile(error, 0.9) < 0.5


def test_lights_change(scenes):
    shown = np.concatenate([np.unique(s) for scene in scenes for s in scene.lights.values()])
    assert {LIGHTS[state] for state in shown} >= {"red", "green"}
    lines = {line.name: line.type for line in scenes[0].road}
    kinds = {lines[name] for name in scenes[0].lights}
    assert kinds == {"lane", "bike_lane", "stop_line", "crosswalk"}


def test_the_seed_fixes_all(scenes, tmp_path):
    again = read(tmp_path)
    assert [scene.track_A for scene in again] == [scene.track_A for scene in scenes]
    for one, other in zip(again, scenes, strict=True):
        np.testing.assert_array_equal(one.pose_AT3, other.pose_AT3)
