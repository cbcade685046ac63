"""What sessions write of their time, after kills and full disks."""

import psutil
import pytest

from millrace.sealed import damaged_lines
from millrace.training.usage import SESSIONS, SessionUsage, read_sessions

SESSION = {"session": 1, "step": 8, "started": "2026-01-02", "host": "a", "job": "", "ranks": 1}


def test_the_imports_of_torchrun_count_once(tmp_path, monkeypatch):
    for restarts, process in (("0", psutil.Process().parent()), ("1", psutil.Process())):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        (tmp_path / restarts).mkdir()
        SessionUsage(tmp_path / restarts, SESSION)
        [found] = read_sessions(tmp_path / restarts)
        assert found["begun"] == round(process.create_time(), 3)


@pytest.mark.parametrize("cut", [b'{"begun": 17', b"\0" * 5000, b'{"seconds": {"start'])
def test_a_line_that_was_cut_short_spoils_no_other(tmp_path, cut):
    usage = SessionUsage(tmp_path, SESSION)
    usage.write(16)
    with (tmp_path / SESSIONS).open("ab") as file:
        file.write(cut)
    usage.write(24)
    assert [one["end_step"] for one in read_sessions(tmp_path)] == [24]
    assert damaged_lines(tmp_path / SESSIONS) == []
    assert len((tmp_path / SESSIONS).read_bytes().splitlines()) == 3
