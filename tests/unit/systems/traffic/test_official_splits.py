"""What Waymo, Argoverse 2 and others say is training, validation and test is used as such, if asked for."""

import json
from pathlib import Path
from zlib import crc32

import h5py
import numpy as np
import pandas as pd
import pytest
from motion_scenes import record, scenario, waymo

from millrace.data.split import SPLITS
from millrace.errors import DataError
from millrace.systems.traffic.formats.waymo import message
from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary, tokenise
from millrace.systems.traffic.splits import named_split
from millrace.systems.traffic.tracks import write_recording

OFFICIAL = TokenConfig(motion=16, road=8, tolerance=0.2, splits="official")
PLACES = {
    "uncompressed/scenario/training/uncompressed_scenario_training_training.tfrecord-00000-of-01000": 6,
    "uncompressed/scenario/training_20s/training_20s.tfrecord-00000-of-01000": 2,
    "uncompressed/scenario/validation/validation.tfrecord-00000-of-00150": 12,
    "uncompressed/scenario/testing/testing.tfrecord-00000-of-00150": 4,
}


@pytest.mark.parametrize(
    ("path", "split"),
    [(path, "training" if "training" in path else None) for path in list(PLACES)[:2]]
    + [
        ("validation_interactive/validation_interactive.tfrecord-00007-of-00150", "validation"),
        ("testing.tfrecord-00000-of-00150", "test"),
        ("train/0000b0f9-99f9-4a1f-a231-5be9e4c523f7/scenario_0000b0f9.parquet", "training"),
        ("val/0a/scenario_0a.parquet", "validation"),
        ("test/0a/scenario_0a.parquet", "test"),
        ("val/DR_USA_Intersection_MA_val.csv", "validation"),
        ("validation/training.tfrecord-00000-of-01000", None),
        ("latest/contest/01_tracks.csv", None),
        ("a.tfrecord", None),
    ],
)
def test_folders_and_names_of_files_say_the_split(path, split):
    assert named_split(Path(path)) == split


def write_waymo(base, places=PLACES, test_steps=11):
    """Files as in the bucket of Waymo, 11 states in the test set; returns the names of each file."""
    names = {}
    for path, number in places.items():
        steps = test_steps if "testing" in path else 91
        names[path] = [
            f"{crc32(path.encode()) & 0xFFFF:04x}{n:02d}{Path(path).name[:4]}"
            for n in range(number)
        ]
        scenarios = [
            waymo(name, 1 + 0.01 * n, steps, 1, steps) for n, name in enumerate(names[path])
        ]
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_bytes(b"".join(map(record, scenarios)))
    return names


def splits(base, config, raw="waymo"):
    """Split of each scenario of a directory, as it is trained on."""
    build_vocabulary(base, base.parent / "v.h5", config, raw=raw)
    tokenise(base, base.parent / "v.h5", base.parent / "s.h5", config, raw=raw)
    with h5py.File(base.parent / "s.h5") as file:
        numbers = zip(file["name"][()], file["split"][()], strict=True)
        return {name.decode(): SPLITS[number] for name, number in numbers}


def test_the_split_of_waymo_is_used_and_its_test_set_without_futures_counted(tmp_path):
    names = write_waymo(tmp_path / "raw")
    found = splits(tmp_path / "raw", OFFICIAL)
    account = json.loads((tmp_path / "samples.json").read_text())["scenarios"]
    reason = "of a test set, whose futures are not published"
    assert account == {"read": 24, "kept": 20, "left_out": {reason: 4}}
    training, more, validation, _ = names.values()
    assert {name for name, split in found.items() if split == "train"} == {*training, *more}
    rest = [found[name] for name in validation]
    assert {*rest} == {"validation", "test"}, "official validation is all that can be scored"
    account = json.loads((tmp_path / "samples.json").read_text())
    assert account["scenarios for train"]["kept"] == 8


def test_an_official_test_set_with_futures_is_the_test_set(tmp_path):
    names = write_waymo(tmp_path / "raw", test_steps=91)
    found = splits(tmp_path / "raw", OFFICIAL)
    *_, validation, test = names.values()
    assert {found[name] for name in validation} == {"validation"}
    assert {found[name] for name in test} == {"test"}
    assert len(found) == 24


def test_without_the_key_scenarios_are_split_by_name_as_before(tmp_path, capsys):
    write_waymo(tmp_path / "raw")
    config = OFFICIAL.replaced(splits="by_name")
    found = splits(tmp_path / "raw", config)
    assert found == {name: SPLITS[config.split(name)] for name in found}
    assert "set tokens.splits to official" in capsys.readouterr().out
    with h5py.File(tmp_path / "s.h5") as file:
        assert "splits" not in json.loads(file.attrs["config"])


def test_validation_scenarios_do_not_reach_the_vocabulary(tmp_path):
    names = write_waymo(tmp_path / "raw")
    one = build_vocabulary(tmp_path / "raw", tmp_path / "v.h5", OFFICIAL, raw="waymo")
    (path,) = [path for path in PLACES if path.endswith("00150") and "validation" in path]
    moving = []
    for name in names[path]:
        scenario = message("Scenario")
        scenario.ParseFromString(waymo(name))
        for t, state in enumerate(scenario.tracks[0].states):
            state.center_x += 0.05 * t
        moving.append(record(scenario.SerializeToString()))
    (tmp_path / "raw" / path).write_bytes(b"".join(moving))
    other = build_vocabulary(tmp_path / "raw", tmp_path / "w.h5", OFFICIAL, raw="waymo")
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ({"a.tfrecord": 3}, r"raw: nothing says what is training, and tokens\.splits is official"),
        ({"training/a.tfrecord": 3}, r"raw: no scenario is official validation"),
        (
            {
                "training/a.tfrecord": 3,
                "validation/b.tfrecord": 2,
                "validation/training.tfrecord": 1,
            },
            r"training\.tfrecord: scenario '.*trai' is in no split; .* contradict each other",
        ),
    ],
)
def test_data_that_do_not_say_their_split_are_refused(tmp_path, places, told):
    write_waymo(tmp_path / "raw", places)
    with pytest.raises(DataError, match=told):
        splits(tmp_path / "raw", OFFICIAL)


def test_a_table_of_splits_beside_tracks_is_checked(tmp_path):
    random = np.random.default_rng(0)
    names = [f"scene{n}" for n in range(5)]
    scenes = [scenario(name, random) for name in names]
    write_recording(tmp_path / "tracks", "place", scenes)
    path = tmp_path / "tracks/splits.csv"
    said = ["training"] * 3 + ["validation"] * 2
    pd.DataFrame({"scenario_id": names, "split": said}).to_csv(path, index=False)
    found = splits(tmp_path / "tracks", OFFICIAL, "tracks")
    assert [one for one, split in found.items() if split == "train"] == names[:3]
    text = path.read_text()
    path.write_text(text.replace("validation", "dev"))
    with pytest.raises(
        DataError, match=r"splits\.csv:5:\d+: split 'dev'; expected one of training, "
    ):
        splits(tmp_path / "tracks", OFFICIAL, "tracks")
    path.write_text(f"{text}scene0,test\n")
    with pytest.raises(DataError, match="scenario_id 'scene0'; expected each scenario only once"):
        splits(tmp_path / "tracks", OFFICIAL, "tracks")


def write_argoverse(folder, steps):
    """A scenario as Argoverse 2 has it: 110 steps, in the test set the 50 that are observed."""
    folder.mkdir(parents=True)
    name, step = folder.name, np.arange(steps)
    track = {"track_id": "AV", "object_type": "vehicle", "timestep": step, "position_x": 0.5 * step}
    track |= {"position_y": 2.0, "heading": 0.0, "velocity_x": 5.0, "velocity_y": 0.0}
    track |= {"observed": step < 50, "object_category": 1, "scenario_id": name, "city": "austin"}
    pd.DataFrame(track).to_parquet(folder / f"scenario_{name}.parquet")
    sides = {
        f"{side}_lane_boundary": [{"x": x, "y": y, "z": 0.0} for x in (0.0, 90.0)]
        for side, y in (("left", 4.0), ("right", 0.0))
    }
    content = {"lane_segments": {"1": sides}, "pedestrian_crossings": {}, "drivable_areas": {}}
    (folder / f"log_map_archive_{name}.json").write_text(json.dumps(content))


def test_the_split_of_argoverse_is_used_and_its_test_set_without_futures_counted(tmp_path):
    pytest.importorskip("pyarrow")
    for split, number, steps in (("train", 3, 110), ("val", 12, 110), ("test", 2, 50)):
        for n in range(number):
            write_argoverse(tmp_path / f"raw/{split}/{n:02d}-{split}", steps)
    found = splits(tmp_path / "raw", OFFICIAL, "argoverse2")
    account = json.loads((tmp_path / "samples.json").read_text())["scenarios"]
    assert (account["kept"], sum(account["left_out"].values())) == (15, 2)
    assert {name for name, split in found.items() if split == "train"} == {
        f"{n:02d}-train" for n in range(3)
    }
    assert {split for name, split in found.items() if "val" in name} == {"validation", "test"}
