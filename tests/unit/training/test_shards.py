"""States in shards: put together, checked, and safe from kills and hostile files."""

import io
import json
import os
import pickle
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from millrace.errors import DataError
from millrace.files import OutputError
from millrace.runs.inventory import Run
from millrace.runs.maintenance import backup
from millrace.training.parallel.checkpoints import _Index, load_all, load_into, save
from millrace.training.store import CheckpointStore, Position, load_state, publish

FACTS = {
    "weights": ["model"],
    "names": ["b", "w"],
    "trained": ["b", "w"],
    "steps": {"w": 3.0},
    "group": {"lr": 0.1},
}
PARTS = ("a", "n1_gpu2", "seed0", "a" * 16)


def tensors(value):
    w = torch.full((4, 3), float(value))
    return {"model/w": w, "model/b": torch.arange(2.0), "exp_avg/w": w + 1, "exp_avg_sq/w": w + 2}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path.joinpath("runs", *PARTS), PARTS[-1], "v1")


def commit(store, alone, *steps, write=None):
    with store.writing():
        for step in steps:
            state = {"step": step, "sharded": FACTS}
            write_shards = write or partial(save, tensors(step), ranks=alone)
            store.commit(state, Position(step, step, 0), step == 1, write_shards)


def test_shards_are_put_together(store, alone, tmp_path) -> None:
    commit(store, alone, 1, 2)
    checkpoint = store.latest()
    state = checkpoint.load()
    assert state["model"]["w"][0, 0] == 2
    assert list(state["model"]) == ["b", "w"]
    [(number, moments)] = state["optimizer"]["state"].items()
    assert (number, float(moments["step"]), float(moments["exp_avg"][0, 0])) == (1, 3.0, 3.0)
    assert state["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0, 1]}]
    publish(checkpoint, tmp_path / "epoch_2.ckpt")
    alike = load_state(tmp_path / "epoch_2.ckpt")
    assert alike.keys() == state.keys() == {"step", "model", "optimizer"}
    assert torch.equal(alike["model"]["w"], state["model"]["w"])


def test_a_state_in_one_file_is_recorded_as_ever(store, alone) -> None:
    with store.writing():
        store.commit({"step": 1}, Position(1, 1, 0), milestone=False)
    assert "shards" not in json.loads((store.root / "step_0000000001/manifest.json").read_text())


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata"])
def test_damaged_shards_are_passed_over(store, alone, file, damage) -> None:
    commit(store, alone, 1, 2)
    path = store.root / "step_0000000002" / "shards" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    if damage == "remove":
        path.unlink()
    assert store.latest().manifest.step == 1
    run = Run(store.root, *PARTS)
    assert [step.problem() is None for step in run.steps] == [True, False]


def test_a_backup_has_the_shards(store, alone, tmp_path) -> None:
    commit(store, alone, 1)
    run = Run(store.root, *PARTS)
    assert [what for _, what in backup(run, tmp_path / "backup")] == ["copied"]
    copy = CheckpointStore(tmp_path.joinpath("backup", *PARTS), PARTS[-1], "v1")
    assert copy.latest().load()["model"]["w"][0, 0] == 1


def test_a_kill_while_shards_are_written_leaves_the_step_before(store, alone) -> None:
    commit(store, alone, 1)

    def killed(directory):
        save(tensors(2), directory, alone)
        (directory / ".metadata").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        commit(store, alone, 2, write=killed)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [path.name for path in store.root.glob("tmp_*")], "it was killed too early or too late"
    assert store.latest().manifest.step == 1
    commit(store, alone, 3)
    assert not list(store.root.glob("tmp_*"))
    assert store.latest().load()["model"]["w"][0, 0] == 3


def test_a_full_disk_is_a_sentence(store, alone, monkeypatch) -> None:
    commit(store, alone, 1)

    def refuse(*_):
        raise OSError(28, os.strerror(28))

    def on_a_full_disk(directory):
        monkeypatch.setattr(os, "fsync", refuse)
        return save(tensors(2), directory, alone)

    with pytest.raises(OutputError, match=r"cannot be written \(No space"):
        commit(store, alone, 2, write=on_a_full_disk)
    monkeypatch.undo()
    assert store.latest().manifest.step == 1


class Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_an_index_is_not_executed(tmp_path, alone) -> None:
    save(tensors(1), tmp_path / "shards", alone)
    assert load_all(tmp_path / "shards").keys() == tensors(1).keys()
    (tmp_path / "shards/.metadata").write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    for read in (load_all, partial(load_into, tensors(1))):
        with pytest.raises(DataError, match=r"not a readable checkpoint .*is no part of a"):
            read(tmp_path / "shards")
    assert not (tmp_path / "canary").exists()


class Attribute:
    """Pickled as Python before 3.11.4 does it with members of enumerations."""

    def __init__(self, *of):
        self.of = of

    def __reduce__(self):
        return getattr, self.of


def test_of_attributes_only_members_of_enumerations_are_read() -> None:
    member = Attribute(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    found = _Index(io.BytesIO(pickle.dumps(member))).load()
    assert found is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    for other in (Attribute(torch.Size, "numel"), Attribute(_MEM_FORMAT_ENCODING, "mro")):
        with pytest.raises(pickle.UnpicklingError, match="an attribute is no part of a checkpoint"):
            _Index(io.BytesIO(pickle.dumps(other))).load()


def test_what_is_not_there_is_told(tmp_path, alone) -> None:
    save(tensors(1), tmp_path / "shards", alone)
    with pytest.raises(DataError, match="model/other"):
        load_into({"model/other": torch.zeros(2)}, tmp_path / "shards")
