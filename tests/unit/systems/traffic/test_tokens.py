"""Tokenisation of scenarios, and the vocabularies that it uses."""

import itertools

import h5py
import motion_scenes
import numpy as np
import pytest

from millrace.errors import DataError
from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.geometry import global_poses, local_poses
from millrace.systems.traffic.scenarios import (
    TokenConfig,
    build_vocabulary,
    read_vocabulary,
    tokenise,
)
from millrace.systems.traffic.tokens import HISTORY, STRIDE, TOKENS, Tokeniser, road_segments
from millrace.systems.traffic.tracks import CLASSES, Scenario, write_recording
from millrace.systems.traffic.vocabulary import BOXES, Vocabulary, corners, k_disks


@pytest.fixture(scope="module")
def vocabulary(motion_samples):
    return read_vocabulary(motion_samples.with_name("vocabulary.h5"))


@pytest.fixture(scope="module")
def scenarios(motion_tracks):
    return motion_scenes.read(motion_tracks)


def random_vocabulary(sizes=(2048, 300, 400), seed=0):
    random = np.random.default_rng(seed)
    spread = ([4.0, 0.4, 0.15], [0.7, 0.3, 0.5], [2.5, 0.3, 0.25])
    motion = []
    for size, scale in zip(sizes, spread, strict=True):
        end = random.normal(0, 1, (size, 3)) * scale
        motion.append(np.linspace(0, 1, 6)[:, None] * end[:, None])
    return Vocabulary(tuple(motion), np.zeros((1, 3, 2)), {})


def brute_force(vocabulary, pose_AT3, kind):
    """Every token against every true box, in float64."""
    tokens = np.zeros((len(pose_AT3), TOKENS), dtype=int)
    for a, pose in enumerate(pose_AT3):
        frame = None
        for k in range(TOKENS):
            begin, end = pose[k * STRIDE], pose[(k + 1) * STRIDE]
            if not (np.isfinite(begin).all() and np.isfinite(end).all()):
                frame = None
                continue
            frame = begin if frame is None else frame
            ends = global_poses(vocabulary.motion[kind][:, -1], frame[None])
            apart = np.linalg.norm(corners(ends, kind) - corners(end, kind), axis=-1).mean(axis=1)
            tokens[a, k] = np.argmin(apart)
            frame = ends[tokens[a, k]]
    return tokens


def test_frames_are_inverse():
    random = np.random.default_rng(0)
    pose, frame = random.normal(0, 3, (2, 50, 3))
    back = global_poses(local_poses(pose, frame), frame)
    np.testing.assert_allclose(back[:, :2], pose[:, :2], atol=1e-12)
    np.testing.assert_allclose(np.cos(back[:, 2] - pose[:, 2]), 1, atol=1e-12)


@pytest.mark.parametrize("kind", range(3))
def test_match_equals_brute_force(scenarios, kind):
    vocabulary = random_vocabulary()
    pose = np.concatenate([s.pose_AT3[s.kind_A == kind] for s in scenarios])
    token, _, valid = Tokeniser(vocabulary).match(pose, kind)
    oracle = brute_force(vocabulary, pose, kind)
    first = np.argmax(valid, axis=1)
    rows = np.flatnonzero(valid.any(axis=1))
    assert len(rows) >= 10
    assert np.mean(token[rows, first[rows]] == oracle[rows, first[rows]]) >= 0.995
    assert np.mean(token[valid] == oracle[valid]) >= 0.995


def test_the_bound_of_candidates_is_needed_and_holds():
    """Far from all tokens the k-d tree's order is not that of the corners."""
    vocabulary = random_vocabulary((500, 10, 10))
    pose = np.random.default_rng(1).uniform([-20, -20, -3], [20, 20, 3], (2000, 3))
    end = vocabulary.motion[0][:, -1]
    apart = np.linalg.norm(corners(pose, 0)[:, None] - corners(end, 0), axis=-1).mean(axis=-1)
    found = Tokeniser(vocabulary).nearest(pose, 0)
    np.testing.assert_allclose(apart[np.arange(2000), found], apart.min(axis=1), atol=1e-12)


def test_corners_of_a_box():
    found = corners(np.array([1.0, 2.0, np.pi / 2]), 0)
    expected = [[0, 4.4], [2, 4.4], [2, -0.4], [0, -0.4]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_vocabulary_is_symmetric_without_duplicates(vocabulary):
    vocabulary.check()
    for kind, tokens in enumerate(vocabulary.motion):
        assert len(tokens) > 1
        assert np.abs(tokens[:, -1]).sum(axis=1).argmin() == 0, "the slowest comes first"
        boxes = corners(tokens[:, -1], kind)
        apart = np.linalg.norm(boxes[:, None] - boxes, axis=-1).mean(axis=-1)
        assert apart[~np.eye(len(tokens), dtype=bool)].min() > 1e-3


def test_a_wrong_vocabulary_is_refused(vocabulary):
    moved = vocabulary.motion[0].copy()
    moved[1, -1, 1] += 0.3
    with pytest.raises(DataError, match="vehicle: not symmetric"):
        Vocabulary((moved, *vocabulary.motion[1:]), vocabulary.road, {}).check()
    twice = np.concatenate([vocabulary.road, vocabulary.road[:1]])
    with pytest.raises(DataError, match="road: two tokens are the same"):
        Vocabulary(vocabulary.motion, twice, {}).check()


def test_headings_are_averaged_on_the_circle():
    segments = np.zeros((2, 6, 3))
    segments[:, -1, 0] = 3.0
    segments[:, :, 2] = np.array([[np.pi - 0.01], [-np.pi + 0.01]])
    segments[:, 0, 2] = 0
    tokens, _ = k_disks(segments, 0, 10, 0.05, np.random.default_rng(0))
    assert np.abs(np.cos(tokens[:, -1, 2]) + 1).max() < 1e-3


def test_vocabulary_covers_within_the_tolerance():
    random = np.random.default_rng(3)
    end = random.uniform([0, -0.2, -0.1], [3, 0.2, 0.1], (4000, 3))
    segments = np.linspace(0, 1, 6)[:, None] * end[:, None]
    tokens, coverage = k_disks(segments, 0, 4000, 0.1, random)
    assert coverage.absorbed == 1.0
    assert coverage.mean < 0.1
    mirrored = tokens * [1, -1, -1]
    apart = np.abs(tokens[:, None, -1] - mirrored[:, -1]).max(axis=-1)
    assert apart.min(axis=0).max() < 1e-9, "every token has its mirror image"
    assert apart.diagonal().max() > 0.1, "and most are not their own"
    assert len(tokens) < 4000
    few, poor = k_disks(segments, 0, 20, 0.1, random)
    assert len(few) <= 20
    assert poor.absorbed < 0.5
    assert poor.mean > coverage.mean


def test_round_trip_of_scenarios_of_all_splits(motion_tracks, tmp_path):
    config = TokenConfig(train=0.5, validation=0.2)
    vocabulary = build_vocabulary(motion_tracks, tmp_path / "v.h5", config)
    tokenise(motion_tracks, tmp_path / "v.h5", tmp_path / "s.h5", config)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["vocabulary"].attrs["digest"] == vocabulary.digest
        true, pose = file["agent/true"][()].astype(float), file["agent/pose"][()].astype(float)
        valid, kind = file["agent/valid"][()].astype(bool), file["agent/kind"][()]
    for c in range(len(CLASSES)):
        own = kind == c
        error = corners(pose[own], c) - corners(true[own][:, STRIDE::STRIDE], c)
        error = np.linalg.norm(error, axis=-1).mean(axis=-1)[valid[own]]
        assert len(error) > 50
        # Twelve scenarios hold little motion, but errors must not add up along a track.
        assert error.mean() < 0.12
        assert np.median(error) < 0.06


def test_scenarios_have_the_same_tokens_together_and_one_by_one(vocabulary, scenarios):
    tokeniser = Tokeniser(vocabulary)
    for together, scenario in zip(tokeniser(scenarios), scenarios, strict=True):
        (alone,) = tokeniser([scenario])
        for name, value in vars(together).items():
            np.testing.assert_array_equal(value, getattr(alone, name), err_msg=name)


def test_later_steps_change_no_token_of_the_history(vocabulary, scenarios):
    scenario = scenarios[0]
    pose = scenario.pose_AT3.copy()
    pose[:, 11:] = np.nan
    other = type(scenario)(**{**vars(scenario), "pose_AT3": pose})
    one, two = (next(Tokeniser(vocabulary, margin=1.0)([s])) for s in (scenario, other))
    np.testing.assert_array_equal(one.token_AK[:, :HISTORY], two.token_AK[:, :HISTORY])
    np.testing.assert_array_equal(one.point_M32, two.point_M32)
    assert not np.array_equal(one.token_AK, two.token_AK)


def test_there_is_no_token_across_a_gap(vocabulary, scenarios):
    found = next(Tokeniser(vocabulary)(scenarios))
    lost = found.track_A.index("track2")
    assert not found.valid_AK[lost, 7:10].any()
    assert found.valid_AK[lost, [6, 11]].all()


def test_road_segments_are_equal_and_short(scenarios):
    lines = scenarios[0].road
    segments = road_segments(lines)
    length = np.linalg.norm(np.diff(segments.point_M32, axis=1), axis=2).sum(axis=1)
    assert length.max() <= 5.0 + 1e-9
    for number, line in enumerate(lines):
        whole = np.linalg.norm(np.diff(line.points_P2, axis=0), axis=1).sum()
        assert length[segments.line_M == number].sum() == pytest.approx(whole, rel=1e-3)


def test_boxes_of_the_classes():
    np.testing.assert_array_equal(BOXES, [[4.8, 2.0], [2.0, 1.0], [1.0, 1.0]])


def test_consecutive_scenarios_are_in_one_split():
    """Between scenarios of different splits there is always one that is left out."""
    config = TokenConfig(block=5)
    for town in range(6):
        splits = [config.split(f"town{town:02d}_{n:03d}") for n in range(400)]
        for one, other in itertools.pairwise(splits):
            assert one == other or None in (one, other)
        kept = [s for s in splits if s is not None]
        assert len(kept) > 0.85 * len(splits)
        shares = np.bincount(kept) / len(kept)
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.04)
        # Few blocks are spread evenly too: a town of 40 scenarios has all splits.
        assert set(splits[:40]) == {0, 1, 2, None}


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (1, ["town_007", "town_008", "town_009", "town_010"]),
        (5, ["0a1b", "f3c2", "town_x7", "town_²"]),
    ],
)
def test_scenarios_that_do_not_follow_each_other_are_split_one_by_one(block, names):
    config = TokenConfig(block=block)
    assert [config.block_of(name) for name in names] == [(name, 0) for name in names]
    many = [config.split(f"{names[0]}x{n}") for n in range(2000)]
    assert np.bincount(many) / 2000 == pytest.approx([0.7, 0.15, 0.15], abs=0.03)


def test_scenarios_without_a_split_are_not_written(scenarios, tmp_path):
    every = [f"town_{number:02d}" for number in range(len(scenarios))]
    named = [Scenario(**{**vars(s), "name": n}) for s, n in zip(scenarios, every, strict=True)]
    write_recording(tmp_path / "tracks", "town", named)
    config = TokenConfig(motion=64, road=16, tolerance=0.2, block=3)
    build_vocabulary(tmp_path / "tracks", tmp_path / "v.h5", config)
    written = tokenise(tmp_path / "tracks", tmp_path / "v.h5", tmp_path / "s.h5", config)
    with h5py.File(tmp_path / "s.h5") as file:
        kept = {n.decode(): s for n, s in zip(file["name"][()], file["split"][()], strict=True)}
    assert kept == {n: config.split(n) for n in every if config.split(n) is not None}
    assert written == len(kept) < len(every)
    blocks = ScenarioDataset(tmp_path / "s.h5").block
    numbers = [int(name[-2:]) // 3 for name in kept]
    assert [b == blocks[0] for b in blocks] == [n == numbers[0] for n in numbers]
    assert len(set(blocks)) == len(set(numbers))
