"""Time of sessions against what was allocated, as sacct 22.05 or Snakemake's benchmarks tell it."""

import csv
import json
import os
from datetime import datetime

import psutil
import pytest

from millrace.errors import ExitCode
from millrace.runs.command import main
from millrace.runs.efficiency import measure, parse_accounting, parse_bytes
from millrace.runs.inventory import Run
from millrace.schedulers.slurm import duration

BEGIN = datetime(2026, 11, 21, 12, 0, 0).timestamp()
# A job that was put back into the queue once: two starts under the same id.
SACCT = """\
7|REQUEUED|2026-11-21T11:50:00|2026-11-21T12:00:00|2026-11-21T12:10:00|600|00:40:00|8||billing=8,cpu=8,gres/gpu=2,mem=200G,node=2
7.batch|CANCELLED||2026-11-21T12:00:00|2026-11-21T12:10:00|600|00:00.014|4|10G|cpu=4,mem=100G,node=1
7.0|COMPLETED||2026-11-21T12:00:02|2026-11-21T12:10:00|598|00:39:59|8|25G|cpu=8,mem=200G,node=2
7|TIMEOUT|2026-11-21T12:10:00|2026-11-21T13:00:00|2026-11-21T13:10:00|600|01:20:00|8||billing=8,cpu=8,gres/gpu=2,mem=200G,node=2
7.0|FAILED||2026-11-21T13:00:02|2026-11-21T13:10:00|598|01:19:59|8|50G|cpu=8,mem=200G,node=2
8|CANCELLED by 0|2026-11-21T12:10:00|Unknown|2026-11-21T13:10:00|0|00:00:00|8||
"""


def session(number, begun, step, end_step, seconds=(30, 400, 50, 20), job="7"):
    phases = dict(zip(("starting", "training", "validating", "saving"), seconds, strict=True))
    return {
        "session": number, "started": f"session {number}", "host": "k0", "job": job, "ranks": 2,
        "device": "A100", "step": step, "begun": begun, "end_step": end_step, "seconds": phases,
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """(sessions) -> Run whose epochs have 10 steps and 160 samples."""
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "runs/e/n1_gpu2/seed0/abc", "e", "n1_gpu2", "seed0", "abc")
    run.path.mkdir(parents=True)

    def make(*sessions):
        record = {"epoch": 4, "step": 40, "samples_per_second": 16.0, "seconds": 10.0}
        (run.path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (run.path / "identity.json").write_text("{}")
        lines = [json.dumps(one) + "\n" for one in sessions]
        (run.path / "sessions.jsonl").write_text("".join(lines))
        return run

    return make


@pytest.fixture
def sacct(tmp_path, monkeypatch):
    """A stand-in that prints SACCT, or fails."""

    def install(out=SACCT, code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "answer").write_text(out)
        (folder / "sacct").write_text(
            f'#!/bin/sh\nprintf "%s " "$@" > {folder}/call\n/bin/cat {folder}/answer\nexit {code}\n'
        )
        (folder / "sacct").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder / "call"

    return install


def account(run, tmp_path):
    return measure([run], tmp_path / "results", tmp_path / "benchmarks")


def test_each_start_of_a_job_counts_by_itself():
    first, second = parse_accounting(SACCT)
    assert (first.state, first.queued_s, first.elapsed_s) == ("REQUEUED", 600.0, 600.0)
    assert (first.cpu_s, first.cpus, first.memory) == (2400.0, 8, 25 * 2**30)
    assert (second.state, second.queued_s, second.memory) == ("TIMEOUT", 3000.0, 50 * 2**30)
    assert second.memory_given == 100 * 2**30, "of one of the two nodes"


def test_sessions_against_their_jobs(make_run, sacct, tmp_path):
    call = sacct()
    run = make_run(
        session(1, BEGIN + 5, 0, 20),
        # A rank died: two sessions in the second start of the job.
        session(2, BEGIN + 3605, 20, 25, (20, 100, 10, 5)),
        session(3, BEGIN + 3800, 25, 40, (20, 300, 10, 5)),
    )
    first, second = account(run, tmp_path)
    assert call.read_text().split()[:5] == ["-n", "-P", "-D", "-j", "7"]
    assert (first.sessions, first.source, first.state, first.queued_s) == (
        "1",
        "sacct",
        "REQUEUED",
        600,
    )
    assert (first.allocated_s, first.other_s) == (600.0, 100.0)
    assert first.training_share == pytest.approx(400 / 600)
    assert first.cpu_share == pytest.approx(0.5)
    assert first.memory_share == pytest.approx(0.25)
    assert first.samples == 20 * 16
    assert first.samples_per_rank_hour == pytest.approx(320 / (2 * 600 / 3600))
    assert (second.sessions, second.training_s, second.samples) == ("2–3", 400, 320)
    assert second.cpu_share == pytest.approx(1.0)


def test_without_accounting_the_benchmark_tells(make_run, sacct, tmp_path):
    sacct(out="sacct: error: Slurm accounting storage is disabled\n", code=1)
    run = make_run(session(1, BEGIN, 0, 20), session(2, BEGIN + 900, 20, 40))
    receipt = tmp_path / "results/train/e/n1_gpu2/seed0/epoch_4.json"
    receipt.parent.mkdir(parents=True)
    told = {"identity": "abc", "sessions": [{"started": "session 1"}, {"started": "session 2"}]}
    receipt.write_text(json.dumps(told))
    table = tmp_path / "benchmarks/train_segment/e/n1_gpu2/seed0/epoch_4.tsv"
    table.parent.mkdir(parents=True)
    table.write_text("s\th:m:s\tmax_rss\tcpu_time\n625.0\t0:10:25\t512.00\t900.5\n")
    first, second = account(run, tmp_path)
    assert (first.source, first.allocated_s, first.memory) == ("session", 500.0, None)
    assert (second.source, second.allocated_s, second.other_s) == ("benchmark", 625.0, 125.0)
    assert (second.cpu_s, second.memory, second.cpu_share) == (900.5, 512 * 2**20, None)
    receipt.write_text(json.dumps({**told, "identity": "other"}))
    assert account(run, tmp_path)[1].source == "session"


def test_a_session_that_goes_on_is_left_out(make_run, sacct, tmp_path):
    sacct()
    run = make_run(session(1, BEGIN, 0, 20), session(2, BEGIN + 900, 20, 40))
    process = psutil.Process()
    owner = {
        "host": os.uname().nodename, "pid": process.pid, "job": "", "token": 1, "nonce": "x",
        "started": process.create_time() - psutil.boot_time(),
    }  # fmt: skip
    (run.path / "owner.json").write_text(json.dumps(owner))
    (only,) = account(run, tmp_path)
    assert only.sessions == "1"


def test_table_and_csv(make_run, sacct, capsys, tmp_path):
    sacct()
    assert main(["efficiency", "--root", "."]) == ExitCode.OK
    assert "no session is over yet" in capsys.readouterr().out
    make_run(session(1, BEGIN, 0, 20), session(2, BEGIN + 3600, 20, 40))
    assert main(["efficiency", "--csv", "used.csv"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert "66 %" not in lines[1]
    assert lines[1].split()[:8] == [
        "e/n1_gpu2/seed0/abc", "1", "7", "REQUEUED", "2", "0:10:00", "0:10:00", "5",
    ]  # fmt: skip
    assert "67 %" in lines[-1]
    with (tmp_path / "used.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["training_share"]) for row in rows] == pytest.approx([2 / 3, 2 / 3])
    assert rows[0]["source"] == "sacct"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:00.014", 0.014), ("01:02:03", 3723), ("2-01:00:00", 176400), ("", None)],
)
def test_times_of_sacct(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("3312K", 3312 * 1024), ("1.50G", 1.5 * 2**30), ("0", 0), ("", None)]
)
def test_sizes_of_sacct(text, size):
    assert parse_bytes(text) == size
