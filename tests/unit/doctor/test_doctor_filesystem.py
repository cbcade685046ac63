"""A file system that does all that is needed, and ones that do not."""

import errno
import fcntl
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import h5py
import pytest
import yaml

from millrace.doctor import environment, filesystem
from millrace.doctor.checks import Result, attempt
from millrace.doctor.environment import check_interpreter, check_packages
from millrace.doctor.filesystem import check_filesystem, check_quota, check_space
from millrace.doctor.need import wanted_space

REPOSITORY = Path(__file__).parents[3]
Partition = namedtuple("Partition", "device mountpoint fstype opts")


def checked(directory, name, need=0.001):
    (found,) = [c for c in check_filesystem(directory, need, "a test", True) if c.name == name]
    return found


def refuse(code):
    def call(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return call


def test_all_is_well_here_and_nothing_is_left(tmp_path):
    checks = check_filesystem(tmp_path, 0.001, "a test", cluster=False)
    results = {check.name: check.result for check in checks}
    results.pop("quota")
    assert set(results.values()) == {Result.OK}
    assert len(results) == 10
    assert list(tmp_path.iterdir()) == []


def test_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    check = checked(tmp_path, "hard link")
    assert check.result is Result.FAILED
    assert "Operation not permitted" in check.detail
    assert "another file system" in check.remedy


def test_hdf5_files_that_cannot_be_opened(tmp_path, monkeypatch):
    opened = h5py.File

    def locked(name, mode):
        if mode == "r":
            raise OSError("Unable to synchronously open file (unable to lock file, errno = 37)")
        return opened(name, mode)

    monkeypatch.setattr(h5py, "File", locked)
    check = checked(tmp_path, "HDF5 and NetCDF")
    assert check.result is Result.FAILED
    assert "unable to lock file" in check.detail
    assert "HDF5_USE_FILE_LOCKING" in check.remedy


def test_links_that_are_no_lock_or_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda old, new: shutil.copyfile(old, new))
    assert checked(tmp_path, "hard link").result is Result.FAILED

    def copied_once(old, new):
        if Path(new).exists():
            raise FileExistsError(new)
        shutil.copyfile(old, new)

    monkeypatch.setattr(os, "link", copied_once)
    assert checked(tmp_path, "hard link").result is Result.WARNING


def test_renames_that_do_not_replace(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", refuse(errno.EEXIST))
    assert checked(tmp_path, "rename over a file").result is Result.FAILED
    monkeypatch.setattr(Path, "replace", lambda self, other: other.write_text(self.read_text()))
    assert "not there" in checked(tmp_path, "rename over a file").detail


def test_names_that_everyone_gets(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **k: os.makedirs(self, exist_ok=True))  # noqa: PTH103
    check = checked(tmp_path, "exclusive mkdir")
    assert (check.result, check.detail) == (Result.FAILED, "4 of 4 got the same name")
    opened = os.open
    monkeypatch.setattr(os, "open", lambda p, f, *a, **k: opened(p, f & ~os.O_EXCL, *a, **k))
    assert checked(tmp_path, "exclusive create").detail == "4 of 4 got the same name"


def test_flock_only_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    assert checked(tmp_path, "flock").result is Result.WARNING
    monkeypatch.setattr(fcntl, "flock", lambda *a: None)
    check = checked(tmp_path, "flock")
    assert (check.result, "locks nobody out" in check.detail) == (Result.WARNING, True)


def test_sync_that_is_refused_or_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, "SLOW_SYNC_S", -1.0)
    assert checked(tmp_path, "fsync").result is Result.WARNING
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    check = checked(tmp_path, "fsync")
    assert check.result is Result.FAILED
    assert "Invalid argument" in check.detail


def test_clocks_that_differ(tmp_path, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 42)
    check = checked(tmp_path, "file times")
    assert check.result is Result.FAILED
    assert "-41." in check.detail  # times of files may be in whole seconds


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem.tempfile, "mkdtemp", refuse(errno.EACCES))
    last = check_filesystem(tmp_path, 1, "a test", True)[-1]
    assert (last.name, last.result, last.detail) == (
        "write",
        Result.FAILED,
        f"{tmp_path}: Permission denied",
    )


def test_space(tmp_path, monkeypatch):
    check = check_space(tmp_path, 1e9, "--need-gb")
    assert check.result is Result.FAILED
    assert "1,000,000,000.0 GB wanted (--need-gb)" in check.detail
    real = os.statvfs(tmp_path)
    few = type(real)([*real[:7], 12, *real[8:]])  # f_favail
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    check = check_space(tmp_path, 0.0, "nothing")
    assert (check.result, "only 12 more files" in check.detail) == (Result.WARNING, True)


@pytest.mark.parametrize(
    ("kind", "command", "line", "result", "detail"),
    [
        ("lustre", "lfs", "{at} 90000000 0 100000000 - 17 0 0 -", Result.FAILED, "10.2 GB left"),
        ("lustre", "lfs", "{at} 1000 0 100000000 - 17 0 0 -", Result.OK, "102.4 GB left"),
        ("lustre", "lfs", "{at} 1000 0 0 - 17 0 0 -", Result.OK, "no limit"),
        ("nfs4", "quota", "srv:/home {at} 5000000* 4000000 9000000 9 0 0 0", Result.FAILED, "-1.0"),
        ("nfs4", "quota", "srv:/else /other 5000000 4000000 9000000", Result.SKIPPED, "myquota"),
        ("gpfs", "quota", "", Result.SKIPPED, "myquota"),
    ],
)
def test_quota(tmp_path, commands, monkeypatch, kind, command, line, result, detail):
    at = str(tmp_path.resolve())
    parts = [Partition("x", "/", "ext4", ""), Partition("y", at, kind, "")]
    monkeypatch.setattr(environment.psutil, "disk_partitions", lambda all: parts)
    commands.says(command, line.format(at=at) + "\n")
    check = check_quota(tmp_path, 50.0)
    assert (check.result, detail in check.detail) == (result, True)


def test_an_error_of_the_system_is_a_failure_of_the_check():
    check = attempt("x", refuse(errno.EIO))
    assert (check.result, "Input/output error" in check.detail) == (Result.FAILED, True)


def test_interpreters_on_a_disk_of_one_machine(tmp_path, monkeypatch):
    at = str(tmp_path.resolve())
    parts = [Partition("x", "/", "ext4", ""), Partition("y", at, "lustre", "")]
    monkeypatch.setattr(environment.psutil, "disk_partitions", lambda all: parts)
    check = check_interpreter(tmp_path)
    assert check.result is Result.WARNING
    assert "may not be there on compute nodes" in check.detail
    monkeypatch.setattr(environment.sys, "prefix", at)
    monkeypatch.setattr(environment.sys, "base_prefix", at)
    assert check_interpreter(tmp_path).result is Result.OK


def test_packages_other_than_locked(tmp_path):
    (tmp_path / "envs").mkdir()
    lock = tmp_path / "envs/requirements.lock"
    assert check_packages(tmp_path).result is Result.SKIPPED
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["psutil>=7", "PyYAML"]\n')
    version = environment.metadata.version("psutil")
    lock.write_text(
        f"# comment\npsutil=={version}\npyyaml=={environment.metadata.version('pyyaml')}\n"
    )
    assert check_packages(tmp_path).result is Result.OK
    lock.write_text("psutil==0.1\n")
    check = check_packages(tmp_path)
    assert check.result is Result.WARNING
    assert f"psutil {version}, locked 0.1" in check.detail
    project.write_text('[project]\ndependencies = ["no-such_package>=7"]\n')
    check = check_packages(tmp_path)
    assert (check.result, "no-such-package" in check.detail) == (Result.FAILED, True)


def test_the_space_that_is_wanted(tmp_path):
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    file = tmp_path / "config.yaml"
    config["run"] = {"experiments": ["gino_head"], "layouts": ["n1_gpu1"], "seeds": [0, 1]}
    config["experiments"]["gino_head"]["train"] |= {"epochs": 12, "milestone_every": 6}
    file.write_text(yaml.safe_dump(config))
    gigabytes, why = wanted_space(file, tmp_path / "runs")
    assert (gigabytes, "a guess" in why) == (10.0, True)
    state = tmp_path / "runs/a/b/step_1/state.pt"
    state.parent.mkdir(parents=True)
    state.write_bytes(bytes(3_000_000))
    gigabytes, why = wanted_space(file, tmp_path / "runs")
    assert gigabytes == pytest.approx(2 * (2 + 3) * 0.003)
    assert why.startswith("10 checkpoints of 3.0 MB")
