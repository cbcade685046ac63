"""Traffic in parts: the same vocabularies and scenarios, bit by bit, whatever their number."""

import tracemalloc

import h5py
import motion_scenes
import numpy as np
import pytest
from motion_scenes import record, waymo

from millrace.data.hdf5 import open_checked
from millrace.data.shares import Share
from millrace.errors import DataError
from millrace.systems.traffic import motion_sample, scenarios
from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.formats import Traffic
from millrace.systems.traffic.scenario_file import SCHEMA
from millrace.systems.traffic.scenarios import (
    VOCABULARY_SCHEMA,
    TokenConfig,
    build_vocabulary,
    gather_scenarios,
    gather_vocabulary,
    sample_motion,
    tokenise,
    tokenise_part,
)

CONFIG = TokenConfig(motion=64, road=16, tolerance=0.2, train=0.6, validation=0.2, block=1)
OFFICIAL = CONFIG.replaced(splits="official")


def write_tracks(base):
    motion_scenes.write(base)
    for place in range(2, 7):
        random = np.random.default_rng(place)
        lines = motion_scenes.road(0.001 * place)
        names = [f"place{place}_{n:02d}" for n in range(3)]
        scenes = [motion_scenes.scenario(name, random, 3, lines) for name in names]
        motion_scenes.write_recording(base, f"place{place}", scenes)


def write_waymo(base):
    """Official sets, that of test with futures in its last file alone."""
    for split, files, steps in (("training", 4, 91), ("validation", 2, 91), ("testing", 3, 11)):
        for n in range(files):
            path = base / split / f"{split}.tfrecord-{n:05d}-of-{files:05d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            long = 91 if (split, n) == ("testing", 2) else steps
            names = [f"{split[:4]}{n}{i}" for i in range(3)]
            made = (waymo(name, 1 + 0.01 * i, long, 1, long) for i, name in enumerate(names))
            path.write_bytes(b"".join(map(record, made)))


CASES = {"tracks": (write_tracks, CONFIG), "waymo": (write_waymo, OFFICIAL)}


@pytest.fixture(scope="module", params=CASES)
def raw(request, tmp_path_factory):
    """(directory, its format, configuration)."""
    write, config = CASES[request.param]
    base = tmp_path_factory.mktemp(request.param)
    write(base)
    return base, request.param, config


def whole(raw, folder):
    base, name, config = raw
    folder.mkdir()
    build_vocabulary(base, folder / "vocabulary.h5", config, raw=name)
    tokenise(base, folder / "vocabulary.h5", folder / "scenarios.h5", config, raw=name)
    return folder


def in_parts(raw, folder, parts):
    base, name, config = raw
    (folder / "parts").mkdir(parents=True)
    motion, scenarios = (
        [folder / f"parts/{stem}_{n}.h5" for n in range(parts)] for stem in ("motion", "scenarios")
    )
    for n in reversed(range(parts)):
        sample_motion(base, motion[n], config, Share(n, parts), raw=name)
    vocabulary = folder / "vocabulary.h5"
    gather_vocabulary(motion, base, vocabulary, config, raw=name)
    for n in reversed(range(parts)):
        tokenise_part(base, vocabulary, scenarios[n], config, Share(n, parts), raw=name)
    gather_scenarios(scenarios, base, vocabulary, folder / "scenarios.h5", config, raw=name)
    return folder


def content(path, schema):
    """Bytes of all datasets, and the attributes."""
    with open_checked(path, schema) as file:
        found = {}

        def note(name, one):
            if isinstance(one, h5py.Dataset):
                values = one[()]
                found[name] = values.tolist() if values.dtype == object else values.tobytes()

        file.visititems(note)
        return found | {
            name: str(value) for name, value in file.attrs.items() if name[:4] != "part"
        }


def assert_same(one, other):
    for name, schema in (("vocabulary", VOCABULARY_SCHEMA), ("scenarios", SCHEMA)):
        assert content(one / f"{name}.h5", schema) == content(other / f"{name}.h5", schema)
    assert (one / "samples.json").read_bytes() == (other / "samples.json").read_bytes()


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_parts_do_not_show(raw, tmp_path, parts):
    assert_same(whole(raw, tmp_path / "whole"), in_parts(raw, tmp_path / "parted", parts))


@pytest.mark.parametrize(("scenarios", "segments"), [(4, 10**6), (5, 200)])
def test_what_vocabularies_are_made_of_is_bounded_and_does_not_depend_on_parts(
    raw, tmp_path, monkeypatch, scenarios, segments
):
    monkeypatch.setattr(motion_sample, "MOST_SCENARIOS", scenarios)
    monkeypatch.setattr(motion_sample, "MOST_SEGMENTS", segments)
    one = whole(raw, tmp_path / "whole")
    for parts in (2, 5):
        assert_same(one, in_parts(raw, tmp_path / f"in{parts}", parts))
    with h5py.File(tmp_path / "in2/parts/motion_0.h5") as file:
        taken = len(file["sample/place"])
        assert 0 < taken <= scenarios
        for name in ("vehicle", "pedestrian", "cyclist"):
            assert len(file["sample"][name]["value"]) <= segments // taken * taken


def test_of_parts_no_more_is_in_memory_than_is_taken(tmp_path, monkeypatch):
    write_waymo(tmp_path)
    sample_motion(tmp_path, tmp_path / "motion.h5", CONFIG, Share(), raw="waymo")
    monkeypatch.setattr(motion_sample, "MOST_SCENARIOS", 10)
    held = []
    with h5py.File(tmp_path / "motion.h5", "r+") as file:
        size = sum(file[f"sample/{kind}/value"].nbytes for kind in ("vehicle", "pedestrian"))
        sample = motion_sample.MotionSample(0)
        tracemalloc.start()
        for number in range(12):
            names = [f"{number}_{n}" for n in range(len(file["sample/name"]))]
            file["sample/name"][...] = names
            sample.merge(file["sample"], range(100 * number, 100 * number + 9))
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        sample.write(file.create_group("merged"))
        assert len(set(file["merged/place"][:, 0] // 100)) > 3, "of many parts"
    assert max(held) < 2 * size


def test_of_many_segments_a_random_choice_makes_the_vocabulary(raw, tmp_path, monkeypatch):
    every = []
    segments, k_disks = motion_sample.MotionSample.segments, scenarios.k_disks

    def noted(sample):
        every.extend(np.concatenate(parts) for parts in segments(sample))
        return segments(sample)

    def checked(found, kind, size, tolerance, random):
        if len(every[kind]) > 20:
            chosen = same.permutation(len(every[kind]))[:20]
            assert np.array_equal(found, every[kind][chosen])
        made = k_disks(found, kind, size, tolerance, random)
        same.bit_generator.state = random.bit_generator.state
        return made

    source, kind, config = raw
    same = np.random.default_rng(config.seed)
    monkeypatch.setattr(scenarios, "SEGMENTS", 20)
    monkeypatch.setattr(motion_sample.MotionSample, "segments", noted)
    monkeypatch.setattr(scenarios, "k_disks", checked)
    build_vocabulary(source, tmp_path / "vocabulary.h5", config, raw=kind)
    assert max(map(len, every)) > 100


def test_batches_come_from_the_parts(raw, tmp_path):
    folder = in_parts(raw, tmp_path / "made", 3)
    folder.rename(tmp_path / "moved")
    for cache in (0, 1 << 30):
        one = ScenarioDataset(whole(raw, tmp_path / f"whole{cache}") / "scenarios.h5")
        other = ScenarioDataset(tmp_path / "moved/scenarios.h5", cache_bytes=cache)
        batch, same = (data.gather(data.scenarios("train")) for data in (one, other))
        assert np.array_equal(batch.token_BAK, same.token_BAK)
        assert np.array_equal(batch.road_pose_BM3, same.road_pose_BM3)


def test_a_scenario_in_two_parts_is_refused_with_both_files(tmp_path):
    (tmp_path / "raw").mkdir()
    for name in "ab":
        made = b"".join(record(waymo(one)) for one in ("same", name))
        (tmp_path / f"raw/{name}.tfrecord").write_bytes(made)
    told = r"b\.tfrecord: scenario 'same' is in .*a\.tfrecord, too; expected different names"
    raw = tmp_path / "raw", "waymo", CONFIG.replaced(train=0.98, validation=0.01)
    with pytest.raises(DataError, match=told):
        in_parts(raw, tmp_path / "x", 2)
    assert not (tmp_path / "x/scenarios.h5").exists()


def test_scenarios_that_are_not_wanted_are_not_read(tmp_path, monkeypatch):
    """Of hundreds of thousands of records some thousands make the vocabularies."""
    write_waymo(tmp_path)
    read, module = [], "millrace.systems.traffic.formats.waymo.read_scenario"
    from millrace.systems.traffic.formats import waymo as reader

    full = reader.read_scenario
    monkeypatch.setattr(module, lambda *given: read.append(given) or full(*given))
    monkeypatch.setattr(motion_sample, "MOST_SCENARIOS", 2)
    build_vocabulary(tmp_path, tmp_path / "v.h5", CONFIG, raw="waymo")
    assert 2 <= len(read) < 18
    assert len(Traffic("waymo", tmp_path).files) == 9


def test_parts_that_are_not_all_are_refused(raw, tmp_path):
    folder, (base, name, config) = in_parts(raw, tmp_path / "made", 3), raw
    output = tmp_path / "scenarios.h5"
    motion, scenarios = (
        [folder / f"parts/{stem}_{n}.h5" for n in range(3)] for stem in ("motion", "scenarios")
    )
    told = "its parts do not hold what the raw files do, such as "
    for files in (scenarios[:2], scenarios[1:]):
        with pytest.raises(DataError, match=told):
            gather_scenarios(files, base, folder / "vocabulary.h5", output, config, raw=name)
    with pytest.raises(DataError, match=told):
        gather_vocabulary(motion[:2], base, tmp_path / "v.h5", config, raw=name)
    assert not output.exists()


def test_parts_of_another_vocabulary_are_refused(tmp_path):
    base = tmp_path / "raw"
    write_tracks(base)
    folder = in_parts((base, "tracks", CONFIG), tmp_path / "made", 2)
    build_vocabulary(base, tmp_path / "other.h5", CONFIG.replaced(motion=8))
    scenarios, output = [folder / f"parts/scenarios_{n}.h5" for n in range(2)], tmp_path / "s.h5"
    with pytest.raises(DataError, match=r"of other raw files or settings \(vocabulary\)"):
        gather_scenarios(scenarios, base, tmp_path / "other.h5", output, CONFIG)
    assert not output.exists()
