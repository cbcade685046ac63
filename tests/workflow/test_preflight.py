"""The target `preflight`: asked for by name only, and for the layouts that are configured."""

import json

import pytest


def test_preflight_is_not_part_of_the_work(project):
    assert "preflight_layout" not in project.planned()
    project.config["run"]["layouts"] = ["n1_gpu1", "n2_gpu2"]
    assert project.planned("preflight")["preflight_layout"] == 2


@pytest.mark.slow
def test_layouts_are_checked_or_refused_in_a_sentence(project):
    project.run("preflight")
    report = json.loads(project.path("results/preflight/n1_gpu1.json").read_text())
    assert report["ok"]
    assert "preflight_layout" not in project.planned("preflight")
    assert project.planned("preflight", "-R", "preflight")["preflight_layout"] == 1
    project.config["run"]["layouts"] = ["n2_gpu1"]
    refused = project.run("preflight", check=False)
    assert refused.returncode != 0
    log = project.path("logs/preflight_layout/n2_gpu1.log").read_text()
    assert "layout n2_gpu1: needs 2 nodes" in log.splitlines()[-1]
