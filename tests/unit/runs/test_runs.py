"""Stores listed, verified, thinned and copied, whatever state they are in."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from millrace.errors import DataError, ExitCode
from millrace.files import write_json
from millrace.runs.command import main
from millrace.runs.display import loss_chart
from millrace.runs.inventory import disk_usage, find_runs, select, select_one, session_statistics
from millrace.runs.maintenance import clean, plan_cleaning, verify, verify_outputs
from millrace.sealed import write_sealed
from millrace.training import run_hash
from millrace.training.owner import LockedError
from millrace.training.store import CheckpointStore, Position, publish
from millrace.training.usage import write_target

EPOCHS = 6
MILESTONES = (2, 4)


def record(epoch, session):
    return {
        "epoch": epoch, "step": 10 * epoch, "train_loss": 1.0 / epoch, "validation_loss": 2.0 / epoch,
        "learning_rate": 1e-3, "samples_per_second": 100.0 * session, "seconds": 2.0,
        "session": session,
    }  # fmt: skip


HISTORY = [record(epoch, 1 if epoch <= 4 else 2) for epoch in range(1, EPOCHS + 1)]
SESSIONS = [
    {"session": 1, "step": 0, "started": "2026-01-02T03:04:05+00:00", "host": "a", "ranks": 1},
    {"session": 2, "step": 40, "started": "2026-01-03T03:04:05+00:00", "host": "b", "ranks": 2},
]


def make_run(base, experiment="salt", seed=0, epochs=EPOCHS, rate=0.1, receipt=True):
    """A finished run: its store, and a published milestone with its receipt."""
    described = {"model": {"name": "gino"}, "train": {"learning_rate": rate}, "seed": seed}
    name = run_hash.digest(described)
    family = f"{experiment}/n1_gpu1/seed{seed}"
    store = CheckpointStore(base / "runs" / family / name, name, "v1", keep=99)
    with store.writing():
        write_json(store.root / "identity.json", described)
        for epoch in range(1, epochs + 1):
            state = {"w": torch.full((64,), float(epoch)), "history": HISTORY[:epoch]}
            state["sessions"] = SESSIONS[: HISTORY[epoch - 1]["session"]]
            made = store.commit(state, Position(10 * epoch, epoch, 0), epoch in MILESTONES)
            if receipt and epoch == 2:
                output = base / "results/train" / family / "epoch_2.ckpt"
                publish(made, output)
                named = {"file": output.name, "size": made.manifest.size}
                named["crc32"] = made.manifest.crc32
                write_json(output.with_suffix(".json"), {"checkpoint": named, "identity": name})
    lines = [json.dumps(one) + "\n" for one in HISTORY[:epochs]]
    (store.root / "metrics.jsonl").write_text("".join(lines))
    return store.root


@pytest.fixture
def base(tmp_path, monkeypatch):
    make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(path):
    return [int(step.name.removeprefix("step_")) for step in sorted(path.glob("step_*"))]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(base):
    return find_runs(base / "runs")[0]


def test_a_run_says_how_far_it_is(run):
    assert run.parts[:3] == ("salt", "n1_gpu1", "seed0")
    assert (run.newest.epoch, run.newest.step, run.state) == (6, 60, "idle")
    assert run.history == HISTORY
    assert [step.milestone for step in run.steps] == [False, True, False, True, False, False]
    assert time.time() - run.changed < 60


def test_scripts_read_the_list_and_what_is_damaged(run, capsys):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 7, "train_loss": NaN, "validation_loss": 0.5}\n')
    assert main(["list", "--json"]) == ExitCode.OK
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["experiment"], record["layout"], record["seed"]) == ("salt", "n1_gpu1", 0)
    assert (record["epoch"], record["step"], record["state"]) == (6, 60, "idle")
    assert (record["train_loss"], record["validation_loss"]) == (None, 0.5)
    assert run.path.samefile(record["path"])
    (run.steps[-1].path / "manifest.json").write_text("{}")
    assert main(["verify", "--json"]) == ExitCode.DATA
    problems = [one for one in json.loads(capsys.readouterr().out) if one["problem"]]
    assert [run.steps[-1].path.samefile(one["path"]) for one in problems] == [True]


def test_a_run_that_does_not_learn_is_named_in_the_list_and_shown_with_the_reason(
    base, run, capsys
):
    records = [one | {"step": 100 * one["epoch"], "validation_loss": 2.0} for one in HISTORY]
    records[0]["initial_validation_loss"] = 2.0
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    told = {}
    for command in ("list", "show"):
        main(
            [
                command,
                "--root",
                str(base / "runs"),
                *(["salt/n1_gpu1/seed0"] if command == "show" else []),
            ]
        )
        told[command] = " ".join(capsys.readouterr().out.split())
    assert told["list"].count("does not learn") == 1
    assert (
        "does not learn: the loss does not move: the validation loss was 2 before" in told["show"]
    )


def test_a_line_that_is_being_written_is_not_read(run):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 7, "tra')
    assert [r["epoch"] for r in run.history] == [1, 2, 3, 4, 5, 6]


def test_states(base, run):
    with run.store().writing():
        assert run.state == "training"
        assert f"process {os.getpid()} on" in run.holder
    assert run.state == "idle"
    (run.steps[-1].path / "manifest.json").write_text("{}")
    damaged = find_runs(base / "runs")[0]
    assert damaged.state == "damaged"
    assert damaged.newest.epoch == 5


def test_runs_are_named_by_path_or_beginning(base):
    for seed in (1, 10):
        make_run(base, seed=seed, epochs=1)
    old = find_runs(base / "runs")[0]
    make_run(base, rate=0.2, epochs=1)
    runs = find_runs(base / "runs")
    assert len(runs) == 4
    assert {r.seed for r in select(runs, ["salt/n1_gpu1/seed1"])} == {"seed1"}
    assert {r.seed for r in select(runs, ["salt/n1_gpu1/s"])} == {"seed0", "seed1", "seed10"}
    assert select(runs, [str(old.path)]) == [old]
    assert select(runs, [f"runs/{old.name}"]) == [old]
    assert select_one(runs, old.name[:-6]) == old
    assert select_one(runs, "salt/n1_gpu1/seed0") != old, "the one changed last"
    os.utime(old.path / "identity.json", (time.time() + 9,) * 2)
    assert select_one(runs, "salt/n1_gpu1/seed0") == old
    with pytest.raises(DataError, match="name one of them"):
        select_one(runs, "salt/n1_gpu1")
    with pytest.raises(DataError, match="there are salt/n1_gpu1/seed0, "):
        select(runs, ["sugar"])


def test_statistics_of_sessions():
    first, second = session_statistics(SESSIONS, HISTORY, step=63)
    assert (first["steps"], first["epochs"], first["seconds"]) == (40, 4, 8.0)
    assert (second["steps"], second["epochs"], second["samples_per_second"]) == (23, 2, 200.0)
    assert second["validation_loss"] == HISTORY[-1]["validation_loss"]
    assert session_statistics(SESSIONS[:1], [], 3)[0]["samples_per_second"] is None


def test_show_has_sessions_losses_and_checkpoints(base, capsys):
    assert main(["show", "salt"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "2026-01-03 03:04" in said
    assert said.count("milestone") == 2
    assert said.count("intact") == EPOCHS
    assert "learning_rate: 0.1" in said
    flip(find_runs(base / "runs")[0].steps[-1].path / "state.pt")
    assert main(["show", "salt"]) == ExitCode.DATA
    assert "checksum" in capsys.readouterr().out


def test_the_chart_runs_down_and_marks_the_resumption():
    rows = loss_chart(HISTORY).plain.splitlines()
    column = len(rows[0]) - 12  # two columns an epoch
    assert rows[0].startswith("        2 ")
    assert rows[0][column] == "○"
    # 2, 1, 0.67 ... and 1, 0.5, 0.33 ...: the same curve twice, a factor of 2 apart
    for mark in "○●":
        where = [next(i for i, r in enumerate(rows) if r[column + 2 * e] == mark) for e in (0, 5)]
        assert where[0] < where[1]
    assert all(row[column + 7] == "┊" for row in rows[:-1])


def test_list_and_latest(base, run, capsys):
    assert main(["list"]) == ExitCode.OK
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:8] == [*run.parts, "6", "60", "0.1667", "0.3333"]
    assert row[8:10] == ["2", "idle"]
    flip(run.steps[-1].path / "state.pt")
    assert main(["latest"]) == ExitCode.OK
    told = capsys.readouterr()
    assert told.out == f"runs/{run.name}/step_0000000050/state.pt\n"
    assert "step_0000000060: damaged, the checksum of state.pt" in told.err


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("metrics.jsonl", "", "it lacks the records of epochs 1, 2, 3 and 3 more"),
        ("metrics.jsonl", None, "it lacks the records of epochs 1, 2, 3 and 3 more"),
        ("sessions.jsonl", '{"begun"\n', "its lines 1 are damaged and left out"),
        (
            "sessions.jsonl",
            '{"begun": 1, "seconds": {}, "end_step": 20, "job": ""}\n',
            "it ends at step 20, before the newest checkpoints",
        ),
        ("target.json", "{}", "it names no milestone"),
        ("target.json", "{", "it is not the target of a run as it was written"),
    ],
)
def test_records_that_are_damaged_are_named(run, file, content, told, capsys):
    path = run.path / file
    path.unlink(missing_ok=True) if content is None else path.write_text(content)
    assert main(["list"]) == ExitCode.OK
    assert f"{path}: damaged, " in capsys.readouterr().err.replace(
        "runs/", f"{run.path.parents[3]}/"
    )
    assert main(["verify"]) == ExitCode.DATA
    assert told in capsys.readouterr().out


def test_fewer_epochs_and_a_time_that_was_not_written_any_more_are_no_damage(run, capsys):
    write_target(run.path, 3, None)
    metrics = run.path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))
    sessions = '{"begun": 1, "seconds": {}, "end_step": 50, "job": ""}\n'  # of steps up to 60
    (run.path / "sessions.jsonl").write_text(sessions)
    assert main(["verify"]) == ExitCode.OK, capsys.readouterr().out


@pytest.mark.parametrize(
    "kind",
    [
        "state",
        "manifest",
        "file",
        "identity",
        "output",
        "missing",
        "receipt",
        "unsigned",
        "other",
        "scores",
    ],
)
def test_verify_finds_all_damage(base, run, kind, capsys):
    scores = base / "results/evaluate/salt/n1_gpu1/seed0/metrics.json"
    write_sealed(scores, {"test": {"head": 0.5}})
    assert main(["verify"]) == ExitCode.OK
    assert f"{EPOCHS + 4} intact, 0 damaged" in capsys.readouterr().out
    output = base / "results/train/salt/n1_gpu1/seed0/epoch_2.ckpt"
    if kind == "state":
        flip(run.steps[2].path / "state.pt")
    elif kind == "manifest":
        flip(run.steps[2].path / "manifest.json")
    elif kind == "file":
        shutil.rmtree(run.steps[2].path)
        run.steps[2].path.write_bytes(b"")
    elif kind == "identity":
        (run.path / "identity.json").write_text('{"seed": 8}')
    elif kind == "output":
        flip(output)
    elif kind == "missing":
        output.unlink()
    elif kind == "unsigned":
        output.with_suffix(".json").unlink()
    elif kind == "other":
        receipt = output.with_suffix(".json")
        receipt.write_text(receipt.read_text().replace("epoch_2.ckpt", "epoch_4.ckpt"))
    elif kind == "scores":
        scores.write_text(scores.read_text().replace("0.5", "0.4"))
    else:
        output.with_suffix(".json").write_text("{")
    assert main(["verify"]) == ExitCode.DATA
    assert f"{EPOCHS + 3} intact, 1 damaged" in capsys.readouterr().out
    found = [*verify(find_runs(base / "runs")), *verify_outputs(base / "results")]
    assert sum(finding.problem is not None for finding in found) == 1


def test_clean_does_nothing_unasked(base, run, capsys):
    before = sorted(base.rglob("*"))
    assert main(["clean", "--keep", "1"]) == ExitCode.OK
    assert "add --yes" in capsys.readouterr().out
    assert sorted(base.rglob("*")) == before


def test_clean_keeps_milestones_and_the_newest(base, run, capsys):
    (run.path / "tmp_step_0000000007").mkdir()
    (run.path / ".metrics.jsonl.partial").write_text("x")
    assert main(["clean", "--keep", "1", "--yes"]) == ExitCode.OK
    assert "removed" in capsys.readouterr().out
    assert steps(run.path) == [20, 40, 60]
    assert not list(run.path.glob("tmp_*")) + list(run.path.glob("*.partial"))
    assert main(["verify"]) == ExitCode.OK


def test_clean_counts_only_intact_steps(base, run):
    flip(run.steps[-1].path / "state.pt")
    assert main(["clean", "--keep", "1", "--yes"]) == ExitCode.OK
    assert steps(run.path) == [20, 40, 50, 60]


def test_clean_leaves_steps_alone_whose_manifest_is_damaged(base, run):
    (run.steps[0].path / "manifest.json").write_text("{}")
    assert main(["clean", "--keep", "1", "--yes"]) == ExitCode.OK
    assert steps(run.path) == [10, 20, 40, 60]


def test_clean_refuses_a_run_in_training_and_no_steps(base, run, capsys):
    removals = plan_cleaning([run], keep=1)
    with run.store().writing():
        assert main(["clean", "--yes", "--keep", "1", "salt"]) == ExitCode.LOCKED
        assert main(["clean", "--yes", "--keep", "1"]) == ExitCode.OK
        said = capsys.readouterr().out
        assert "left alone" in said
        assert "nothing to remove" in said
        with pytest.raises(LockedError):
            clean(removals)  # it began after the list was made
    assert steps(run.path) == [10, 20, 30, 40, 50, 60]
    assert main(["clean", "--keep", "0"]) == ExitCode.DATA
    assert "expected 1 or more" in capsys.readouterr().err


def test_only_old_run_hashes_without_receipt_are_removed(base, run):
    unused = make_run(base, rate=0.3, epochs=1, receipt=False)
    os.utime(unused / "identity.json", (1, 1))
    for file in unused.rglob("*.*"):
        os.utime(file, (1, 1))
    newest = make_run(base, rate=0.2, epochs=1, receipt=False)
    other = make_run(base, experiment="head", epochs=1, receipt=False)
    assert main(["clean", "--run-hashes"]) == ExitCode.OK
    assert unused.is_dir()
    assert main(["clean", "--run-hashes", "--yes"]) == ExitCode.OK
    assert not unused.exists()
    assert all(path.is_dir() for path in (run.path, newest, other))


def test_run_hashes_are_kept_where_receipts_cannot_be_read(base, run, capsys):
    assert main(["clean", "--run-hashes", "--results", "elsewhere"]) == ExitCode.DATA
    assert "--results" in capsys.readouterr().err
    (base / "results/train/salt/n1_gpu1/seed0/epoch_2.json").write_text("{")
    assert main(["clean", "--run-hashes"]) == ExitCode.DATA


def test_usage_counts_shared_bytes(run, tmp_path):
    os.link(run.steps[1].path / "state.pt", tmp_path / "as_earlier_versions_published")
    total, freed = disk_usage([run.path])
    assert total - freed == (run.steps[1].path / "state.pt").stat().st_size
    assert total == sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())


def test_backup_can_be_stopped_repeated_and_copied_back(base, run, capsys):
    assert main(["backup", "safe"]) == ExitCode.OK
    assert "6 steps copied and verified" in capsys.readouterr().out
    copy = find_runs(base / "safe")[0]
    assert copy.parts == run.parts
    assert copy.history == HISTORY
    assert main(["verify", "--root", "safe"]) == ExitCode.OK
    # A kill in the midst of a copy, and a bit that fell over in another.
    copy.steps[1].path.rename(copy.path / "tmp_step_0000000020")
    flip(copy.steps[2].path / "state.pt")
    kept = (copy.steps[3].path / "state.pt").stat().st_ino
    capsys.readouterr()
    assert main(["backup", "safe"]) == ExitCode.OK
    assert "2 steps copied and verified, 4 were there" in capsys.readouterr().out
    assert (copy.steps[3].path / "state.pt").stat().st_ino == kept
    shutil.rmtree(base / "runs")
    assert main(["backup", "--root", "safe", "runs"]) == ExitCode.OK
    assert main(["verify"]) == ExitCode.OK
    assert run.store().latest().load()["w"][0] == EPOCHS


def test_backup_does_not_pass_damage_on(base, run, capsys):
    flip(run.steps[-1].path / "state.pt")
    assert main(["backup", "safe"]) == ExitCode.DATA
    assert "5 steps copied and verified, 0 were there, 1 damaged" in capsys.readouterr().out
    assert steps(base / "safe" / run.name) == [10, 20, 30, 40, 50]
    assert not list((base / "safe" / run.name).glob("tmp_*"))


def test_backup_refuses_its_own_root_and_a_run_in_training(base, run, capsys):
    assert main(["backup", "runs/copy"]) == ExitCode.DATA
    assert main(["backup", "safe"]) == ExitCode.OK
    with find_runs(base / "safe")[0].store().writing():
        assert main(["backup", "safe"]) == ExitCode.LOCKED
    with run.store().writing():  # reading is harmless
        assert main(["backup", "safe"]) == ExitCode.OK


def test_no_such_root_is_one_sentence(tmp_path, capsys):
    assert main(["list", "--root", str(tmp_path / "no")]) == ExitCode.DATA
    assert "--root" in capsys.readouterr().err


def test_a_backup_that_a_full_disk_stops_keeps_whole_steps_alone(base, run, capsys, monkeypatch):
    copied = shutil.copy2

    def full(source, target):
        if "step_0000000030" in str(source) and "state" in str(source):
            Path(target).write_bytes(b"part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return copied(source, target)

    monkeypatch.setattr(shutil, "copy2", full)
    assert main(["backup", "safe"]) == ExitCode.NO_SPACE
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "the steps copied before are intact: make room and run the same command again" in said
    (copy,) = find_runs(base / "safe")
    assert steps(copy.path) == [10, 20]
    assert [one.problem for one in verify([copy])][-2:] == [None, None]
    assert copy.leftovers == []
    monkeypatch.undo()
    monkeypatch.chdir(base)
    assert main(["backup", "safe"]) == ExitCode.OK
    assert steps(copy.path) == steps(run.path)
