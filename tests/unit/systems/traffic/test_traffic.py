import numpy as np
import pytest

from millrace.errors import ConfigError
from millrace.systems.traffic.boxes import beyond_edge, box_corners, nearest_box
from millrace.systems.traffic.simulator.roads import make_town
from millrace.systems.traffic.simulator.traffic import Traffic, TrafficConfig, simulate
from millrace.systems.traffic.tracks import find_recordings, read_recording

CONFIG = TrafficConfig(towns=1, scenes=4, seed=3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    base = tmp_path_factory.mktemp("traffic")
    simulate(CONFIG, base)
    return [s for files in find_recordings(base) for s in read_recording(files)]


def test_everybody_is_there(scenes):
    assert [scene.name for scene in scenes] == [f"town00_{i:03d}" for i in range(4)]
    kinds = np.concatenate([scene.kind_A for scene in scenes])
    assert set(kinds.tolist()) == {0, 1, 2}
    assert min(len(scene.kind_A) for scene in scenes) > 5


def test_cars_stay_on_the_road_and_apart(scenes):
    n_off = n_hit = n_all = 0
    for scene in scenes:
        edge = [
            np.stack([line.points_P2[:-1], line.points_P2[1:]], axis=1)
            for line in scene.road
            if line.type == "road_edge"
        ]
        car = scene.kind_A == 0
        corner = box_corners(scene.pose_AT3[car], scene.size_A2[car][:, None])
        beyond = beyond_edge(corner.reshape(-1, 2), np.concatenate(edge))
        n_off += int((beyond > 0).sum())
        hit = nearest_box(scene.pose_AT3[None], scene.size_A2)[0] < 0
        n_hit += int(hit.any(axis=1).sum())
        n_all += len(car)
    assert n_off == 0
    assert n_hit / n_all < 0.05


def test_nobody_jumps(scenes):
    for scene in scenes:
        step = np.linalg.norm(np.diff(scene.pose_AT3[..., :2], axis=1), axis=2)
        assert np.nanmax(step) < 1.8
        speed = np.linalg.norm(scene.velocity_AT2, axis=2)[:, 1:]
        moving = (step > 0.3) & (scene.kind_A[:, None] == 0)
        np.testing.assert_allclose(step[moving] * 10, speed[moving], rtol=0.25)


def test_nobody_drives_through_red():
    random = np.random.default_rng(1)
    traffic = Traffic(make_town(random), CONFIG, random)
    crossed = 0
    for _ in range(1500):
        before = {m.number: m.s for m in traffic.movers if m.route is not None}
        traffic.step()
        for mover in traffic.movers:
            if mover.route is None or mover.number not in before:
                continue
            front = (2.4 if mover.kind == 0 else 0.9) - mover.route.stop
            if before[mover.number] + front < -1 and mover.s + front > 0.5:
                raise AssertionError("jumped over the line")
            if before[mover.number] + front < 0.5 <= mover.s + front:
                crossed += 1
                t = traffic.time % traffic._cycle - mover.route.arm * traffic._phase
                assert 0 <= t < 8 + 2 + 1.5, "crossed the line on red"
    assert crossed > 5


def test_one_seed_one_traffic(scenes, tmp_path):
    simulate(CONFIG, tmp_path)
    again = [s for files in find_recordings(tmp_path) for s in read_recording(files)]
    for one, two in zip(scenes, again, strict=True):
        np.testing.assert_array_equal(one.pose_AT3, two.pose_AT3)


def test_edges_have_the_road_on_their_left():
    for seed in range(8):
        town = make_town(np.random.default_rng(seed))
        edge = [
            np.stack([line.points_P2[:-1], line.points_P2[1:]], axis=1)
            for line in town.lines
            if line.type == "road_edge"
        ]
        way = np.concatenate([route.points_P2 for route in town.routes])
        assert (beyond_edge(way, np.concatenate(edge)) < -0.9).all()
        walk = np.concatenate(town.pavements)
        assert (beyond_edge(walk, np.concatenate(edge)) > 0.5).mean() > 0.97


def test_at_least_one_town():
    with pytest.raises(ConfigError, match="at least one town"):
        TrafficConfig(towns=0)
