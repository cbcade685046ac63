"""One writer at a time, also after kills, reused process ids and on other hosts."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from millrace.errors import ExitCode
from millrace.training import owner as owner_module
from millrace.training.owner import STALE_AFTER_S, LockedError, Owner

HOLD = """
    import sys, time
    from pathlib import Path
    from millrace.training.owner import Owner
    with Owner.claim(Path(sys.argv[1])) as owner:
        print(owner.token, flush=True)
        time.sleep(60)
"""


def start(code: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "owner.json"


def claim(lock) -> int:
    with Owner.claim(lock) as owner:
        owner.check()
        return owner.token


def write_record(lock, **changes) -> None:
    """The record of this live process, changed."""
    with Owner.claim(lock):
        record = json.loads(lock.read_text())
    lock.write_text(json.dumps(record | changes))


def test_a_live_owner_is_refused_by_name_and_a_killed_one_replaced(lock) -> None:
    with start(HOLD, lock) as holder:
        try:
            assert holder.stdout.readline() == "1\n"
            with pytest.raises(LockedError, match=f"in use by process {holder.pid} on ") as caught:
                claim(lock)
            assert caught.value.exit_code == ExitCode.LOCKED
        finally:
            holder.send_signal(signal.SIGKILL)
        # Killed, but not waited for: a zombie does not write any more.
        while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert claim(lock) == 2


def test_the_token_grows_with_every_owner(lock) -> None:
    assert [claim(lock), claim(lock)] == [1, 2]
    assert not lock.exists()
    write_record(lock, pid=2**22 - 3)  # the third, gone
    lock.with_name(".owner.json.guard").write_bytes(b"\xff")
    assert claim(lock) == 4
    assert sorted(p.name for p in lock.parent.iterdir()) == [".owner.json.guard"]


def test_a_reused_process_id_is_another_process(lock) -> None:
    write_record(lock)
    with pytest.raises(LockedError):
        claim(lock)
    record = json.loads(lock.read_text())
    lock.write_text(json.dumps(record | {"started": record["started"] - 0.05}))
    assert claim(lock) == 2


def test_setting_the_clock_does_not_bury_the_owner(lock, monkeypatch) -> None:
    write_record(lock)
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
    monkeypatch.setattr("psutil.boot_time", lambda: boot + 3600)
    with pytest.raises(LockedError):
        claim(lock)


@pytest.mark.parametrize(
    ("age", "alive"), [(STALE_AFTER_S - 60, True), (STALE_AFTER_S + 60, False)]
)
@pytest.mark.parametrize("skew", [-3600, 0, 3600])
def test_an_owner_on_another_host_lives_while_it_touches_its_lock(
    lock, monkeypatch, age, alive, skew
) -> None:
    write_record(lock, host="elsewhere")
    then = time.time() - age
    os.utime(lock, (then, then))
    os.utime(lock.with_name(".owner.json.guard"), (0, 0))
    clock = time.time
    # The clock of this host differs from that of the file server.
    monkeypatch.setattr(time, "time", lambda: clock() + skew)
    if alive:
        with pytest.raises(LockedError, match="elsewhere"):
            claim(lock)
    else:
        assert claim(lock) == 2


def test_an_owner_touches_its_lock_while_it_only_trains(lock, monkeypatch) -> None:
    monkeypatch.setattr(owner_module, "TOUCH_EVERY_S", 0.02)
    threads = threading.active_count()
    with Owner.claim(lock):
        for _ in range(2):
            os.utime(lock, (0, 0))
            until = time.monotonic() + 60
            while lock.stat().st_mtime == 0 and time.monotonic() < until:
                time.sleep(0.01)
            assert lock.stat().st_mtime > 0
    until = time.monotonic() + 60
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= threads


STARTS = [
    ({"PBS_JOBID": "7.k1", "MILLRACE_PBS_STARTED": "{}"}, (1000, 2000)),
    ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "{}"}, (0, 1)),
]


@pytest.mark.parametrize("host", [None, "elsewhere"])
@pytest.mark.parametrize(("variables", "starts"), STARTS)
def test_orphan_of_a_requeued_job_does_not_take_the_run_back(
    lock, monkeypatch, variables, starts, host
) -> None:
    """Its node was given up, lives on, and has the same job id."""
    first, second = starts

    def start(number):
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(number))

    on = {"host": host} if host else {}
    start(first)
    write_record(lock, **on)  # as if the process were alive
    start(second)
    with Owner.claim(lock) as later:
        assert later.token == 2
        if host:
            write = json.loads(lock.read_text())
            lock.write_text(json.dumps(write | on))
        start(first)
        with pytest.raises(LockedError, match="in use by"):
            claim(lock)


def test_ranks_that_are_started_again_in_their_job_take_their_run_over(lock, monkeypatch) -> None:
    monkeypatch.setenv("PBS_JOBID", "7.k1")
    monkeypatch.setenv("MILLRACE_PBS_STARTED", "1000")
    write_record(lock, host="elsewhere")
    assert claim(lock) == 2


def test_lock_of_an_earlier_version_is_read(lock, monkeypatch) -> None:
    monkeypatch.setenv("PBS_JOBID", "7.k1")
    write_record(lock)
    old = json.loads(lock.read_text())
    del old["run"]
    lock.write_text(json.dumps(old))
    monkeypatch.setenv("MILLRACE_PBS_STARTED", "1000")
    with pytest.raises(LockedError):  # its process lives
        claim(lock)
    lock.write_text(json.dumps(old | {"host": "elsewhere"}))
    assert claim(lock) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"host": 1}', "\0" * 200])
def test_a_damaged_lock_is_nobodys(lock, content) -> None:
    lock.write_text(content)
    assert claim(lock) == 1
    assert not lock.exists()


@pytest.mark.parametrize("pid", [-1, 0.5, 10**30, "12"])
def test_a_process_id_that_is_none_is_nobodys(lock, pid) -> None:
    write_record(lock, pid=pid)
    assert claim(lock) == 2


def test_an_owner_that_was_replaced_stops_and_leaves_the_lock(lock) -> None:
    with Owner.claim(lock) as first:
        lock.unlink()
        with Owner.claim(lock) as second:
            with pytest.raises(LockedError, match=f"belongs to process {os.getpid()}"):
                first.check()
            second.check()
        with pytest.raises(LockedError, match="nobody"):
            first.check()
        write_record(lock, host="elsewhere")
    assert lock.exists()


def test_the_first_error_is_the_one_that_is_told(lock, monkeypatch) -> None:
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    def write():
        with Owner.claim(lock):
            monkeypatch.setattr("pathlib.Path.unlink", refuse)
            raise KeyError

    with pytest.raises(KeyError):
        write()


RACE = """
    import os, sys, time
    from pathlib import Path
    from millrace.training.owner import LockedError, Owner
    lock, flag = Path(sys.argv[1]), Path(sys.argv[1] + ".flag")
    won = 0
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        try:
            with Owner.claim(lock) as owner:
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL))  # fails if another one is inside
                print(owner.token, flush=True)
                won += 1
                time.sleep(0.001)
                flag.unlink()
                if won % 3 == 0 and len(sys.argv) > 2:
                    os._exit(0)  # leaves its lock behind, as a kill does
        except LockedError:
            pass
"""


def test_eight_processes_race_for_one_lock(lock) -> None:
    lock.write_text("damaged")
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(lock)]
    pipe = subprocess.PIPE
    racers = [
        subprocess.Popen([*command, *["die"] * (n % 2)], stdin=pipe, stdout=pipe, text=True)
        for n in range(8)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    tokens = []
    for racer in racers:
        output, _ = racer.communicate(timeout=300)
        assert racer.returncode == 0
        tokens += [int(line) for line in output.split()]
    assert len(tokens) > 8
    assert len(set(tokens)) == len(tokens), "two owners had one token"
