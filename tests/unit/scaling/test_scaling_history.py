"""Steps by commit and hardware, and what changed."""

import json
from dataclasses import replace

import pytest
from synthetic import CPU, series

from millrace.errors import DataError
from millrace.scaling.analysis import analyse
from millrace.scaling.history import compare, hardware, remember
from millrace.scaling.settings import AnalysisSettings

LAYOUTS = ("n1_gpu1", "n1_gpu2")


def analysed(commit, dirty=False, **options):
    runs = series(LAYOUTS, **options)
    provenance = {"git_revision": commit, "git_dirty": dirty}
    return analyse(
        [replace(run, provenance=provenance) for run in runs], AnalysisSettings(draws=300)
    )


@pytest.mark.parametrize(
    ("sample_s", "verdict", "change"),
    [(1.2e-3, "slower", 0.2), (0.8e-3, "faster", -0.2), (1.02e-3, "unchanged", 0.02)],
)
def test_changes_beyond_the_tolerance_are_reported(tmp_path, sample_s, verdict, change) -> None:
    remember(analysed("aaaa"), tmp_path)
    changes = compare(analysed("bbbb", sample_s=sample_s), tmp_path).changes
    assert [one.layout for one in changes] == list(LAYOUTS)
    assert {one.verdict for one in changes} == {verdict}
    assert changes[0].change == pytest.approx(change * 64 / 66, abs=0.01)
    assert (changes[0].before_commit, changes[0].now_commit) == ("aaaa", "bbbb")
    assert changes[0].before.label == changes[0].now.label == "measured"


def test_noise_beyond_the_tolerance_is_no_change(tmp_path) -> None:
    found = []
    for before, now in ((0, 1), (1, 0)):
        folder = tmp_path / str(before)
        remember(analysed("aaaa", run_noise=0.15, seed=before), folder)
        found += compare(analysed("bbbb", run_noise=0.15, seed=now), folder).changes
    assert max(one.change for one in found) > 0.05
    assert min(one.change for one in found) < -0.05
    assert {one.verdict for one in found} == {"unchanged"}


def test_the_last_other_commit_is_compared(tmp_path) -> None:
    remember(analysed("aaaa"), tmp_path)
    remember(analysed("bbbb", sample_s=2e-3), tmp_path)
    now = analysed("cccc")
    assert compare(now, tmp_path).changes[0].verdict == "faster"
    remember(now, tmp_path)
    assert compare(now, tmp_path).changes[0].before_commit == "bbbb", "not with itself"


def test_other_hardware_is_not_compared(tmp_path) -> None:
    (path,) = remember(analysed("aaaa", device=CPU), tmp_path)
    assert path.name == "cpu-Test-CPU.json"
    assert compare(analysed("bbbb"), tmp_path).changes == ()
    assert hardware(analysed("bbbb").studies[0]) == "gpu-Test-GPU-40-GB"


def test_a_commit_is_remembered_once(tmp_path) -> None:
    for sample_s in (1e-3, 2e-3):
        (path,) = remember(analysed("aaaa", sample_s=sample_s), tmp_path)
    entries = json.loads(path.read_text())["entries"]
    assert [entry["layout"] for entry in entries] == list(LAYOUTS)
    assert entries[0]["value"] > 0.12


@pytest.mark.parametrize(("commit", "dirty"), [("aaaa", True), ("", False)])
def test_what_cannot_be_measured_again_is_not_remembered(tmp_path, commit, dirty) -> None:
    assert remember(analysed(commit, dirty), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": "x", "entries": []}',
        '{"schema": "millrace.scaling_history/1", "entries": [{}]}',
    ],
)
def test_a_damaged_history_is_refused(tmp_path, text) -> None:
    path = tmp_path / "gpu-Test-GPU-40-GB.json"
    path.write_text(text)
    with pytest.raises(DataError, match="restore or remove the file"):
        compare(analysed("bbbb"), tmp_path)
