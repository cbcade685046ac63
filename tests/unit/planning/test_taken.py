"""What jobs on raw files took, beside what their sizes said."""

import pytest

from millrace.planning.taken import taken
from millrace.systems.registry import systems


def measure(root, name, seconds, megabytes):
    """Write what Snakemake writes of a job."""
    path = root / f"benchmarks/{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"s": 9 * seconds, "max_rss": megabytes, "cpu_time": seconds}
    path.write_text("\t".join(row) + "\n" + "\t".join(map(str, row.values())) + "\n")


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.nc").write_bytes(b"0" * 4_000_000)
    return folder


def test_jobs_of_parts_are_summed_and_the_largest_counts_for_memory(tmp_path, raw):
    for part, seconds in enumerate((10.0, 20.0)):
        measure(tmp_path, f"extract_part/globe/weather_{part}", seconds, 512 * (part + 1))
    [one] = taken({"globe": (raw, range(2))}, tmp_path / "benchmarks")
    cost = systems()["weather"].costs["extract_weather"]
    assert (one.dataset, one.job, one.jobs, one.raw_gb) == ("globe", "extract_weather", 2, 0.004)
    assert (one.seconds, one.memory_gb) == (pytest.approx(30), 1.0)
    start = (one.seconds_expected - 0.004 * cost.seconds) / 2
    assert 1 < start < 10  # of each job


def test_the_settings_of_a_dataset_decide_what_is_expected(tmp_path, raw):
    measure(tmp_path, "extract_samples/globe/weather", 5.0, 100)
    sections = {"globe": {"compress": {"keep_bits": 10}}, "other": {}}
    found = [
        taken({"globe": (raw, [0])}, tmp_path / "benchmarks", given)[0] for given in ({}, sections)
    ]
    more = found[1].seconds_expected - found[0].seconds_expected
    assert more == pytest.approx((5 + 0.7 * 10) * 0.004)


def test_what_was_measured_with_other_parts_does_not_count(tmp_path, raw):
    for name in ("sample_motion/town/0", "sample_motion/town/1", "tokenise_part/town/2"):
        measure(tmp_path, name, 5.0, 100)
    for name in ("tokenise/town", "build_vocabulary/town"):
        measure(tmp_path, name, 7.0, 100)
    found = {
        parts: taken({"town": (raw, range(parts))}, tmp_path / "benchmarks") for parts in (1, 2, 3)
    }
    assert [{one.job: one.jobs for one in found[parts]} for parts in (1, 2, 3)] == [
        {"build_vocabulary": 1, "tokenise": 1},
        {"sample_motion": 2},
        {"sample_motion": 3, "tokenise_part": 3},
    ]
    assert [one.known for one in found[3]] == [2, 1]


def test_parts_of_a_series_are_those_that_were_read(tmp_path, raw):
    for rule in ("find_missing", "preprocess_part"):
        for part in range(3):
            measure(tmp_path, f"{rule}/coast/{part}", 5.0, 100)
    measure(tmp_path, "preprocess/coast", 9.0, 100)
    found = {
        parts: taken({"coast": (raw, range(parts))}, tmp_path / "benchmarks") for parts in (1, 3)
    }
    assert {one.job: one.jobs for one in found[1]} == {"preprocess": 1}
    assert {one.job: one.jobs for one in found[3]} == {"preprocess_part": 3, "find_missing": 3}


def test_rules_of_a_system_that_follow_the_parts_are_among_them(tmp_path, raw):
    for name in ("extract_patches/aquifer", "extract_samples/globe/blocks"):
        measure(tmp_path, name, 5.0, 100)
    found = taken({"aquifer": (raw, range(3)), "globe": (raw, range(1))}, tmp_path / "benchmarks")
    assert {one.job for one in found} == {"extract_patches", "extract_blocks"}


@pytest.mark.parametrize("content", ["", "s\tcpu_time\n", "s\tcpu_time\n1\t-\n"])
def test_a_job_of_which_nothing_is_known_is_left_out(tmp_path, raw, content):
    measure(tmp_path, "preprocess/aquifer", 5.0, 100)
    (tmp_path / "benchmarks/preprocess/aquifer.tsv").write_text(content)
    measure(tmp_path, "preprocess/other", 5.0, 100)
    gone = tmp_path / "archived"
    assert (
        taken({"aquifer": (raw, range(1)), "other": (gone, range(1))}, tmp_path / "benchmarks")
        == []
    )
