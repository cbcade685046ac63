"""Jobs in an image, by the stand-in of Apptainer: planned, refused, and one that runs."""

import os

import pytest
from images import Image, with_apptainer


@pytest.fixture
def image(project, monkeypatch):
    """The image that the project names."""
    monkeypatch.setenv("PATH", with_apptainer(os.environ["PATH"]))
    project.config["container"] = "millrace.sif"
    return Image(project.path("millrace.sif"))


def in_image(project):
    with project.path("profiles/local/config.yaml").open("a") as profile:
        profile.write("software-deployment-method: apptainer\napptainer-args: --nv\n")


def test_an_image_alone_plans_nothing(project, image):
    assert project.planned() == {}


def test_a_profile_without_an_image_is_refused_when_planned(project, image):
    in_image(project)
    image.path.unlink()
    refused = project.run("-n", check=False)
    assert "no file millrace.sif; make one" in refused.stdout + refused.stderr
    del project.config["container"]
    refused = project.run("-n", check=False)
    assert refused.returncode != 0
    assert "no image is named; make one" in refused.stdout + refused.stderr


def test_the_script_of_a_rule_runs_in_the_image(project, image):
    """Those that start ranks, and the ranks, are tried on PBS and SLURM."""
    in_image(project)
    [graph] = project.path("results/data/small").glob("graph*.h5")
    before = graph.read_bytes()
    graph.unlink()
    # What was made on the host stays: other software is a reason to make it again.
    kept = ("--rerun-triggers", "mtime", "params", "input")
    project.run(*kept, "--", str(graph.relative_to(project.root)))
    [call] = image.calls
    assert "build_graph.py" in call["command"][-1]
    assert call["options"]["flags"] == ["--nv"]
    assert call["directory"] == str(project.root)
    assert not {".cache", ".config"} & {path.name for path in project.root.iterdir()}
    assert graph.read_bytes() == before
