"""Public formats, each tested with small files written here as the data sets have them."""

import json
import struct

import numpy as np
import pandas as pd
import pytest
from motion_scenes import read, write_highd

from millrace.errors import DataError
from millrace.systems.traffic.formats import ADAPTERS
from millrace.systems.traffic.formats.interaction import utm
from millrace.systems.traffic.formats.recordings import Track, cut_scenarios, heading_of, states_at
from millrace.systems.traffic.formats.waymo import masked_crc, message
from millrace.systems.traffic.tracks import LIGHT_STATES


def line_of(scenario, name):
    return next(line for line in scenario.road if line.name == name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_empty_directory_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="no file"):
        read(tmp_path, name)


# highD


def test_highd(tmp_path):
    write_highd(tmp_path)
    (scenario,) = read(tmp_path, "highd")
    assert scenario.track_A == ("1", "2")
    one, two = scenario.pose_AT3
    # The first frame is number 1, at 0.04 s; corners are 2.5 and 1 m from the middle; y goes up.
    np.testing.assert_allclose(one[0], [10 + 0.8 + 2.5, -21.0, 0], atol=1e-3)
    np.testing.assert_allclose(one[10, 0] - one[0, 0], 20.0, atol=1e-3)
    np.testing.assert_allclose(scenario.velocity_AT2[0, 0], [20, -0.4], atol=1e-3)
    np.testing.assert_allclose(np.abs(two[0, 2]), np.pi, atol=1e-3)
    np.testing.assert_allclose(scenario.size_A2, [[5, 2], [5, 2]])
    top = line_of(scenario, "upper_top")
    assert top.type == "road_edge"
    assert (top.points_P2[:, 1] == -2).all()
    assert top.points_P2[0, 0] > top.points_P2[-1, 0], "the road is on its left"
    lane = line_of(scenario, "lower_lane0")
    assert lane.points_P2[0, 1] == -16
    assert lane.points_P2[0, 0] < lane.points_P2[-1, 0]


# NGSIM


NGSIM = {"Vehicle_ID": 7, "Local_X": 18.0, "v_Length": 15.0, "v_Width": 6.0, "Lane_ID": 2}


def test_ngsim(tmp_path):
    time = np.arange(120)
    rows = {"Global_Time": 1118846980200 + 100 * time, "Local_Y": 100 + 4.0 * time, "v_Class": 2}
    pd.DataFrame(NGSIM | rows).to_csv(tmp_path / "us101.csv", index=False)
    (scenario,) = read(tmp_path, "ngsim")
    foot = 0.3048
    # Its front is 100 feet along the road and 18 feet right of the left edge.
    expected = [(100 - 7.5) * foot, -18 * foot, 0]
    np.testing.assert_allclose(scenario.pose_AT3[0, 0], expected, atol=1e-3)
    np.testing.assert_allclose(scenario.size_A2[0], [15 * foot, 6 * foot], atol=1e-3)
    np.testing.assert_allclose(scenario.velocity_AT2[0, 40], [40 * foot, 0], atol=1e-2)
    assert line_of(scenario, "left").points_P2[0, 1] > line_of(scenario, "right").points_P2[0, 1]


def test_ngsim_gives_one_number_to_several_vehicles(tmp_path):
    time = np.concatenate([np.arange(100), np.arange(1000, 1100)])
    rows = {"Global_Time": 100 * time, "Local_Y": 4.0 * (time % 1000)}
    rows["v_Class"] = [2] * 100 + [1] * 100
    pd.DataFrame(NGSIM | rows).to_csv(tmp_path / "i80.csv", index=False)
    scenarios = read(tmp_path, "ngsim")
    assert {scenario.track_A for scenario in scenarios} == {("7_0",), ("7_1",)}
    assert {int(scenario.kind_A[0]) for scenario in scenarios} == {0, 2}


# INTERACTION

OSM = """<osm>
{nodes}
<way id="10"><nd ref="2"/><nd ref="1"/><tag k="type" v="curbstone"/></way>
<way id="11"><nd ref="4"/><nd ref="3"/><tag k="type" v="line_thin"/></way>
<relation id="20"><member type="way" ref="11" role="left"/><member type="way" ref="10" role="right"/>
<tag k="type" v="lanelet"/></relation></osm>"""


def write_interaction(base):
    place = base / "DR_TEST"
    place.mkdir()
    metre = 1 / (utm(0.0, 1e-5)[0] - utm(0.0, 0.0)[0]) * 1e-5
    up = 1 / (utm(1e-5, 0.0)[1] - utm(0.0, 0.0)[1]) * 1e-5
    corners = [(0, 0), (50, 0), (50, 4), (0, 4)]
    nodes = "\n".join(
        f'<node id="{i + 1}" lat="{y * up!r}" lon="{x * metre!r}"/>'
        for i, (x, y) in enumerate(corners)
    )
    (place / "DR_TEST.osm").write_text(OSM.format(nodes=nodes))
    ms = 100 * np.arange(1, 101)
    cars = {"track_id": 1, "frame_id": ms // 100, "timestamp_ms": ms, "agent_type": "car"}
    cars |= {"x": 1 + 0.5 * ms / 100, "y": 2.0, "vx": 5.0, "vy": 0.0, "psi_rad": 0.05}
    cars |= {"length": 4.2, "width": 1.8}
    pd.DataFrame(cars).to_csv(place / "vehicle_tracks_000.csv", index=False)
    people = {"track_id": "P1", "timestamp_ms": ms, "agent_type": "pedestrian/bicycle"}
    people |= {"x": 20.0, "y": -3 + 0.1 * ms / 100, "vx": 0.0, "vy": 1.0}
    pd.DataFrame(people).to_csv(place / "pedestrian_tracks_000.csv", index=False)


def test_interaction(tmp_path):
    write_interaction(tmp_path)
    (scenario,) = read(tmp_path, "interaction")
    assert scenario.track_A == ("1", "P1")
    np.testing.assert_allclose(scenario.pose_AT3[0, 10], [1 + 0.5 * 11, 2, 0.05], atol=1e-3)
    np.testing.assert_allclose(scenario.pose_AT3[1, 0, 2], np.pi / 2, atol=1e-3)
    assert scenario.kind_A.tolist() == [0, 1]
    lane = line_of(scenario, "lane20")
    np.testing.assert_allclose(lane.points_P2[[0, -1]], [[0, 2], [50, 2]], atol=0.02)
    edge = line_of(scenario, "way10")
    assert edge.type == "road_edge"
    assert edge.points_P2[0, 0] < edge.points_P2[-1, 0], "the lane is on its left"


def test_utm_of_known_points():
    # Central meridian at the equator, and a point published with the zone's definition.
    assert utm(0.0, 3.0) == pytest.approx((500_000, 0), abs=1e-6)
    degree = utm(1.0, 3.0)[1]
    assert degree == pytest.approx(0.9996 * 110_574.39, abs=0.5)
    assert utm(0.0, 0.0)[0] == pytest.approx(166_021.44, abs=0.01)


# Argoverse 2


def test_argoverse(tmp_path):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "train" / "abc"
    folder.mkdir(parents=True)
    step = np.arange(110)
    car = {"track_id": "AV", "object_type": "vehicle", "timestep": step, "position_x": 0.8 * step}
    car |= {"position_y": 5.0, "heading": 0.1, "velocity_x": 8.0, "velocity_y": 0.1}
    bus = car | {"track_id": "9", "object_type": "bus", "position_y": 9.0}
    rock = car | {"track_id": "3", "object_type": "static"}
    frame = pd.concat([pd.DataFrame(one) for one in (car, bus, rock)], ignore_index=True)
    frame["scenario_id"], frame["observed"] = "abc", frame["timestep"] < 50
    frame.to_parquet(folder / "scenario_abc.parquet")

    def points(*values):
        return [{"x": x, "y": y, "z": 0.0} for x, y in values]

    lane = {
        "left_lane_boundary": points((0, 7), (90, 7)),
        "right_lane_boundary": points((0, 3), (90, 3)),
        "left_lane_mark_type": "SOLID_WHITE",
        "right_lane_mark_type": "NONE",
        "lane_type": "VEHICLE",
    }
    crossing = {"edge1": points((10, 0), (10, 8)), "edge2": points((12, 0), (12, 8))}
    content = {
        "lane_segments": {"1": lane},
        "pedestrian_crossings": {"2": crossing},
        "drivable_areas": {"3": {"area_boundary": points((0, 0), (0, 10), (90, 10), (90, 0))}},
    }
    (folder / "log_map_archive_abc.json").write_text(json.dumps(content))
    (scenario,) = read(tmp_path, "argoverse2")
    assert scenario.track_A == ("9", "AV")
    np.testing.assert_allclose(scenario.pose_AT3[1, 0], [0.8 * 19, 5, 0.1], atol=1e-3)
    np.testing.assert_allclose(scenario.pose_AT3[1, -1, 0], 0.8 * 109, atol=1e-3)
    assert scenario.size_A2[0, 0] > 10
    np.testing.assert_allclose(line_of(scenario, "lane1").points_P2[:, 1], 5)
    assert [line.name for line in scenario.road if line.type == "road_line"] == ["left1"]
    x, y = line_of(scenario, "area3").points_P2.T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0, "counter-clockwise"


# Waymo


def write_waymo(path, steps=91):
    scenario = message("Scenario")
    scenario.scenario_id, scenario.current_time_index = "f00d", 10
    scenario.timestamps_seconds.extend(0.1 * np.arange(steps))
    for number, kind in enumerate((1, 2, 4)):
        track = scenario.tracks.add(id=40 + number, object_type=kind)
        for t in range(steps):
            box = {"length": 4.4, "width": 1.9, "heading": 0.25, "valid": t != 30}
            velocity = {"velocity_x": 15.0, "velocity_y": 0.5}
            track.states.add(center_x=1.5 * t, center_y=-2.0 * number, **box, **velocity)
    for t in range(steps):
        dynamic = scenario.dynamic_map_states.add()
        dynamic.lane_states.add(lane=5, state=4 if t < 20 else 6)
    lane = scenario.map_features.add(id=5).lane
    edge = scenario.map_features.add(id=6).road_edge
    for x in (0.0, 40.0):
        lane.polyline.add(x=x, y=0.0)
        edge.polyline.add(x=x, y=-3.0)
    area = scenario.map_features.add(id=7).crosswalk
    for x, y in ((1, 1), (2, 1), (2, 5), (1, 5)):
        area.polygon.add(x=x, y=y)
    content = scenario.SerializeToString()
    head = struct.pack("<Q", len(content))
    record = head + struct.pack("<I", masked_crc(head)) + content
    path.write_bytes(record + struct.pack("<I", masked_crc(content)))


def test_waymo(tmp_path):
    write_waymo(tmp_path / "training.tfrecord-00000-of-01000")
    (scenario,) = read(tmp_path, "waymo")
    assert scenario.name == "f00d"
    assert scenario.track_A == ("40", "41"), "other objects are left out"
    np.testing.assert_allclose(scenario.pose_AT3[1, 10], [15, -2, 0.25], atol=1e-3)
    assert np.isnan(scenario.pose_AT3[0, 30]).all()
    assert scenario.kind_A.tolist() == [0, 1]
    series = scenario.lights["5"]
    assert [LIGHT_STATES[s] for s in series[[0, 19, 20, 90]]] == ["red", "red", "green", "green"]
    assert line_of(scenario, "6").type == "road_edge"
    assert len(line_of(scenario, "7").points_P2) == 5, "closed"


def test_checksum_of_tfrecord():
    # RFC 3720, B.4: CRC-32C of 32 bytes of zeros, and of 0 ... 31.
    def unmasked(crc):
        crc = (crc - 0xA282EAD8) & 0xFFFFFFFF
        return (crc >> 17 | crc << 15) & 0xFFFFFFFF

    assert unmasked(masked_crc(bytes(32))) == 0x8A9136AA
    assert unmasked(masked_crc(bytes(range(32)))) == 0x46DD794E
    assert unmasked(masked_crc(b"123456789")) == 0xE3069283


@pytest.mark.parametrize(("damage", "told"), [("flip", "wrong checksum"), ("cut", "ends in it")])
def test_damaged_tfrecord_is_refused(tmp_path, damage, told):
    path = tmp_path / "a.tfrecord"
    write_waymo(path)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[1000] ^= 4
    path.write_bytes(content[: -3 if damage == "cut" else None])
    with pytest.raises(DataError, match=told):
        read(tmp_path, "waymo")


def test_scenario_without_the_expected_current_step_is_refused(tmp_path):
    write_waymo(tmp_path / "a.tfrecord", steps=120)
    with pytest.raises(DataError, match="'f00d' has 120 steps"):
        read(tmp_path, "waymo")


# What they share


def track(time, x, heading=0.0, name="a"):
    state = np.zeros((len(time), 5))
    state[:, 0], state[:, 2] = x, heading
    return Track(name, "vehicle", 4.0, 2.0, time, state)


def test_resampling_turns_the_short_way():
    time = np.array([0.0, 0.2])
    pose = states_at(track(time, time * 10, [np.pi - 0.1, -np.pi + 0.1]), np.array([0.1]))
    np.testing.assert_allclose(pose[0, :2], [1, 0])
    assert abs(pose[0, 2]) == pytest.approx(np.pi)


def test_resampling_does_not_bridge_gaps():
    time = np.array([0.0, 0.1, 1.0, 1.1])
    pose = states_at(track(time, time), np.array([0.05, 0.1, 0.5, 1.0, 1.05, 2.0]))
    assert np.isfinite(pose[:, 0]).tolist() == [True, True, False, True, True, False]


def test_scenarios_follow_each_other():
    time = 0.1 * np.arange(300)
    late = track(time[200:], time[200:], name="late")
    scenarios = cut_scenarios("r", [track(time, time), late], ())
    assert [one.name for one in scenarios] == ["r_00000", "r_00001", "r_00002"]
    assert [len(one.track_A) for one in scenarios] == [1, 1, 2]
    np.testing.assert_allclose(scenarios[1].pose_AT3[0, 0, 0], 9.1)


def test_standing_keeps_the_heading():
    time = 0.1 * np.arange(20)
    x = np.concatenate([np.zeros(5), np.arange(10.0), np.full(5, 9.0)])
    found = heading_of(np.stack([-x, np.zeros(20)], axis=1), time)
    np.testing.assert_allclose(np.abs(found), np.pi)
