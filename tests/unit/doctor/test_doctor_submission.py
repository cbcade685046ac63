"""Jobs that the doctor submits, on a scheduler that a test moves; and the command as a whole."""

import json
from pathlib import Path

import pytest

from millrace.doctor import command as doctor
from millrace.doctor import submission
from millrace.doctor.checks import Check, Result, write
from millrace.errors import UserError
from millrace.layout import Layout
from millrace.schedulers import Job, State

N1, N2 = Layout(1, 2), Layout(2, 2)


class Batch:
    """A queue whose jobs do what the test says: name of layout -> states, one an answer."""

    def __init__(self, lives, report=True, refuse=()):
        self.lives, self.report, self.refuse = lives, report, refuse
        self.submitted, self.cancelled = {}, []

    def submit(self, command, resources, name, log):
        layout = command[command.index("--layout") + 1]
        if layout in self.refuse:
            raise UserError("sbatch: error: Invalid qos specification")
        self.submitted[layout] = (command, resources, log)
        return layout

    def jobs(self, ids):
        found = {}
        for layout in ids:
            states = self.lives[layout]
            state = states.pop(0) if len(states) > 1 else states[0]
            found[layout] = Job(layout, state, nodes=("k0",), reason="Resources")
            command, _, log = self.submitted[layout]
            if state.is_over:
                Path(log).write_text("starts\nImportError: no torch\n\n")
            if state.is_over and self.report:
                path = Path(command[command.index("--json") + 1])
                write(path, {layout: [Check.ok("ranks", "2 started")]})
        return found

    def cancel(self, ids):
        self.cancelled += ids


@pytest.fixture
def check(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "EVERY_S", 0.0)
    monkeypatch.setattr(submission, "VISIBLE_AFTER_S", 0.0)

    def run(batch, *layouts, patience_s=60.0, **given):
        monkeypatch.setattr(submission, "queue", lambda name: {"slurm": batch}[name])
        told = []
        found = submission.check_in_jobs(
            cluster, layouts, tmp_path / "p", patience_s, told.append, **given
        )
        return {str(layout): checks for layout, checks in found}, told

    return run


def test_jobs_are_submitted_awaited_and_read(check, tmp_path):
    waits = [State.PENDING, State.RUNNING, State.DONE]
    batch = Batch({"n1_gpu2": waits, "n2_gpu2": [State.UNKNOWN, State.DONE]})
    found, told = check(batch, N1, N2)
    assert [c.detail for c in found["n1_gpu2"]] == ["job n1_gpu2 on k0", "2 started"]
    assert found["n2_gpu2"][1].result is Result.OK
    assert (
        told[0]
        == "n1_gpu2: job n1_gpu2 pending (Resources); n2_gpu2: job n2_gpu2 unknown (Resources)"
    )
    command, resources, _ = batch.submitted["n2_gpu2"]
    assert command[1:5] == ["-m", "millrace.cli", "doctor", "--here"]
    assert (resources["nodes"], resources["gres"], resources["runtime"]) == (2, "gpu:2", 15)
    assert command[command.index("--cpus") + 1] == "16"
    assert list((tmp_path / "p").iterdir()) == []
    assert batch.cancelled == []


def test_ranks_in_jobs_start_in_the_image(check):
    batch = Batch({"n1_gpu2": [State.DONE]})
    check(batch, N1, container="apptainer exec --nv millrace.sif")
    command, _, _ = batch.submitted["n1_gpu2"]
    assert doctor.parser().parse_args(command[4:]).container == "apptainer exec --nv millrace.sif"


def test_a_refused_job_does_not_keep_the_others(check):
    found, _ = check(Batch({"n2_gpu2": [State.DONE]}, refuse=["n1_gpu2"]), N1, N2)
    (refused,) = found["n1_gpu2"]
    assert (refused.result, refused.detail) == (
        Result.FAILED,
        "sbatch: error: Invalid qos specification",
    )
    assert found["n2_gpu2"][0].result is Result.OK


def test_a_job_without_report_shows_its_last_words(check):
    found, _ = check(Batch({"n1_gpu2": [State.FAILED]}, report=False), N1)
    (ended,) = found["n1_gpu2"]
    assert ended.result is Result.FAILED
    assert ended.detail.endswith("without a report: ImportError: no torch")
    assert "job.log" in ended.remedy


def test_failed_checks_are_read_also_when_the_job_failed(check):
    found, _ = check(Batch({"n1_gpu2": [State.FAILED]}), N1)
    assert [c.name for c in found["n1_gpu2"]] == ["job", "ranks"]


def test_a_job_that_waits_too_long_is_cancelled(check):
    batch = Batch({"n1_gpu2": [State.PENDING]})
    found, _ = check(batch, N1, patience_s=0.0)
    (late,) = found["n1_gpu2"]
    assert late.result is Result.SKIPPED
    assert "still pending" in late.detail
    assert batch.cancelled == ["n1_gpu2"]


def test_ctrl_c_cancels_what_waits(check, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(submission.time, "sleep", interrupt)
    batch = Batch({"n1_gpu2": [State.PENDING], "n2_gpu2": [State.RUNNING]})
    with pytest.raises(KeyboardInterrupt):
        check(batch, N1, N2)
    assert batch.cancelled == ["n1_gpu2", "n2_gpu2"]


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A folder with a local profile."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "profiles/local"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("cores: all\n")
    (tmp_path / "config.yaml").write_text("run: {layouts: [n1_gpu2]}\n")
    return tmp_path


def test_the_exit_code_follows_the_worst_check(local, capsys):
    arguments = ["--no-job", "--configfile", "config.yaml", "--json", "out.json"]
    assert doctor.main(arguments) == 0
    assert json.loads((local / "out.json").read_text())["ok"] is True
    said = capsys.readouterr().out
    assert "profiles/local is not the profile of a cluster" in said
    assert doctor.main([*arguments, "--need-gb", "1e9"]) == 1
    report = json.loads((local / "out.json").read_text())
    assert report["ok"] is False
    failed = [c for c in report["sections"]["this machine"] if c["result"] == "failed"]
    assert [c["name"] for c in failed] == ["free space"]
    assert "→ Make room" in capsys.readouterr().out
    assert doctor.main(["--no-job", "--configfile", "config.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sections"].keys() == {"this machine"}


def test_mistakes_are_sentences(local, capsys):
    assert doctor.main(["--profile", "profiles/gilbert"]) == 2
    assert "profiles/gilbert: no such profile; did you mean 'gilbreth'?" in capsys.readouterr().err
    assert doctor.main(["--configfile", "none.yaml"]) == 2
    assert "no run.layouts" in capsys.readouterr().err
    assert doctor.main(["--layout", "n2gpu2"]) == 2


def test_layouts_of_several_nodes_are_not_for_one_machine(local, capsys):
    assert doctor.main(["--layout", "n2_gpu1", "--json", "out.json"]) == 0
    (check,) = json.loads((local / "out.json").read_text())["sections"]["n2_gpu1"]
    assert (check["result"], "needs 2 nodes" in check["detail"]) == ("not applicable", True)
    assert not (local / "results/preflight").exists()
