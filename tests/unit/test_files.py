"""Files that appear whole or not at all."""

import errno
import json
import os

import pytest

from millrace.errors import ExitCode, NotFiniteError
from millrace.files import OutputError, atomic_write, write_json


def test_json_is_replaced_whole(tmp_path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    with pytest.raises(NotFiniteError, match=r"because a\.1\.b is infinite or NaN"):
        write_json(path, {"a": [1.0, {"b": float("nan")}]})
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": 1}
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_there_before_the_end(tmp_path) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / ".a.txt.partial").write_text("left by a kill")
    with atomic_write(path) as partial:
        assert not partial.exists()
        partial.write_text("new")
        assert not path.exists()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append(os.fstat(d).st_ino), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    write_json(tmp_path / "a.json", 1)
    inodes = [(tmp_path / "a.json").stat().st_ino, tmp_path.stat().st_ino]
    assert calls == [inodes[0], "rename", inodes[1]]


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG]
)
def test_a_refusal_keeps_the_old_file(tmp_path, monkeypatch, code) -> None:
    write_json(tmp_path / "a.json", 1)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=r"a\.json: cannot be written") as caught:
        write_json(tmp_path / "a.json", 2)
    assert caught.value.exit_code == ExitCode.NO_SPACE
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "1")]


def test_other_errors_pass(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a") as unwritten:
        assert not unwritten.exists()
