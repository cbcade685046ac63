"""Which road users become samples: by type, by when they appear; and what training samples depend on."""

import json

import h5py
import motion_scenes
import numpy as np
import pytest
from motion_scenes import drive, read, scenario

from millrace.errors import DataError
from millrace.systems.traffic.scenarios import (
    ROWS,
    TokenConfig,
    build_vocabulary,
    read_vocabulary,
    tokenise,
)
from millrace.systems.traffic.scores import constant_velocity
from millrace.systems.traffic.tokens import HISTORY, Tokeniser
from millrace.systems.traffic.tracks import Polyline, Scenario, write_recording

CONFIG = TokenConfig(motion=64, road=16, tolerance=0.2, block=1, train=0.5, validation=0.25)


def changed(one, **fields):
    return Scenario(**{**vars(one), **fields})


def samples(base, config=CONFIG):
    """Rows of all scenarios by name and column, and what `samples.json` says."""
    build_vocabulary(base, base / "v.h5", config)
    tokenise(base, base / "v.h5", base / "s.h5", config)
    found = {}
    with h5py.File(base / "s.h5") as file:
        for i, name in enumerate(file["name"][()]):
            found[name.decode()] = {
                f"{kind}/{column}": file[kind][column][slice(*file["first"][kind][i : i + 2])]
                for kind, columns in ROWS.items()
                for column in columns
            }
    return found, json.loads((base / "samples.json").read_text())


@pytest.fixture
def base(tmp_path):
    """Four scenarios of one recording."""
    random = np.random.default_rng(0)
    write_recording(tmp_path, "place", [scenario(f"scene{i}", random) for i in range(4)])
    return tmp_path


def replace(base, old, new):
    path = base / "tracks" / "place.csv"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(("name", "kind"), [("Car", 0), ("Truck", 0), (" BUS", 0), ("Bicycle", 2)])
def test_names_of_types_are_read_whatever_their_capitals(base, name, kind):
    before = read(base)[0].kind_A.tolist()
    replace(base, ",vehicle,", f",{name},")
    assert read(base)[0].kind_A.tolist() == [kind if one == 0 else one for one in before]


@pytest.mark.parametrize("name", ["Van", "TYPE_VEHICLE", "", "vehicles"])
def test_a_type_that_is_not_known_is_refused_with_its_place(base, name):
    replace(base, ",pedestrian,", f",{name},")
    with pytest.raises(
        DataError, match=rf"place\.csv:\d+:\d+: object_type '{name}'; expected a type"
    ):
        read(base)


def test_a_track_of_two_types_is_refused(base):
    lines = (base / "tracks/place.csv").read_text().splitlines()
    lines[5] = lines[5].replace("vehicle", "cyclist")
    (base / "tracks/place.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        DataError, match=r"place\.csv:6:\d+: .*'cyclist'; expected one type for a whole"
    ):
        read(base)


def test_objects_that_are_no_road_users_are_counted(base):
    replace(base, ",pedestrian,", ",static,")
    _, account = samples(base)
    left = {"of the type 'static', no road users": 4}
    assert account["tracks"] == {"read": 20, "kept": 16, "left_out": left}


def test_the_account_says_what_became_of_each_agent_and_scenario(base):
    found, account = samples(base, CONFIG.replaced(max_agents=3))
    kept = sum(len(rows["agent/kind"]) for rows in found.values())
    assert account["agents"]["read"] == 20
    assert account["agents"]["kept"] == kept == 12
    assert sum(account["agents"]["left_out"].values()) == 8
    assert account["scenarios"] == {"read": 4, "kept": 4, "left_out": {}}


@pytest.mark.parametrize("first", [6, 7, 10])
def test_whoever_is_seen_now_is_kept_with_a_straight_past(tmp_path, first):
    random = np.random.default_rng(0)
    whole = [scenario(f"scene{i}", random) for i in range(4)]
    pose, velocity = drive(-1, -10.0, 8.0), np.tile([8.0, 0.0], (91, 1))
    for i, one in enumerate(whole):
        poses, velocities = one.pose_AT3.copy(), one.velocity_AT2.copy()
        poses[0], velocities[0] = pose, velocity
        whole[i] = changed(one, pose_AT3=poses, velocity_AT2=velocities)
    late = []
    for one in whole:
        poses = one.pose_AT3.copy()
        poses[0, :first] = np.nan
        late.append(changed(one, pose_AT3=poses))
    for folder, scenarios in (("whole", whole), ("late", late)):
        write_recording(tmp_path / folder, "place", scenarios)
    expected, found = samples(tmp_path / "whole")[0], samples(tmp_path / "late")[0]
    for name, rows in found.items():
        assert len(rows["agent/kind"]) == len(expected[name]["agent/kind"])
        # A vehicle that drives straight on has the same last token, wherever it was seen first.
        assert rows["agent/valid"][0].tolist()[: HISTORY - 1] == [0] * (HISTORY - 1)
        assert rows["agent/valid"][0, HISTORY - 1 :].all()
        end = rows["agent/pose"][0, HISTORY - 1]
        np.testing.assert_allclose(end, expected[name]["agent/pose"][0, HISTORY - 1], atol=0.3)
        true = rows["agent/true"][0, : first + 1, 0]
        assert np.isnan(true[:-1]).all(), "the truth is as recorded"
        assert np.isfinite(true[-1])


def test_others_are_tokenised_as_if_all_had_a_past(motion_samples, motion_tracks):
    tokeniser = Tokeniser(read_vocabulary(motion_samples.with_name("vocabulary.h5")))
    one = read(motion_tracks)[0]
    pose = one.pose_AT3.copy()
    pose[1, :8] = np.nan
    before, after = next(tokeniser([one])), next(tokeniser([changed(one, pose_AT3=pose)]))
    for column in ("token_AK", "pose_AK3", "valid_AK"):
        was, now = getattr(before, column), getattr(after, column)
        np.testing.assert_array_equal(np.delete(was, 1, axis=0), np.delete(now, 1, axis=0))


def test_constant_velocity_of_an_agent_seen_once_is_that_of_its_token():
    true = np.full((1, 91, 3), np.nan)
    true[0, 10] = [5.0, 1.0, 0.0]
    found = constant_velocity(true, 10, np.array([[4.0, 0.0]]))
    np.testing.assert_allclose(found[0, 0, -1], [9.0, 1.0, 0.0])
    np.testing.assert_allclose(constant_velocity(true, 10)[0, 0, -1], true[0, 10])


def write_places(base, config, change=lambda one: one):
    """A recording for each scenario, each with a map of its own; ``change`` those not for training."""
    random = np.random.default_rng(3)
    for number in range(8):
        one = scenario(f"place{number}", random, lines=motion_scenes.road(0.001 * number))
        one = changed(one, lights={})
        if config.split(one.name) != 0:
            one = change(one)
        write_recording(base, one.name, [one])


def test_validation_and_test_recordings_change_no_training_sample(tmp_path):
    def other(one):
        circle = 30 * np.column_stack([np.cos(motion_scenes.TIME), np.sin(motion_scenes.TIME)])
        pose = one.pose_AT3.copy()
        pose[..., 2] += 0.1 * np.sin(3 * motion_scenes.TIME)
        road = (*one.road, Polyline("round", "lane", circle))
        return changed(one, pose_AT3=pose, road=road, kind_A=np.zeros_like(one.kind_A))

    made = {}
    for folder, change in (("one", lambda one: one), ("two", other)):
        write_places(tmp_path / folder, CONFIG, change)
        rows, _ = samples(tmp_path / folder)
        vocabulary = read_vocabulary(tmp_path / folder / "v.h5")
        made[folder] = rows, vocabulary
    (one, words), (two, same_words) = made.values()
    assert words.digest == same_words.digest
    trained = [name for name in one if CONFIG.split(name) == 0]
    assert 2 < len(trained) < len(one)
    for name in one:
        same = [np.array_equal(one[name][c], two[name][c], equal_nan=True) for c in one[name]]
        assert all(same) == (name in trained), name


def test_maps_that_only_others_use_give_no_road_tokens(tmp_path):
    write_places(tmp_path / "all", CONFIG)
    write_places(tmp_path / "train", CONFIG)
    for path in (tmp_path / "train").rglob("*.csv"):
        if CONFIG.split(path.stem) != 0:
            path.unlink()
    one, other = (
        build_vocabulary(tmp_path / f, tmp_path / f"{f}.h5", CONFIG) for f in ("all", "train")
    )
    np.testing.assert_array_equal(one.road, other.road)
    assert one.digest == other.digest


def test_without_a_training_scenario_there_is_no_vocabulary(tmp_path):
    names = [f"place{number}" for number in range(40)]
    name = next(name for name in names if CONFIG.split(name) == 2)
    write_recording(tmp_path, name, [scenario(name, np.random.default_rng(0))])
    with pytest.raises(DataError, match="no scenario is in the training split; expected more"):
        build_vocabulary(tmp_path, tmp_path / "v.h5", CONFIG)


def test_one_name_in_two_files_is_refused_with_both(base):
    write_recording(base, "elsewhere", [scenario("scene1", np.random.default_rng(1))])
    build_vocabulary(base, base / "v.h5", CONFIG)
    told = r"place\.csv: scenario 'scene1' is in .*elsewhere\.csv, too"
    with pytest.raises(DataError, match=told):
        tokenise(base, base / "v.h5", base / "s.h5", CONFIG)
