"""Simulated traffic at intersections."""

import numpy as np
import pytest
from motion_scenes import read

from millrace.errors import ConfigError
from millrace.systems.traffic.geometry import box_corners, distance_to_edge, distance_to_nearest
from millrace.systems.traffic.simulator.roads import draw_intersection
from millrace.systems.traffic.simulator.traffic import Traffic, TrafficConfig, simulate

CONFIG = TrafficConfig(towns=1, scenes=4, seed=3)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    base = tmp_path_factory.mktemp("traffic")
    simulate(CONFIG, base)
    return read(base)


def edges(lines):
    """Segments of the road edges, [E, 2, 2]."""
    points = [line.points_P2 for line in lines if line.type == "road_edge"]
    return np.concatenate([np.stack([p[:-1], p[1:]], axis=1) for p in points])


def test_all_classes_occur(scenarios):
    assert [one.name for one in scenarios] == [f"town00_{i:03d}" for i in range(4)]
    kinds = np.concatenate([one.kind_A for one in scenarios])
    assert set(kinds.tolist()) == {0, 1, 2}
    assert min(len(one.kind_A) for one in scenarios) > 5


def test_cars_stay_on_the_road_and_apart(scenarios):
    n_off = n_hit = n_all = 0
    for scenario in scenarios:
        car = scenario.kind_A == 0
        corner = box_corners(scenario.pose_AT3[car], scenario.size_A2[car][:, None])
        beyond = distance_to_edge(corner.reshape(-1, 2), edges(scenario.road))
        n_off += int((beyond > 0).sum())
        hit = distance_to_nearest(scenario.pose_AT3[None], scenario.size_A2)[0] < 0
        n_hit += int(hit.any(axis=1).sum())
        n_all += len(car)
    assert n_off == 0
    assert n_hit / n_all < 0.05


def test_no_agent_jumps(scenarios):
    for scenario in scenarios:
        step = np.linalg.norm(np.diff(scenario.pose_AT3[..., :2], axis=1), axis=2)
        assert np.nanmax(step) < 1.8
        speed = np.linalg.norm(scenario.velocity_AT2, axis=2)[:, 1:]
        moving = (step > 0.3) & (scenario.kind_A[:, None] == 0)
        np.testing.assert_allclose(step[moving] * 10, speed[moving], rtol=0.25)


def test_no_vehicle_crosses_the_stop_line_on_red():
    random = np.random.default_rng(1)
    traffic = Traffic(draw_intersection(random), CONFIG, random)
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
                t = traffic.time % traffic.cycle - mover.route.arm * traffic.phase
                assert 0 <= t < 8 + 2 + 1.5, "crossed the line on red"
    assert crossed > 5


def test_equal_seeds_give_equal_traffic(scenarios, tmp_path):
    simulate(CONFIG, tmp_path)
    for one, two in zip(scenarios, read(tmp_path), strict=True):
        np.testing.assert_array_equal(one.pose_AT3, two.pose_AT3)


def test_edges_have_the_road_on_their_left():
    for seed in range(8):
        place = draw_intersection(np.random.default_rng(seed))
        way = np.concatenate([route.points_P2 for route in place.routes])
        assert (distance_to_edge(way, edges(place.lines)) < -0.9).all()
        walk = np.concatenate(place.pavements)
        assert (distance_to_edge(walk, edges(place.lines)) > 0.5).mean() > 0.97


def test_at_least_one_town():
    with pytest.raises(ConfigError, match=r"demo\.towns: expected a whole number of 1 or more"):
        TrafficConfig.parse({"towns": 0}, "demo")
