"""`millrace plan` on a project that has run, beside Snakemake's own dry run."""

import json
import os

import pytest
from forked_snakemake import snakemake

from millrace.errors import ExitCode
from millrace.planning import command, dry_run


@pytest.fixture
def plan(project, monkeypatch, capsys):
    """What `millrace plan` prints in the finished project."""
    monkeypatch.chdir(project.root)
    environment = dict(os.environ)
    monkeypatch.setattr(
        dry_run, "run_snakemake", lambda given: snakemake(given, project.root, environment)
    )

    def planned(*arguments, code=ExitCode.OK):
        project.command()  # writes the configuration
        assert command.main(["--configfile", "tiny.yaml", *arguments]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return planned


@pytest.mark.slow
def test_what_is_done_and_what_is_left_agrees_with_snakemake(project, plan):
    project.config["run"]["seeds"] = [0, 1]
    rows = {row["rule"]: row for row in json.loads(plan("--json", "--profile", "local"))["rows"]}
    assert {name: row["left"] for name, row in rows.items() if row["left"]} == project.planned()
    trained = rows["train_segment"]
    assert (trained["stage"], trained["jobs"], trained["left"]) == ("train", 4, 2)
    assert trained["hours_asked"] is None
    assert trained["hours_expected"] > 0
    assert trained["disk_gb"] > 0
    assert rows["simulate_raw"]["left"] == rows["simulate_raw"]["hours_expected"] == 0


def test_the_table_fits_on_a_hundred_columns(project, plan):
    project.config["run"]["layouts"] = ["n1_gpu1", "n2_gpu2"]
    said = plan("--profile", "gilbreth")
    assert max(map(len, said.splitlines())) <= 100
    [row] = [
        line.split() for line in said.splitlines() if {"train_segment", "n2_gpu2"} < {*line.split()}
    ]
    row = row[row.index("train_segment") :]
    # Jobs, done, left; two segments of 24 h on 2 x 2 GPUs, never measured on a GPU.
    assert row == [
        "train_segment",
        "n2_gpu2",
        "2",
        "0",
        "2",
        "48",
        "–",
        "200",
        "4",
        "192",
        "–",
        "–",
    ]


def test_a_plan_that_is_refused_says_the_sentence_of_snakemake_alone(project, plan):
    project.config["run"]["experiments"] = ["tiy"]
    said = plan(code=ExitCode.USER)
    assert said.startswith("error: config: run.experiments: no experiment named 'tiy'")
    assert len(said.splitlines()) == 1
