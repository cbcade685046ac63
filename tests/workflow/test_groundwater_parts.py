"""Raw files of groundwater read in parts by the real workflow, with nodes to be left out."""

import json

import pytest
from project import FOLDER, Project

pytestmark = pytest.mark.slow

SERIES, PATCHES = "results/data/small/series.h5", "results/data/small/patches.h5"
MASK = {"value": -999, "then": "mask"}


def configure(project, **keys):
    project.config["datasets"]["small"] |= {"parts": 3, "missing": MASK, **keys}
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = configure(Project(tmp_path_factory.mktemp("parts") / FOLDER))
    project.run(PATCHES)
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A finished project to change and plan again."""
    return configure(finished.copy(tmp_path / FOLDER))


def test_nodes_are_sought_and_files_read_in_parts(finished):
    assert finished.planned(PATCHES) == {}
    names = sorted(path.name for path in finished.path("results/data/small/parts").glob("[!.]*"))
    assert names == [f"{stem}_{n}.h5" for stem in ("missing", "series") for n in range(3)]
    for rule in ("find_missing", "preprocess_part"):
        logs = [finished.path(f"logs/{rule}/small/{n}.log").read_text() for n in range(3)]
        assert ["20/20 files" in text for text in logs] == [True] * 3
    account = json.loads(finished.path("results/data/small/samples.json").read_text())
    assert account["nodes"]["kept"] == 120
    forced = finished.planned("data", "-R", "data")
    parts = dict.fromkeys(("find_missing", "preprocess_part"), 3)
    assert {**parts, "gather_missing": 1, "gather_series": 1}.items() <= forced.items()


def test_a_lost_part_is_made_alone(project):
    project.path("results/data/small/parts/series_1.h5").unlink()
    assert project.planned(SERIES, "-R", "gather_series") == {
        "preprocess_part": 1,
        "gather_series": 1,
    }
    project.path("results/data/small/parts/missing_2.h5").unlink()
    done = project.run(SERIES, "-R", "gather_series")
    assert "find_missing" not in done.stdout + done.stderr, "which nodes are left out is known"


def test_a_part_that_fails_is_tried_alone(project):
    """The others go on, and are there when it is tried again."""
    raw = project.path("results/data/small/raw/all/0025.csv")
    text = raw.read_text()
    raw.write_text(text.replace(".", "x", 9))
    configure(project, variables=["head"])
    project.config["experiments"]["tiny"]["data"]["variables"] = ["head"]
    failed = project.run(SERIES, "--keep-going", "--retries", "0", check=False)
    assert failed.returncode != 0
    assert "0025.csv:2:" in project.path("logs/find_missing/small/1.log").read_text()
    raw.write_text(text)
    assert project.planned(SERIES)["find_missing"] == 1
    assert project.planned(SERIES)["preprocess_part"] == 3


def test_without_a_mask_no_nodes_are_sought(project):
    configure(project, missing={"value": -999, "then": "refuse"})
    assert project.planned(SERIES) == {"preprocess_part": 3, "gather_series": 1}
    configure(project, parts=1)
    assert project.planned(SERIES) == {"preprocess": 1}
