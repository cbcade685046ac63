"""Provenance tells versions and nothing of the environment."""

import json
import os
import subprocess

import numpy as np
import pytest

from millrace import __version__, provenance


@pytest.fixture(autouse=True)
def fresh_caches():
    provenance.describe_repository.cache_clear()
    provenance.ask_git.cache_clear()
    yield
    provenance.describe_repository.cache_clear()
    provenance.ask_git.cache_clear()


def test_versions_are_recorded_and_secrets_are_not(monkeypatch) -> None:
    monkeypatch.setenv("MILLRACE_TOKEN", "canary-7f3a")
    record = provenance.provenance()
    assert record["millrace"] == __version__
    assert record["numpy"] == np.__version__
    assert {"python", "torch", "h5py", "git_revision", "git_dirty", "time_utc"} <= set(record)
    text = json.dumps(record)
    assert "canary" not in text
    assert str(provenance.Path.home()) not in text


def test_code_version_without_git(monkeypatch) -> None:
    def fail(*_args, **_options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert provenance.code_version() == __version__
    assert provenance.provenance()["git_revision"] is None


def test_code_version_describes_the_repository(monkeypatch) -> None:
    answers = {"ls-files": "provenance.py\n", "describe": "v1-2-gabc-dirty\n", "rev-parse": "abc\n"}

    def run(command, **_options):
        return subprocess.CompletedProcess(command, 0, stdout=answers[command[4]])

    monkeypatch.setattr(subprocess, "run", run)
    assert provenance.code_version() == f"{__version__}+v1-2-gabc-dirty"
    record = provenance.provenance()
    assert record["git_revision"] == "abc"
    assert record["git_dirty"] is True


def test_a_foreign_repository_does_not_speak_for_the_package(monkeypatch) -> None:
    def run(command, **_options):
        if command[4] == "ls-files":
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, stdout="foreign\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert provenance.code_version() == __version__
    assert provenance.provenance()["git_revision"] is None


def test_raw_files_are_known_by_their_names_and_sizes(tmp_path):
    """Not by their times: a copy starts nothing again."""
    (tmp_path / "a.csv").write_text("1,2\n")
    before = provenance.fingerprint(tmp_path)
    os.utime(tmp_path / "a.csv", (0, 0))
    assert provenance.fingerprint(tmp_path) == before
    (tmp_path / "a.csv").write_text("1,23\n")
    longer = provenance.fingerprint(tmp_path)
    assert longer != before
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    assert provenance.fingerprint(tmp_path) not in (before, longer)
    assert provenance.raw_bytes(tmp_path) == 5
