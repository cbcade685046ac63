"""The checkpoint store under damage, full disks, kills, other owners and hostile files."""

import contextlib
import errno
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from millrace.errors import DataError, ExitCode
from millrace.files import OutputError
from millrace.training import store as store_module
from millrace.training.owner import LockedError, Owner
from millrace.training.store import CheckpointStore, Manifest, Position, load_state, publish


def make_store(root, keep=2):
    return CheckpointStore(root / "store", "a" * 16, "v1", keep=keep)


def commit(store, *positions, milestones=()):
    """Commit (step, epoch, batch); the state says which step it is."""
    with store.writing():
        for position in positions:
            state = {"step": position[0], "w": torch.full((64,), float(position[0]))}
            store.commit(state, Position(*position), milestone=position[0] in milestones)


def steps(store):
    """Numbers of the steps, or the names of all that is there if something else is."""
    names = sorted(p.name for p in store.root.iterdir() if not p.name.endswith(".guard"))
    strange = [name for name in names if not name.startswith("step_")]
    return strange or [int(name.removeprefix("step_")) for name in names]


def refusal(code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture
def two_steps(tmp_path):
    store = make_store(tmp_path)
    commit(store, (10, 1, 0), (20, 2, 0))
    return store


def test_a_state_round_trips(tmp_path) -> None:
    tensors = {"w": torch.randn(3, 4), "c": torch.randn(5, dtype=torch.complex64)}
    state = {
        "model": tensors,
        "optimizer": {"state": {0: {"n": 1}}, "param_groups": [{"lr": 1e-3}]},
        "history": [{"epoch": 1, "loss": 0.5, "none": None, "flag": True, "name": "ü"}],
        "rng": [{"python": [3, [1, 2, 3], None]}],
    }
    store = make_store(tmp_path)
    with store.writing():
        made = store.commit(state, Position(120, 4, 0), milestone=False)
    found = store.latest()
    assert found == made
    assert (found.manifest.step, found.manifest.epoch, found.manifest.token) == (120, 4, 1)
    loaded = found.load()
    for name, tensor in loaded.pop("model").items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    assert loaded == {key: state[key] for key in ("optimizer", "history", "rng")}
    assert steps(store) == [120]


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_any_flipped_bit_is_noticed(two_steps, file) -> None:
    path = two_steps.root / "step_0000000020" / file
    data = path.read_bytes()
    # Every bit of the record: a flip there can leave valid JSON that says another epoch.
    bits = range(8 * len(data))
    for bit in bits if file == "manifest.json" else random.Random(3).sample(bits, 200):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert two_steps.latest().manifest.step == 10, f"bit {bit} of {file}"
        assert two_steps.at_epoch(2) is None
        assert two_steps.at_epoch(3) is None
    assert two_steps.latest().load()["step"] == 10


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("size", [0, 1, 0.5, -1, None])
def test_truncated_and_missing_files_are_noticed(two_steps, file, size) -> None:
    path = two_steps.root / "step_0000000020" / file
    data = path.read_bytes()
    if size is None:
        path.unlink()
    else:
        path.write_bytes(data[: int(size * len(data)) if 0 < size < 1 else size])
    assert two_steps.latest().manifest.step == 10
    assert two_steps.at_epoch(2) is None


def test_a_bad_sector_counts_as_damage(two_steps, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "checksum", refusal(errno.EIO))
    assert two_steps.latest() is None
    assert two_steps.at_epoch(2) is None


def test_damaged_steps_are_replaced_and_leftovers_of_kills_removed(two_steps) -> None:
    damaged = two_steps.root / "step_0000000020"
    shutil.copytree(damaged, two_steps.root / "tmp_0000000030_1")
    assert two_steps.latest().manifest.step == 20
    (damaged / "state.pt").write_bytes(b"torn")
    commit(two_steps, (20, 2, 0))
    assert two_steps.latest().load()["step"] == 20
    assert steps(two_steps) == [10, 20]


def test_order_is_by_step_never_by_time(tmp_path) -> None:
    store = make_store(tmp_path, keep=5)
    commit(store, (9, 1, 0), (18, 2, 0), (100, 11, 1))
    for age, path in enumerate(sorted(store.root.glob("step_*"), reverse=True)):
        for one in (path, *path.iterdir()):
            os.utime(one, (0, 4e9 - 1e9 * (2 - age)))
    assert store.latest().manifest.step == 100
    commit(store, (117, 13, 0), (126, 14, 0), (135, 15, 0))
    assert steps(store) == [18, 100, 117, 126, 135]


def test_other_identities_are_passed_over(two_steps) -> None:
    other = CheckpointStore(two_steps.root, "b" * 16, "v1")
    assert (other.latest(), other.at_epoch(2)) == (None, None)
    commit(other, (15, 2, 0))
    assert other.at_epoch(2).manifest.step == 15
    assert two_steps.at_epoch(2).manifest.step == 20


def test_latest_up_to_an_epoch(tmp_path) -> None:
    store = make_store(tmp_path, keep=9)
    commit(store, (10, 1, 0), (13, 1, 3), (20, 2, 0), (21, 2, 1), (30, 3, 0))
    assert store.latest(0) is None
    assert [store.latest(epoch).manifest.step for epoch in (1, 2, 3, 4)] == [10, 20, 30, 30]
    (store.root / "step_0000000020" / "state.pt").write_bytes(b"")
    assert store.latest(2).manifest.step == 13
    assert store.at_epoch(1).manifest.step == 10  # not step 13, which lies within epoch 2
    assert store.at_epoch(2) is None


def test_prune_keeps_milestones_and_the_last(tmp_path) -> None:
    store = make_store(tmp_path)
    commit(store, *((n, n, 0) for n in range(1, 10)), milestones={3, 6})
    assert steps(store) == [3, 6, 8, 9]
    store.keep_permanently(store.at_epoch(8))
    commit(store, (10, 10, 0), (11, 11, 0), (12, 12, 0))
    assert steps(store) == [3, 6, 8, 11, 12]
    assert store.at_epoch(8).load()["step"] == 8


def test_prune_spares_what_is_committed_before_later_steps(tmp_path) -> None:
    """A run of 9 epochs is asked for the state after 6, which it did not keep."""
    store = make_store(tmp_path)
    commit(store, *((n, n, 0) for n in range(1, 10)), milestones={3})
    commit(store, (4, 4, 0))
    assert store.latest(6).manifest.step == 4
    commit(store, (5, 5, 0), (6, 6, 0), milestones={6})
    assert steps(store) == [3, 4, 5, 6, 8, 9]


def test_prune_keeps_the_last_end_of_an_epoch_for_a_roll_back(tmp_path) -> None:
    store = make_store(tmp_path)
    commit(store, (10, 1, 0), (20, 2, 0), (23, 2, 3), (25, 2, 5), (27, 2, 7))
    assert steps(store) == [20, 25, 27]
    store.discard_within(2)
    assert steps(store) == [20]


def test_prune_spares_milestones_whose_manifest_cannot_be_read(tmp_path) -> None:
    store = make_store(tmp_path)
    commit(store, (1, 1, 0), milestones={1})
    (store.root / "step_0000000001" / "manifest.json").write_text("{")
    commit(store, *((n, n, 0) for n in range(2, 7)))
    assert steps(store) == [1, 5, 6]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", [(os, "fsync"), (torch, "save")], ids=["fsync", "save"])
def test_a_refusing_file_system_is_a_sentence(two_steps, monkeypatch, code, where) -> None:
    monkeypatch.setattr(*where, refusal(code))
    with pytest.raises(OutputError, match="last committed step is untouched") as caught:
        commit(two_steps, (30, 3, 0))
    assert caught.value.exit_code == ExitCode.NO_SPACE
    assert os.strerror(code) in str(caught.value)
    assert steps(two_steps) == [10, 20]


def test_a_full_disk(two_steps) -> None:
    code = f"""
        import resource, torch
        from pathlib import Path
        from millrace.errors import UserError
        from millrace.training.store import CheckpointStore, Position
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        store = CheckpointStore(Path({str(two_steps.root)!r}), "a" * 16, "v1")
        for size in (1_000_000, 60_000, 50_000):  # refused early, and in the last blocks
            try:
                with store.writing():
                    store.commit({{"w": torch.zeros(size)}}, Position(30, 3, 0), milestone=False)
            except UserError as error:
                print(int(error.exit_code), error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith(f"74 {two_steps.root}: cannot be written") for line in lines)
    assert steps(two_steps) == [10, 20]
    assert two_steps.latest().load()["step"] == 20


def test_a_read_only_file_system(two_steps, tmp_path) -> None:
    mount = ["mount", "--bind", "-o", "ro", str(two_steps.root), str(two_steps.root)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    try:
        with pytest.raises(OutputError, match="Read-only"):
            commit(two_steps, (30, 3, 0))
    finally:
        subprocess.run(["umount", str(two_steps.root)], check=True)


def test_a_step_under_another_number_is_not_believed(two_steps) -> None:
    shutil.copytree(two_steps.root / "step_0000000010", two_steps.root / "step_0000000099")
    assert two_steps.latest().manifest.step == 20
    copied = two_steps.root / "step_0000000099"
    assert "step 10, which is not the one of its name" in Manifest.read(copied).problem(copied)


def test_what_is_published_shares_no_bytes_with_the_store(two_steps, tmp_path) -> None:
    checkpoint, output = two_steps.latest(), tmp_path / "out" / "epoch_2.ckpt"
    os.utime(checkpoint.path, (0, 0))
    output.parent.mkdir()
    os.link(checkpoint.path, output)  # as earlier versions published
    for _ in range(2):
        publish(checkpoint, output)
        with output.open("r+b") as file:
            file.write(b"damaged in place")
        assert two_steps.latest() == checkpoint, "its checksum still agrees"
        assert abs(output.stat().st_mtime - time.time()) < 60
    publish(checkpoint, output)
    assert load_state(output)["step"] == 20
    assert [p.name for p in output.parent.iterdir()] == ["epoch_2.ckpt"]
    older = two_steps.latest(1)
    publish(older, output)
    assert load_state(output)["step"] == 10
    assert checkpoint.load()["step"] == 20


def test_a_full_disk_leaves_what_was_published(two_steps, tmp_path, monkeypatch) -> None:
    output = tmp_path / "epoch_2.ckpt"
    publish(two_steps.latest(), output)
    monkeypatch.setattr(shutil, "copyfile", refusal(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"epoch_2\.ckpt"):
        publish(two_steps.latest(), output)
    assert load_state(output)["step"] == 20
    assert not list(tmp_path.glob(".*"))


class Payload:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", ["system", "popen", "eval", "exec", "nested"])
def test_hostile_pickles_are_refused_unexecuted(tmp_path, kind) -> None:
    canary, path = tmp_path / "canary", tmp_path / "state.pt"
    payload = {
        "system": Payload(os.system, (f"touch {canary}",)),
        "popen": Payload(subprocess.Popen, (["touch", str(canary)],)),
        "eval": Payload(eval, (f"open({str(canary)!r}, 'w')",)),
        "exec": Payload(exec, (f"open({str(canary)!r}, 'w')",)),
        "nested": {"model": [Payload(Path.touch, (canary,))]},
    }[kind]
    for save in (torch.save, lambda value, to: to.write_bytes(pickle.dumps(value, 2))):
        save(payload, path)
        with pytest.raises(DataError, match="not a readable checkpoint"):
            load_state(path)
    time.sleep(0.02)
    assert not canary.exists()


@pytest.mark.parametrize("cleans", [False, True])
def test_an_owner_that_lost_the_lock_commits_nothing(two_steps, monkeypatch, cleans) -> None:
    lock, checksum = two_steps.root / "owner.json", store_module.checksum
    other = CheckpointStore(two_steps.root, two_steps.run_hash, "v1")
    with contextlib.ExitStack() as stack:

        def after_a_takeover(path):
            lock.unlink()
            stack.enter_context(other.writing() if cleans else Owner.claim(lock))
            return checksum(path)

        monkeypatch.setattr(store_module, "checksum", after_a_takeover)
        with pytest.raises(LockedError, match="stops without writing"):
            commit(two_steps, (30, 3, 0))
        assert lock.exists()
    assert steps(two_steps) == [10, 20]
