"""Starting from another run's weights: what is taken over, what is refused, what the run is called."""

import copy
import zlib

import pytest
import torch
from tensors import assert_same

from millrace.errors import ConfigError, DataError
from millrace.sealed import write_sealed
from millrace.training import run_hash
from millrace.training.segment import build_trainer
from millrace.training.warm_start import content_digest


@pytest.fixture
def checkpoint(make_trainer, run, tmp_path):
    path = tmp_path / "epoch_1.ckpt"
    torch.save(run(make_trainer(seed=7), 1), path)
    return path


def saved_as(checkpoint, change):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    other = checkpoint.with_name("other.ckpt")
    torch.save(state, other)
    return other


def test_weights_are_those_of_the_checkpoint_and_nothing_else_is(make_trainer, checkpoint):
    trainer = make_trainer(init_from={"checkpoint": str(checkpoint)})
    given = torch.load(checkpoint, weights_only=True)["model"]
    own = trainer.module.state_dict()
    assert all(torch.equal(own[n], given[n]) for n, _ in trainer.module.named_parameters())
    assert trainer.step == 0
    assert not trainer.optimizer.state_dict()["state"]
    assert trainer.history == []


def test_damaged_weights_are_refused_with_and_without_a_receipt(
    experiments, alone, checkpoint, tmp_path
):
    definition, files = experiments["gino"]
    train = definition["train"] | {"init_from": {"checkpoint": str(checkpoint)}}
    content = bytearray(checkpoint.read_bytes())
    vouches = {"file": "epoch_1.ckpt", "size": len(content), "crc32": zlib.crc32(content)}
    build_trainer(definition | {"train": train}, files, 0, alone)
    foreign = checkpoint.with_name("weights.ckpt")
    foreign.write_bytes(content)
    foreign.with_suffix(".json").write_text('["no receipt"]')
    elsewhere = train | {"init_from": {"checkpoint": str(foreign)}}
    build_trainer(definition | {"train": elsewhere}, files, 0, alone)
    content[len(content) // 2] ^= 64
    checkpoint.write_bytes(content)
    with pytest.raises(DataError, match=r"epoch_1\.ckpt: damaged, a checksum inside"):
        build_trainer(definition | {"train": train}, files, 0, alone)
    write_sealed(tmp_path / "epoch_1.json", {"identity": "a", "checkpoint": vouches})
    with pytest.raises(DataError, match=r"epoch_1\.ckpt: damaged, its size or checksum"):
        build_trainer(definition | {"train": train}, files, 0, alone)


def test_trained_weights_are_not_expected_to_improve(make_trainer, run, checkpoint):
    trainer = make_trainer(init_from={"checkpoint": str(checkpoint)})
    run(trainer, 1)
    assert "initial_validation_loss" not in trainer.history[0]


def test_the_scales_of_the_new_data_stay(make_trainer, checkpoint):
    def other_data(state):
        state["model"]["increment_scale_V"] *= 10

    trainer = make_trainer(init_from={"checkpoint": str(saved_as(checkpoint, other_data))})
    assert torch.equal(trainer.module.increment_scale_V, make_trainer().module.increment_scale_V)


def test_the_best_weights_are_taken(make_trainer, run, tmp_path):
    state = run(make_trainer(ema=0.9), 1)
    torch.save(state, tmp_path / "a.ckpt")
    trainer = make_trainer(init_from={"checkpoint": str(tmp_path / "a.ckpt")})
    average = state["ema_model"]
    own = trainer.module.state_dict()
    assert all(torch.equal(own[n], average[n]) for n, _ in trainer.module.named_parameters())


def _drop(state):
    del state["model"]["net.projection.fcs.0.bias"]


def _add(state):
    state["model"]["net.more"] = torch.zeros(1)


def _reshape(state):
    state["model"]["net.projection.fcs.0.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"missing: net\.projection\.fcs\.0\.bias"),
        (_add, r"unexpected: net\.more"),
        (_reshape, r"shape: net\.projection\.fcs\.0\.bias \(has \[3\], needs \[\d+\]\)"),
    ],
)
def test_mismatches_are_named(make_trainer, checkpoint, change, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(init_from={"checkpoint": str(saved_as(checkpoint, change))})


def test_a_missing_checkpoint_is_named(make_trainer, tmp_path):
    with pytest.raises(DataError, match=r"gone\.ckpt: no such checkpoint"):
        make_trainer(init_from={"checkpoint": str(tmp_path / "gone.ckpt")})


def test_frozen_parameters_stay_and_the_others_learn(make_trainer, run, checkpoint):
    freeze = ["net.gno_in", "net.fno_blocks"]
    trainer = make_trainer(init_from={"checkpoint": str(checkpoint), "freeze": freeze})
    before = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    run(trainer, 1)
    for name, parameter in trainer.module.named_parameters():
        frozen = name.startswith(tuple(freeze))
        assert torch.equal(parameter, before[name]) == frozen, name


def test_frozen_runs_resume_bitwise(make_trainer, run, resume, checkpoint):
    keys = {"init_from": {"checkpoint": str(checkpoint), "freeze": ["net.gno_in"]}}
    assert_same(run(make_trainer(**keys), 1)["model"], run(resume(1, 5, **keys), 1)["model"])


@pytest.mark.parametrize(
    ("freeze", "message"),
    [(["net.gn0"], "no parameter begins with 'net.gn0'"), ([""], "expected text|leaves no")],
)
def test_freezing_nothing_or_all_is_refused(make_trainer, checkpoint, freeze, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(init_from={"checkpoint": str(checkpoint), "freeze": freeze})


def test_the_identity_depends_on_content_not_on_path(experiments, alone, checkpoint):
    definition, files = experiments["gino"]

    def name(path):
        blocks = copy.deepcopy(definition)
        if path is not None:
            blocks["train"]["init_from"] = {"checkpoint": str(path)}
        return run_hash.digest(build_trainer(blocks, files, 0, alone)[1])

    moved = checkpoint.with_name("moved.ckpt")
    moved.write_bytes(checkpoint.read_bytes())

    def later(state):
        state["sessions"] = []

    def nudge(state):
        state["model"]["net.projection.fcs.0.bias"][0] += 1e-3

    same = [name(checkpoint), name(moved), name(saved_as(checkpoint, later))]
    assert len(set(same)) == 1
    assert len({same[0], name(None), name(saved_as(checkpoint, nudge))}) == 3


def test_imaginary_parts_are_part_of_the_content(checkpoint):
    def conjugate(state):
        for name, value in state["model"].items():
            if value.is_complex():
                state["model"][name] = value.conj().resolve_conj()

    assert content_digest(saved_as(checkpoint, conjugate)) != content_digest(checkpoint)


def test_low_rank_updates_learn_from_rollouts(experiments, alone, make_trainer, run, tmp_path):
    base = run(make_trainer("aurora"), 1)
    torch.save(base, tmp_path / "base.ckpt")
    definition, files = experiments["aurora"]
    tuned = {
        "data": definition["data"] | {"output_steps": 2},
        "model": definition["model"] | {"lora_rank": 2, "push_forward": True},
        "train": definition["train"] | {"init_from": {"checkpoint": str(tmp_path / "base.ckpt")}},
    }
    trainer = build_trainer(tuned, files, 0, alone)[0]
    state = run(trainer, 1)
    updates = {name for name in state["model"] if ".lora_" in name}
    assert_same({n: v for n, v in state["model"].items() if n not in updates}, base["model"])
    assert all(state["model"][name].abs().max() > 0 for name in updates)
    assert trainer.history[-1]["validation_loss"] > 0
