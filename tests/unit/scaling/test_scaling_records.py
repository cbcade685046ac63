"""The JSON of a scaling run: what is written is read, and what does not fit is refused."""

import dataclasses
import json

import numpy as np
import pytest
from synthetic import make_run

from millrace.errors import DataError
from millrace.scaling import records


def test_what_is_written_is_read(tmp_path) -> None:
    run = make_run("n2_gpu2", repeat=1)
    path = tmp_path / "run.json"
    records.write(run, path)
    assert records.read(path) == run
    assert run.commit == "0123456789ab"


def test_commits_with_local_changes_are_marked() -> None:
    run = make_run(provenance={"git_revision": "0123456789abcdef", "git_dirty": True})
    assert run.commit == "0123456789ab+"
    assert make_run(provenance={}).commit == ""


def altered(tmp_path, change):
    path = tmp_path / "run.json"
    records.write(make_run("n1_gpu2"), path)
    values = json.loads(path.read_text())
    del values["seal"]
    change(values)
    path.write_text(json.dumps(values))
    return path


def test_a_digit_that_damage_has_changed_is_noticed(tmp_path) -> None:
    path = tmp_path / "run.json"
    records.write(make_run("n1_gpu2", batch=64), path)
    path.write_text(path.read_text().replace('"global_batch": 64', '"global_batch": 74'))
    with pytest.raises(DataError, match=r"run\.json: damaged"):
        records.read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v.update(schema="millrace.scaling_run/0"), "expected 'millrace.scaling_run/1'"),
        (lambda v: v.update(loyout="n1_gpu1"), "did you mean 'layout'"),
        (lambda v: v.pop("global_batch"), "key 'global_batch' is missing"),
        (lambda v: v.update(layout="n1_gpu4"), "expected 4 ranks, as layout n1_gpu4 has, got 2"),
        (lambda v: v.update(layout="n2_gpu1"), "expected 2 nodes, as layout n2_gpu1 has, got 1"),
        (lambda v: v.update(mode="string"), "did you mean 'strong'"),
        (lambda v: v["device"].update(kind="tpu"), "device.kind: 'tpu' is not known"),
        (lambda v: v["device"].update(peak_flops=0.0), "device.peak_flops: expected a positive"),
        (lambda v: v["labels"].update(times="guessed"), "labels.times: 'guessed'"),
        (lambda v: v["times"]["data"][1].pop(), "times.data: expected 2 ranks with 40 steps each"),
        (
            lambda v: v["times"]["data"][1].__setitem__(3, -1.0),
            "times.data: expected 0 seconds or more",
        ),
        (lambda v: v["times"]["data"][1].__setitem__(3, 9.0), "step 3 of rank 1 take longer"),
        (lambda v: v["times"]["total"][0].__setitem__(3, float("nan")), "times.total"),
        (
            lambda v: v["times"]["total"][0].__setitem__(3, "one"),
            r"times.total\[0\]\[3\]: expected a number",
        ),
        (lambda v: v.update(losses=[1.0]), "losses: expected 40 values or none, got 1"),
        (lambda v: v["bandwidth"][0].update(ranks=1), "between 2 or more ranks"),
        (lambda v: v.update(global_batch=0), "global_batch: expected 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, told) -> None:
    path = altered(tmp_path, change)
    with pytest.raises(DataError, match=told) as caught:
        records.read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}'])
def test_other_files_are_refused(tmp_path, text) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(DataError, match=str(path)):
        records.read(path)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="measure it again"):
        records.read(tmp_path / "no.json")


def test_times_are_arrays_of_ranks_and_steps() -> None:
    times = make_run("n1_gpu2").times
    assert times.array("total").shape == (2, 40)
    parts = sum(times.array(name) for name in records.TIMED_PARTS)
    assert (parts <= times.array("total") * 1.02).all()
    assert {field.name for field in dataclasses.fields(times)} == {"total", *records.TIMED_PARTS}
    assert np.isfinite(parts).all()
