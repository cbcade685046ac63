"""The image of jobs: sound by the stand-in of Apptainer, and each check failing once."""

import json
import os
import re

import pytest
from images import Image, with_apptainer

from millrace.doctor import command as doctor
from millrace.doctor.checks import Result
from millrace.doctor.container import arguments_of, check_container
from millrace.doctor.environment import dependencies
from millrace.home import HOME

VERSION = "apptainer version 1.4.5"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project whose local profile runs jobs in an image."""
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "profiles/local/config.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("cores: all\nsoftware-deployment-method: apptainer\n")
    (tmp_path / "own.yaml").write_text("container: millrace.sif\nrun: {layouts: [n1_gpu1]}\n")
    Image(tmp_path / "millrace.sif")
    return tmp_path


@pytest.fixture
def judge(place, commands):
    """(cluster, **what the Python of the image finds other than is sound) -> checks by name."""
    lock = re.findall(r"^([\w.-]+)==(.*)$", (HOME / "envs/requirements.lock").read_text(), re.M)
    pins = {re.sub("[-_.]+", "-", name).lower(): version for name, version in lock}
    sound = {"python": "3.11.9", "missing": [], "cuda": "13.0", "gpus": 0}

    def checks(cluster=None, versions=(), **changes):
        found = {name: pins[name] for name in dependencies(HOME)} | dict(versions)
        said = json.dumps({**sound, "versions": found, **changes})
        commands.answers("apptainer", **{"-version": VERSION, "-home": said})
        return checked(place, cluster)

    return checks


def checked(place, cluster=None):
    checks, _ = check_container(place / "profiles/local", place / "own.yaml", cluster)
    return {check.name: check for check in checks}


def failed(check, detail, remedy):
    assert check.result is Result.FAILED, check
    assert detail in check.detail
    assert remedy in check.remedy


@pytest.mark.slow
def test_sound_image_in_which_the_ranks_start(place, monkeypatch):
    """The whole command, by the stand-in: what Python finds is that of these tests."""
    monkeypatch.setenv("PATH", with_apptainer(os.environ["PATH"]))
    assert doctor.main(["--configfile", "own.yaml", "--json", "out.json"]) == 0
    sections = json.loads((place / "out.json").read_text())["sections"]
    said = {one["name"]: one["result"] for one in sections["this machine"]}
    names = ("apptainer", "image", "packages in the image", "files in the image")
    assert [said[name] for name in names] == ["ok"] * 4
    assert {one["name"]: one["result"] for one in sections["n1_gpu1"]}["ranks"] == "ok"
    [agent] = Image(place / "millrace.sif").agents
    assert "millrace.doctor.worker" in agent["command"]


def test_jobs_without_an_image_have_no_such_checks(place, commands):
    (place / "profiles/local/config.yaml").write_text("cores: all\n")
    assert check_container(place / "profiles/local", place / "own.yaml", None) == ([], "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sdm: [conda, apptainer]\napptainer-args: --nv\n", "--nv"),
        ("use-singularity: true\nsingularity-args: --rocm\n", "--rocm"),
        ("software-deployment-method: conda\n", None),
        ("- no keys\n", None),
    ],
)
def test_profiles_say_it_in_the_ways_of_snakemake(place, text, found):
    (place / "profiles/local/config.yaml").write_text(text)
    assert arguments_of(place / "profiles/local") == found


def test_apptainer(place, commands, capsys):
    failed(checked(place)["apptainer"], "command not found", "Load its module")
    commands.says("apptainer", "apptainer version 0.9.1\n")
    failed(checked(place)["apptainer"], "0.9.1, older than 1.0", "newer")
    (place / "millrace.sif").unlink()
    failed(checked(place)["image"], "no file millrace.sif; make one", "profiles/README.md")
    assert doctor.main(["--configfile", "own.yaml", "--json"]) == 1
    [check] = json.loads(capsys.readouterr().out)["sections"]["n1_gpu1"]
    assert (check["result"], check["detail"]) == ("skipped", "jobs need the image, see above")


def test_python_in_the_image(judge, place, commands):
    good = judge()["packages in the image"]
    assert (good.result, good.detail) == (
        Result.OK,
        f"Python 3.11.9, {len(dependencies(HOME))} packages as locked",
    )
    again = "apptainer build --force millrace.sif"
    for changes, detail in (
        ({"python": "3.9.1"}, "Python 3.9.1, expected 3.11 or newer"),
        ({"versions": {"h5py": None}}, "not installed: h5py"),
        ({"versions": {"torch": "2.0.0+cu118"}}, "torch 2.0.0+cu118, locked"),
        ({"problem": "torch cannot be imported: libcudart.so.13"}, "libcudart.so.13"),
    ):
        failed(judge(**changes)["packages in the image"], detail, again)
    other = judge(versions={"h5py": "3.0.0"})["packages in the image"]
    assert (other.result, "h5py 3.0.0" in other.detail) == (Result.WARNING, True)
    commands.answers("apptainer", **{"-version": VERSION, "-home": "exec: python: not found"})
    failed(checked(place)["Python in the image"], "python: not found", again)


def test_files_that_are_not_seen_from_inside(judge, place):
    assert judge()["files in the image"].result is Result.OK
    check = judge(missing=[str(place)])["files in the image"]
    failed(check, f"not seen from inside: {place}", "Add `--bind`")


def test_gpus_in_the_image(judge, place, commands, cluster):
    assert judge()["GPUs in the image"].result is Result.NOT_APPLICABLE
    failed(judge(cluster)["GPUs in the image"], "without --nv", "`apptainer-args: --nv` in")
    with (place / "profiles/local/config.yaml").open("a") as file:
        file.write("apptainer-args: --nv\n")
    assert judge(cluster)["GPUs in the image"].result is Result.NOT_APPLICABLE
    commands.says("nvidia-smi", "GPU 0: NVIDIA H200\n")
    failed(judge(cluster)["GPUs in the image"], "torch for CUDA 13.0 sees none", "TORCH_PIP_ARGS")
    good = judge(cluster, gpus=4)["GPUs in the image"]
    assert (good.result, good.detail) == (Result.OK, "4, by torch for CUDA 13.0")
