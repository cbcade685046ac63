"""Submissions to the Sim Agents Challenge, read back by their bytes alone."""

import json
import struct

import numpy as np
import pytest
import torch
import xarray as xr
from motion_scenes import record

from millrace.evaluation.loaded import load
from millrace.systems.traffic.formats.waymo import message, read_scenario
from millrace.systems.traffic.sim_agents import main
from millrace.systems.traffic.submission import HORIZON, ROLLOUTS


def fields(content):
    """Numbers and values of the fields of a message, by the encoding of protocol buffers."""
    at, found = 0, {}

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(content):
        key = varint()
        assert key & 7 in (0, 2), "only numbers and parts of known length"
        if key & 7 == 0:
            value = varint()
        else:
            length = varint()
            value = content[at : at + length]
            at += length
        found.setdefault(key >> 3, []).append(value)
    return found


def floats(content):
    return np.array(struct.unpack(f"<{len(content) // 4}f", content))


def scenario(name, steps, objects):
    """A serialised scenario: (id, type, x, valid at step 10) of each object, which drives along x."""
    made = message("Scenario")
    made.scenario_id, made.current_time_index = name, 10
    made.timestamps_seconds.extend(0.1 * np.arange(steps))
    for own, kind, x, valid in objects:
        track = made.tracks.add(id=own, object_type=kind)
        for t in range(steps):
            track.states.add(
                center_x=x + 0.5 * t,
                center_y=3.0 * own,
                center_z=100.0 + own,
                length=4,
                width=2,
                heading=0.1,
                velocity_x=5.0,
                velocity_y=-1.0,
                valid=valid or t < 5,
            )
    lane = made.map_features.add(id=5).lane
    for i in range(9):
        lane.polyline.add(x=5.0 * i, y=0)
    return made.SerializeToString()


@pytest.fixture
def womd(tmp_path):
    """Two files of a test set, without futures, with an object of the type other and one that is gone."""
    folder = tmp_path / "womd"
    folder.mkdir()
    first = [(7, 1, 1.0, True), (12, 4, 8.0, True), (3, 2, 2.0, True), (9, 1, 30.0, False)]
    contents = [
        [scenario("aa", 11, first), scenario("b", 91, [(4, 4, 5.0, True)])],
        [scenario("cc", 11, [(n, 1, 9.0 * n, True) for n in range(4)])],
    ]
    for number, some in enumerate(contents):
        path = folder / f"testing.tfrecord-{number:05d}-of-00002"
        path.write_bytes(b"".join(map(record, some)))
    return folder, contents


def with_one_agent(checkpoint, path):
    """The checkpoint of a model that was trained on one agent of each scenario."""
    state = torch.load(checkpoint, weights_only=True)
    attributes = state["recipe"]["samples"]["scenarios"]["attributes"][""]
    attributes["config"] = json.dumps(json.loads(attributes["config"]) | {"max_agents": 1})
    torch.save(state, path)
    return path


def test_a_submission_holds_the_rollouts_of_all_objects(saved, womd, tmp_path, capsys):
    whole, _, _ = saved("smart")
    checkpoint = with_one_agent(whole, tmp_path / "one.ckpt")
    folder, contents = womd
    output = tmp_path / "submission"
    about = ["--account", "me@lab.org", "--method", "tokens", "--authors", "A", "B"]
    files = ["--checkpoint", str(checkpoint), "--source", str(folder), "--output", str(output)]
    assert main([*files, *about, "--seed", "3", "--closed-loop", "--device", "cpu"]) == 0
    assert "3 scenarios, 8 objects, 2 shards" in capsys.readouterr().out
    names = [f"submission.binproto-{n:05d}-of-00002" for n in range(2)]
    assert sorted(path.name for path in output.iterdir()) == names
    expected = {"aa": [7, 12, 3], "b": [4], "cc": [0, 1, 2, 3]}
    model = load(whole, device="cpu")
    for name, some in zip(names, contents, strict=True):
        shard = fields((output / name).read_bytes())
        assert shard[2] == [1]
        assert shard[3] == [b"me@lab.org"]
        assert shard[4] == [b"tokens"]
        assert shard[5] == [b"A", b"B"]
        assert shard[9] == shard[10] == shard[11] == [0]
        assert shard[12][0].endswith(b"K")
        assert shard[14] == [1]
        assert len(shard[1]) == len(some)
        for content, original in zip(map(fields, shard[1]), some, strict=True):
            [scenario_id] = content[1]
            assert len(content[2]) == ROLLOUTS == 32
            values = [[fields(t) for t in fields(scene)[1]] for scene in content[2]]
            of_rollouts = np.array(
                [[[floats(t[n][0]) for n in (2, 3, 4, 5)] for t in v] for v in values]
            )
            ids = [[t[6][0] for t in v] for v in values]
            assert ids == [expected[scenario_id.decode()]] * ROLLOUTS
            assert of_rollouts.shape == (32, len(ids[0]), 4, HORIZON)
            check(of_rollouts, ids[0], original, model)


def check(of_rollouts, ids, original, model):
    """Objects keep their height; those of the type other go straight on; others are as predicted."""
    for n, own in enumerate(ids):
        np.testing.assert_allclose(of_rollouts[:, n, 2], 100.0 + own)
    assert np.isfinite(of_rollouts).all()
    start = {12: 8.0, 4: 5.0}
    time = 0.1 * np.arange(1, 81)
    for n, own in enumerate(ids):
        if own in start:
            x = start[own] + 5.0 + 5.0 * time
            np.testing.assert_allclose(of_rollouts[:, n, 0], np.tile(x, (32, 1)), rtol=1e-6)
            y = 3.0 * own - time
            np.testing.assert_allclose(of_rollouts[:, n, 1], np.tile(y, (32, 1)), atol=1e-5)
    _, found = read_scenario(original, "", futures=False)
    if not found:
        return
    [one] = found
    tracks = [n for n, own in enumerate(ids) if str(own) in one.track_A]
    made = predicted(model, one)
    for n in tracks:
        at = made["track"].values[0].tolist().index(str(ids[n]))
        for axis, key in ((0, "x"), (1, "y"), (3, "heading")):
            np.testing.assert_array_equal(of_rollouts[:, n, axis], made[key].values[0, :, at])


def predicted(model, scenario):
    """Rollouts of the same scenario, given as named arrays."""
    pose = scenario.pose_AT3[:, :11]
    data = {key: (("agent", "time"), pose[..., n]) for n, key in enumerate(("x", "y", "heading"))}
    kinds = np.array(["vehicle", "pedestrian", "cyclist"])[scenario.kind_A]
    data |= {"type": ("agent", kinds)}
    data |= {key: ("agent", scenario.size_A2[:, n]) for n, key in enumerate(("length", "width"))}
    states = xr.Dataset(data, {"agent": list(scenario.track_A)}, {"scenario": scenario.name})
    points = np.concatenate([line.points_P2 for line in scenario.road])
    road = {
        "x": ("point", points[:, 0]),
        "y": ("point", points[:, 1]),
        "polyline": ("point", [x.name for x in scenario.road for _ in x.points_P2]),
        "type": ("point", [x.type for x in scenario.road for _ in x.points_P2]),
    }
    return model.predict(states, xr.Dataset(road), members=32, seed=3, seconds=8.0)


def test_a_submission_is_refused_in_a_sentence(saved, womd, motion_tracks, tmp_path, capsys):
    checkpoint, _, _ = saved("smart")
    output = tmp_path / "submission"
    needed = ["--account", "a", "--method", "b", "--device", "cpu", "--output", str(output)]
    given = ["--checkpoint", str(checkpoint), *needed, "--source"]
    assert main([*given, str(motion_tracks)]) != 0
    assert "TFRecord files of the Waymo Open Motion Dataset, whose" in capsys.readouterr().err
    folder, _ = womd
    gone = scenario("gone", 11, [(1, 1, 0.0, False)])
    (folder / "testing.tfrecord-00001-of-00002").write_bytes(record(gone))
    assert main([*given, str(folder)]) != 0
    assert "scenario 'gone' has no object that is valid at step 10" in capsys.readouterr().err
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))
    output.mkdir()
    assert main([*given, str(folder)]) != 0
    assert "is there already" in capsys.readouterr().err
