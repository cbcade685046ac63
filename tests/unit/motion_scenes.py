"""Small scenarios of traffic for tests: a road that may bend, a crosswalk, a traffic light."""

import struct

import numpy as np
import pandas as pd

from millrace.data.account import Account
from millrace.systems.traffic.formats import Traffic
from millrace.systems.traffic.formats.waymo import masked_crc, message
from millrace.systems.traffic.tracks import (
    STEP_S,
    STEPS,
    Polyline,
    Scenario,
    write_recording,
)

TIME = STEP_S * np.arange(STEPS)
SIZES = np.array([[4.6, 1.9], [0.6, 0.6], [1.8, 0.7]])


def road(bend, width=8.0):
    """Two lanes, an edge on either side (the road on its left), a crosswalk; along x, bending left."""
    s = np.linspace(-30, 70, 41)
    heading = bend * (s + 30)
    axis = np.stack([s, bend * (s + 30) ** 2 / 2], axis=1)
    left = np.stack([-np.sin(heading), np.cos(heading)], axis=1)
    return (
        Polyline("lane_right", "lane", axis - 2 * left),
        Polyline("lane_left", "lane", (axis + 2 * left)[::-1]),
        Polyline("edge_right", "road_edge", axis - width / 2 * left),
        Polyline("edge_left", "road_edge", (axis + width / 2 * left)[::-1]),
        Polyline("crossing", "crosswalk", np.array([[10.0, -8.0], [10.0, 8.0]])),
    )


def drive(lane, begin, speed, change=0.0):
    """Poses along the right lane (-1) or, the other way, the left one, of a straight road."""
    along = begin + speed * TIME + change * TIME**2 / 2
    sign = -lane
    heading = np.full(STEPS, 0.0 if sign > 0 else np.pi - 1e-3)
    return np.stack([sign * along, np.full(STEPS, 2.0 * lane), heading], axis=1)


def walk(begin, speed, direction):
    path = begin + speed * TIME[:, None] * [np.cos(direction), np.sin(direction)]
    return np.concatenate([path, np.full((STEPS, 1), direction)], axis=1)


def scenario(name, random, n_cars=3, lines=None):
    """Cars, a pedestrian and a cyclist; the last car comes late and is lost for a while."""
    cars = [
        drive(-1 if i % 2 == 0 else 1, random.uniform(-25, 20), *random.uniform(0, [9, 0.6]))
        for i in range(n_cars)
    ]
    turn = random.uniform(-0.15, 0.15)
    bike = walk(random.uniform(-20, 0, 2) * [1, 0.1], random.uniform(3, 5), turn)
    person = walk(np.array([10.0, -7.0]), random.uniform(1, 1.5), np.pi / 2)
    pose = np.stack([*cars, person, bike])
    pose[2, 40:52] = np.nan
    velocity = np.gradient(pose[..., :2], STEP_S, axis=1)
    kind = np.array([0] * n_cars + [1, 2], dtype=np.int8)
    states = np.where(np.arange(STEPS) < 10 + 10 * (len(name) % 3), 1, 3).astype(np.int8)
    return Scenario(
        name=name,
        track_A=tuple(f"track{i}" for i in range(len(kind))),
        kind_A=kind,
        size_A2=SIZES[kind],
        pose_AT3=pose,
        velocity_AT2=np.nan_to_num(velocity),
        road=road(0.0) if lines is None else lines,
        lights={"lane_right": states},
    )


def write(base, scenarios=12):
    """Write two recordings; returns their scenarios."""
    random = np.random.default_rng(5)
    written = []
    for number in range(2):
        line = road(0.0 if number == 0 else 0.002)
        names = [f"place{number}_{'x' * (i % 3)}{i:02d}" for i in range(scenarios // 2)]
        part = [scenario(name, random, 3 + i % 3, line) for i, name in enumerate(names)]
        write_recording(base, f"place{number}", part)
        written += part
    return written


def read(base, name="tracks", account=None):
    """Read the scenarios of all files of a directory in a format."""
    traffic, account = Traffic(name, base), account or Account()
    return [one for n in range(len(traffic.files)) for one in traffic.scenarios(n, account)]


def write_highd(base, rate=25, seconds=12):
    """Write a recording of highD: a car to the right, a truck to the left."""
    frame = np.arange(1, rate * seconds + 1)
    right = {"id": 1, "x": 10 + 20 * frame / rate, "y": 20.0, "xVelocity": 20.0, "yVelocity": 0.4}
    left = {"id": 2, "x": 300 - 30 * frame / rate, "y": 5.0, "xVelocity": -30.0, "yVelocity": 0.0}
    common = {"frame": frame, "width": 5.0, "height": 2.0}
    meta = {"id": [1, 2], "class": ["Car", "Truck"], "drivingDirection": [2, 1]}
    recording = {"frameRate": [rate], "upperLaneMarkings": "2.0;6.0;10.0"}
    recording["lowerLaneMarkings"] = "14.0;18.0;22.0"
    for name, frames in (
        ("tracks", [common | right, common | left]),
        ("tracksMeta", [meta]),
        ("recordingMeta", [recording]),
    ):
        table = pd.concat([pd.DataFrame(one) for one in frames])
        table.to_csv(base / f"01_{name}.csv", index=False)


def record(content):
    """A record of a TFRecord file."""
    head = struct.pack("<Q", len(content))
    checks = [struct.pack("<I", masked_crc(part)) for part in (head, content)]
    return head + checks[0] + content + checks[1]


def waymo(name="s", x=1.0, states=91, kind=1, steps=91):
    """A serialised scenario of Waymo: one agent that stands at the begin of a lane."""
    scenario = message("Scenario")
    scenario.scenario_id, scenario.current_time_index = name, 10
    scenario.timestamps_seconds.extend(0.1 * np.arange(steps))
    track = scenario.tracks.add(id=1, object_type=kind)
    for _ in range(states):
        track.states.add(center_x=x, length=4, width=2, valid=True)
    lane = scenario.map_features.add(id=5).lane
    for i in range(5):
        lane.polyline.add(x=i, y=0)
    return scenario.SerializeToString()
