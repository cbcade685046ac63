"""A release: all places name one version, and what is built holds the workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
import yaml
from plans import ROOT

import millrace

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("workflow", "config", "envs", "profiles")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "Snakefile")
FILES += ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")


def test_all_places_name_one_version():
    """The library says it, setuptools asks the library, and the others repeat it."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    asked = PROJECT["tool"]["setuptools"]["dynamic"]["version"]
    assert asked == {"attr": "millrace.__version__"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    archived = json.loads((ROOT / ".zenodo.json").read_text())
    assert cited["version"] == archived["version"] == millrace.__version__
    assert cited["title"] == archived["title"]
    assert cited["license"] == archived["license"] == PROJECT["project"]["license"]


def test_release_notes_begin_with_what_is_next():
    """With MILLRACE_RELEASE, as `make release-check` sets it, that is this version with its date."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *_ = re.findall(r"^## \[(.+)$", text, flags=re.M)
    released = rf"{re.escape(millrace.__version__)}\] - \d{{4}}-\d\d-\d\d"
    if os.environ.get("MILLRACE_RELEASE"):
        assert re.fullmatch(released, first), (
            f"CHANGELOG.md: name Unreleased {millrace.__version__}"
        )
    else:
        assert first == "Unreleased]" or re.fullmatch(released, first)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Made of the sdist, which is made of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "checkout"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; build_meta.build_sdist('../dist')"
    run(sys.executable, "-c", build, cwd=copy)
    (sdist,) = (folder / "dist").iterdir()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", str(folder), str(sdist))
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_what_the_workflow_needs_and_nothing_else(wheel):
    assert wheel.name == f"millrace_workflow-{millrace.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        held = {*file.namelist()}
    home = "millrace/installed/"
    there = {name.removeprefix(home) for name in held if name.startswith(home)}
    folders = {"config": "*", "envs": "*", "profiles": "*", "workflow/rules": "*.smk"}
    folders |= {"workflow/scripts": "*.py", "workflow/report": "*.rst"}
    wanted = {
        str(path.relative_to(ROOT))
        for folder, pattern in folders.items()
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file()
    }
    assert there == wanted | {"Snakefile", "pyproject.toml"}
    library = {
        str(path.relative_to(ROOT / "workflow"))
        for path in (ROOT / "workflow/millrace").rglob("*")
        if path.suffix in (".py", ".j2", ".c", ".h")
    }
    others = {name for name in held - library if not name.startswith(home)}
    assert library <= held
    assert {name.partition("/")[0].partition("-")[0] for name in others} == {
        "millrace_workflow",
        "snakemake_logger_plugin_millrace",
    }


@pytest.mark.slow
def test_a_project_is_made_and_planned_from_an_installed_wheel(wheel, tmp_path):
    """In an environment that sees the packages of this one, but neither checkout nor PYTHONPATH."""
    place = tmp_path / "environment"
    venv.create(place, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": place})
    others = {path for path in sys.path if path.endswith("site-packages")}
    with open(f"{packages}/others.pth", "w") as file:  # noqa: PTH123
        # Paths alone: what these folders say of editable packages is not read.
        file.write("\n".join(sorted(others)))
    python = str(place / "bin/python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    run(*install, "--no-index", str(wheel))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{place}/bin:{os.environ['PATH']}"
    here = {"cwd": tmp_path, "env": environment}
    # Not only that of the checkout, with what git says of it.
    assert run("millrace", "--version", **here) == f"millrace {millrace.__version__}\n"
    run("millrace", "init", "mine", "--profile", "katana", **here)
    assert f"{packages}/millrace/installed/Snakefile" in (tmp_path / "mine/Snakefile").read_text()
    assert f"source {place}/bin/activate" in (tmp_path / "mine/README.md").read_text()
    here["cwd"] = tmp_path / "mine"
    assert os.access(here["cwd"] / "profiles/katana/pbs-cancel", os.X_OK)
    command = [python, "-m", "snakemake", "-n", "--quiet", "rules", "--profile", "profiles/katana"]
    planned = run(*command, **here)
    assert re.search(r"^train_segment +\d", planned, flags=re.M), planned
