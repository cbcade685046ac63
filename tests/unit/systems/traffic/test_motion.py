"""Scores of motion forecasts, and the distances between boxes that they use."""

import numpy as np
import pytest
import torch

from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.geometry import (
    FAR,
    box_distance,
    distance_to_edge,
    distance_to_nearest,
    time_to_collision,
)
from millrace.systems.traffic.realism import FEATURES, KNOWN, features, likelihood, realism
from millrace.systems.traffic.scores import (
    GroundTruth,
    MotionScores,
    TokenUsage,
    above_model,
    bootstrap_interval,
    constant_velocity,
    displacement,
    motion_scores,
    token_frequencies,
    token_scores,
)
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig
from millrace.systems.traffic.smart.rollout import RolloutConfig
from millrace.systems.traffic.smart.spec import SPEC
from millrace.systems.traffic.tracks import CLASSES

CAR = np.array([4.0, 2.0])
STEPS = 41
TIME = 0.1 * np.arange(STEPS)


def straight(x, y, speed, heading=0.0):
    along = speed * TIME
    path = [x + along * np.cos(heading), y + along * np.sin(heading), np.full(STEPS, heading)]
    return np.stack(path, axis=1)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([10.0, 0, 0], 6.0),
        ([0, 5.0, 0], 3.0),
        ([7.0, 6.0, 0], 5.0),  # corners 3 and 4 m apart
        ([5.0, 0, np.pi / 2], 2.0),
        ([3.0, 0, 0], -1.0),
        ([0, 0.5, 0], -1.5),
        ([2 + np.sqrt(5) + 1, 0, np.arctan2(1, 2)], None),
    ],
)
def test_distance_of_boxes(other, expected):
    pose, other = np.zeros(3), np.array(other)
    found = box_distance(pose, CAR, other, CAR)
    assert found == pytest.approx(box_distance(other, CAR, pose, CAR), abs=1e-12)
    if expected is not None:
        assert found == pytest.approx(expected, abs=1e-9)


def test_the_nearest_box_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    pose = random.uniform([-15, -15, -3], [15, 15, 3], (2, 7, 5, 3))
    pose[0, 2, 1] = np.nan
    size = random.uniform(0.5, 5, (7, 2))
    found = distance_to_nearest(pose, size)
    for a in range(7):
        pairs = [box_distance(pose[:, a], size[a], pose[:, b], size[b]) for b in range(7) if b != a]
        np.testing.assert_allclose(found[:, a], np.fmin.reduce(pairs), atol=1e-9)
    assert distance_to_nearest(pose[:, :1], size[:1])[0, 0, 0] == FAR


WAY, WAY_IF_SMALL = np.radians(75), np.radians(10)


@pytest.mark.parametrize(
    ("place", "heading", "size", "speed", "expected"),
    [
        (
            [[x, y] for y in (3, 0, -3) for x in (-3, 0, 3)],
            [0] * 9,
            (1, 1),
            [10, 6, 1] * 3,
            [2 / 4, 2 / 5, 5] * 3,
        ),
        ([[0, 0], [5, 0], [10, 0], [15, 0]], [0] * 4, (4, 2), [6, 10, 3, 1], [5, 1 / 7, 1 / 2, 5]),
        (
            [[0, 0], [5, 0], [10, 0], [15, 0]],
            [0, WAY + 0.01, 0, WAY - 0.01],
            (4, 2),
            [10, 6, 3, 1],
            [6 / 7, 5, (3 - 2 * np.cos(WAY - 0.01) - np.sin(WAY - 0.01)) / 2, 5],
        ),
        (
            [[0, 0], [5, 2.1], [10, 1.1], [15, 0]],
            [0] * 4,
            (4, 2),
            [10, 6, 3, 1],
            [6 / 7, 1 / 3, 1 / 2, 5],
        ),
        (
            [[0, 0], [5, 2.0], [10, -2.0]],
            [0, WAY_IF_SMALL + 0.01, -WAY_IF_SMALL + 0.01],
            (4, 2),
            [6, 3, 1],
            [(8 - 2 * np.cos(WAY_IF_SMALL - 0.01) - np.sin(WAY_IF_SMALL - 0.01)) / 5, 5, 5],
        ),
    ],
)
def test_time_to_collision_of_published_cases(place, heading, size, speed, expected):
    """Those of the tests of the Waymo Open Sim Agents Challenge: a grid, a line, and who is no leader."""
    pose = np.column_stack([place, heading]).astype(float)[None, :, None]
    sizes, speeds = np.tile(np.array(size, dtype=float), (len(place), 1)), np.array(speed, float)
    found = time_to_collision(pose, speeds[None, :, None], sizes, 5.0)
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("one", "size", "other", "its_size", "expected"),
    [
        ([0, 0, 0], (2, 1), [3, 0, 0], (4, 1), 0),
        ([0, 0, 0], (1, 1), [0, 1.5, 0], (1, 2), 0),
        ([0, 0, np.pi / 2], (2, 1), [1, 0, 0], (1, 1), 0),
        ([6, 0, np.pi], (2, 1), [-6, 0, 0], (2, 1), 10),
    ],
)
def test_distances_of_published_cases(one, size, other, its_size, expected):
    boxes = (np.array(values, dtype=float) for values in (one, size, other, its_size))
    assert box_distance(*boxes) == pytest.approx(expected, abs=1e-6)


def test_speeds_of_published_cases():
    """Positions and headings a second apart, here a tenth; central differences, unknown at the ends."""
    x, heading = [5.0, 6.0, 8.0, 9.0, 9.0], [0.0, 1.0, 3.0, 2.0, 0.0]
    # The case counts five known poses; here the first three are not scored.
    pose = np.column_stack([x, np.zeros(5), heading])
    before = np.full((KNOWN, 3), np.nan)
    found = features(
        np.concatenate([before, pose])[None, None], CAR[None], np.array([0]), np.empty((0, 2, 2))
    )
    nan = np.nan
    for name, rate, values in (
        ("speed", 10, [nan, 1.5, 1.5, 0.5, nan]),
        ("acceleration", 100, [nan, nan, -0.5, nan, nan]),
        ("angular_speed", 10, [nan, 1.5, 0.5, -1.5, nan]),
        ("angular_acceleration", 100, [nan, nan, -1.5, nan, nan]),
    ):
        np.testing.assert_allclose(found[name][0, 0] / rate, values, atol=1e-6, err_msg=name)


def test_time_to_collision():
    pose = np.stack([straight(0, 0, 10.0), straight(24, 0.5, 5.0), straight(10, 3.5, 0.0)])[None]
    speed = np.repeat(np.array([10.0, 5.0, 0.0])[None, :, None], STEPS, axis=2)
    size = np.tile(CAR, (3, 1))
    found = time_to_collision(pose, speed, size, 5.0)
    assert found[0, 0, 0] == pytest.approx(20 / 5)
    assert (found[0, 0, :30] < 4.01).all()
    assert (found[0, 1] == 5).all()
    assert (found[0, 2] == 5).all()


def test_edges_have_the_road_on_their_left():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10], [0, 0.0]])
    edge = np.stack([square[:-1], square[1:]], axis=1)
    points = np.array([[5, 1.0], [5, -2.0], [13, 14.0], [9.5, 9.0], [-1.0, -1e-3]])
    expected = [-1.0, 2.0, 5.0, -0.5, 1.0]
    np.testing.assert_allclose(distance_to_edge(points, edge), expected, atol=1e-5)
    backward = distance_to_edge(points, edge[:, ::-1])
    np.testing.assert_allclose(backward, -np.array(expected), atol=1e-5)


def test_many_edges_have_the_same_distance_as_few():
    angle = np.linspace(0, 2 * np.pi, 200)
    ring = 20 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    edge = np.stack([ring[:-1], ring[1:]], axis=1)
    points = np.random.default_rng(1).uniform(-40, 40, (500, 2))
    found = distance_to_edge(points, edge)
    np.testing.assert_allclose(found, np.hypot(*points.T) - 20, atol=0.01)


def test_features_of_known_motion():
    circle = np.stack([10 * np.sin(0.5 * TIME), 10 - 10 * np.cos(0.5 * TIME), 0.5 * TIME], axis=1)
    faster = np.stack([TIME**2, np.full(STEPS, 50.0), np.zeros(STEPS)], axis=1)
    edge = np.array([[[-100, -3.0], [100, -3.0]]])
    found = features(np.stack([circle, faster])[None], np.tile(CAR, (2, 1)), np.array([0, 1]), edge)
    np.testing.assert_allclose(found["speed"][0, 0, :-1], 5, rtol=1e-3)
    np.testing.assert_allclose(found["angular_speed"][0, 0, :-1], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["acceleration"][0, 1, :-2], 2, rtol=1e-6)
    assert found["off_road"][0, 0] == 0
    assert np.isnan(found["off_road"][0, 1]), "edges concern vehicles"
    assert found["collision"].tolist() == [[0, 0]]
    assert found["distance_to_edge"][0, 0].max() < 0


def test_likelihood_in_closed_form():
    n, bins, pseudo = 40, FEATURES["speed"].bins, 0.1
    rollouts, truth = np.full((4, 1, 10), 3.0), np.full((1, 10), 3.0)
    assert likelihood("speed", rollouts, truth) == pytest.approx((n + pseudo) / (n + bins * pseudo))
    assert likelihood("speed", rollouts, truth + 20) == pytest.approx(pseudo / (n + bins * pseudo))
    half = rollouts.copy()
    half[:2] = 23.0
    expected = (n / 2 + pseudo) / (n + bins * pseudo)
    assert likelihood("speed", half, truth) == pytest.approx(expected)
    hit = np.array([[1.0], [1.0], [0.0], [0.0]])
    assert likelihood("collision", hit, np.array([0.0])) == pytest.approx(0.5)
    never = np.zeros((4, 1))
    assert likelihood("off_road", never, np.array([1.0])) == pytest.approx(0.001 / 4.002)
    assert np.isnan(likelihood("off_road", never * np.nan, np.array([1.0])))


def test_realism_is_the_weighted_mean():
    perfect = {name: np.zeros((2, 1) if not f.bins else (2, 1, 3)) for name, f in FEATURES.items()}
    found = realism(perfect, perfect)
    weights = {name: feature.weight for name, feature in FEATURES.items()}
    assert sum(weights.values()) == pytest.approx(0.95)
    expected = sum(weights[name] * found[name] for name in weights) / 0.95
    assert found["realism"] == pytest.approx(expected)
    unknown = perfect | {"speed": perfect["speed"] * np.nan}
    expected = sum(weights[name] * found[name] for name in weights if name != "speed") / 0.9
    assert realism(unknown, unknown)["realism"] == pytest.approx(expected)


def test_displacement_leaves_gaps_out():
    true = np.stack([straight(0, 0, 1.0), np.full((STEPS, 3), np.nan)])
    true[0, 5:30] = np.nan
    rollouts = np.stack([true, true]) * 0 + np.nan_to_num(true) + [0, 0, 0]
    rollouts[1, 0, :, 1] += 2.0
    error = displacement(rollouts, true)
    assert np.nanmax(error[:, 0], axis=1).tolist() == [0.0, 2.0]
    assert np.isnan(error[:, 1]).all()
    assert np.isnan(error[:, 0, 5:30]).all()


def test_scores_are_those_of_the_best_rollout():
    """Two agents, observed for 2 s and 1 s; each has another best rollout, and one is missed."""
    true = np.full((2, 91, 3), np.nan)
    true[0, :31] = 0
    true[1, :21] = [50.0, 0, 0]
    rows = {"true": true, "size": np.tile(CAR, (2, 1)), "kind": np.array([0, 1])}
    truth = GroundTruth(rows, np.empty((0, 2, 2)), 80)
    pose = np.zeros((2, 2, 80, 3))
    pose[:, 1, :, 0] = 50.0
    pose[0, 0, :, 1] = 0.5
    pose[0, 1, :, 1] = 9.0
    pose[1, :, :, 1] = 0.3 * np.arange(1, 81)
    scores = MotionScores()
    scores.add(pose, truth, 0)
    found = scores.result()
    ramp = 0.3 * np.arange(1, 81)
    assert found["min_ade"] == pytest.approx((0.5 + ramp[:10].mean()) / 2)
    # The second rollout is better for both together.
    assert found["scene_min_ade"] == pytest.approx((ramp[:20].mean() + ramp[:10].mean()) / 2)
    assert found["ade"] == pytest.approx(
        np.mean([(0.5 + ramp[:20].mean()) / 2, (9 + ramp[:10].mean()) / 2])
    )
    assert found["miss_rate"] == 0.5, "the second ends 3 m off"
    expected = [(0.5 + ramp[0]) / 2, 0.5, None]
    assert [found["error_by_step"][i] for i in (0, 15, 79)] == pytest.approx(expected)


def test_intervals_come_from_whole_blocks():
    """Half of the blocks with all, half with none: 0.5, with the error of as many coins."""
    events = np.tile([[10.0, 10.0], [0.0, 10.0]], (50, 1))
    low, high = bootstrap_interval(events)
    error = 0.5 / np.sqrt(100)
    assert (low, high) == pytest.approx((0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=0.01)
    assert bootstrap_interval(events, events) == [0, 0], "the same scenarios are drawn for both"
    fewer = events - [[1.0, 0.0], [0.0, 0.0]] * 50
    assert bootstrap_interval(events, fewer)[0] > 0.03
    assert bootstrap_interval(np.empty((0, 2))) is None
    assert bootstrap_interval(np.zeros((3, 2))) is None


def two_cars():
    """The ground truth of two cars that stand 50 m apart, and a forecast that is equal to it."""
    true = np.zeros((2, 91, 3))
    true[1, :, 0] = 50.0
    rows = {"true": true, "size": np.tile(CAR, (2, 1)), "kind": np.zeros(2, dtype=int)}
    return GroundTruth(rows, np.empty((0, 2, 2)), 80), true[None, :, 11:]


def test_scenarios_of_a_block_are_one_draw():
    """Eight scenarios in two blocks are two coins, however many scenarios there are."""
    truth, apart = two_cars()
    scores = MotionScores()
    for number in range(8):
        scores.add(apart * (number % 2), truth, number % 2)
    assert scores.events("collision").tolist() == [[8, 8], [0, 8]]
    assert scores.result()["collision_interval"] == [0, 1]


def test_rates_above_those_of_the_model():
    """Two cars collide in the rollout of one forecast only."""
    truth, apart = two_cars()
    model, other = MotionScores(), MotionScores()
    model.add(apart, truth, 0)
    other.add(apart * 0, truth, 0)
    found = above_model(other, model)
    assert found["collision_above_model"] == [1, 1]
    assert found["off_road_above_model"] is None, "there is no edge to be beyond"


def test_tokens_are_counted_by_rank():
    usage = TokenUsage(np.tile([0.1, 0.6, 0.3], (3, 1)))
    usage.add(np.array([[[1, 1, 2, -1], [0, 0, 0, 0]]]), np.array([0, 2]))
    found = usage.result()
    assert found["vehicle"]["tokens"] == [1, 2, 3]
    assert found["vehicle"]["share"] == pytest.approx([2 / 3, 1, 1])
    assert found["cyclist"]["share"] == [0, 0, 1]
    assert found["pedestrian"]["share"] == [0, 0, 0]


def test_constant_velocity():
    true = np.full((2, 91, 3), np.nan)
    true[0, :11, 0] = 0.3 * np.arange(11)
    true[1, [5, 10], 1] = [0.0, 2.0]
    true[:, [5, 10], 2] = 0.1
    true[:, 10] = np.nan_to_num(true[:, 10])
    found = constant_velocity(true, 20)
    np.testing.assert_allclose(found[0, 0, :, 0], 3 + 0.3 * np.arange(1, 21))
    np.testing.assert_allclose(found[0, 1, :, 1], 2 + 0.4 * np.arange(1, 21))
    assert (found[..., 2] == 0.1).all()


@pytest.fixture
def dataset(motion_samples):
    return ScenarioDataset(motion_samples, ScenarioConfig(buckets=2))


def test_frequencies_count_the_tokens_of_training(dataset):
    frequency_CV = token_frequencies(dataset)
    np.testing.assert_allclose(frequency_CV.sum(axis=1), 1)
    every = [dataset.rows("agent", scenario) for scenario in dataset.scenarios("train")]
    of_class = [(rows["valid"] == 1) & (rows["kind"] == 1)[:, None] for rows in every]
    tokens = np.concatenate([rows["token"][own] for rows, own in zip(every, of_class, strict=True)])
    n = len(dataset.vocabulary.motion[1])
    expected = (np.bincount(tokens, minlength=n) + 1) / (len(tokens) + n)
    np.testing.assert_allclose(frequency_CV[1, :n], expected)


@pytest.mark.parametrize("scenarios", [2, 24, 240])
def test_shuffled_maps_are_of_other_places(dataset, monkeypatch, scenarios):
    """Scenarios of a place lie together in the file; a shuffled map must not say which one belongs here."""
    monkeypatch.setattr(dataset, "names", [str(n) for n in range(scenarios)])
    every = np.arange(scenarios)
    away = (dataset.shuffled(every) - every) % scenarios
    assert np.minimum(away, scenarios - away).min() >= max(1, scenarios // 4)
    assert (dataset.shuffled(every[::-1])[::-1] == dataset.shuffled(every)).all()
    assert scenarios == 2 or len(set(away)) > scenarios / 5


def test_scores_of_all_forecasts(dataset):
    torch.manual_seed(0)
    config = SmartConfig(hidden=8, heads=2, map_layers=1, layers=1, bands=4)
    module = SPEC.build(config, dataset).eval()
    tokens = token_scores(module, dataset, "test")
    assert tokens["all"]["tokens"] == sum(tokens[name]["tokens"] for name in CLASSES)
    assert tokens["all"]["log_loss"] > tokens["all"]["prior_log_loss"]
    found = motion_scores(module, dataset, "test", RolloutConfig(samples=2))
    some = motion_scores(module, dataset, "test", RolloutConfig(samples=2), ("model",))
    assert some == {"model": found["model"]}, "independent of the other forecasts"
    cases = found["model"]["cases"]
    scenarios = dataset.scenarios("test")
    assert cases["names"] == [dataset.names[scenario] for scenario in scenarios]
    together = np.unique(dataset.block[scenarios], return_inverse=True)[1]
    assert cases["blocks"] == together.tolist()
    errors = cases["errors"]["motion"]
    known = [x for x in errors["scene_min_ade"]["values"] if x is not None]
    assert np.mean(known) == pytest.approx(found["model"]["scene_min_ade"], rel=1e-6)
    assert errors.keys() == {"min_ade", "scene_min_ade", "collision_rate", "off_road_rate"}
    for event in ("collision", "off_road"):
        low, high = found["model"][f"{event}_interval"]
        assert low <= found["model"][f"{event}_rate"] <= high
        assert len(found["shuffled_map"][f"{event}_above_model"]) == 2
    for name in ("model", "truth"):
        shares = [one["share"][-1] for one in found[name]["token_coverage"].values()]
        assert shares == pytest.approx([1, 1, 1])
    assert found["truth"]["min_ade"] == 0
    assert max(found, key=lambda name: found[name]["realism"]) == "truth"
    assert found["constant_velocity"]["min_ade"] < found["noise"]["min_ade"]
    for score in found.values():
        assert score["min_ade"] <= score["ade"] + 1e-12
