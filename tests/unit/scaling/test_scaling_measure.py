"""Measurements of real steps: what is recorded is what was trained."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiers import slow_for

from millrace.scaling.measure import MESSAGE_BYTES, measure
from millrace.scaling.records import TIMED_PARTS, read
from millrace.scaling.request import MeasureRequest
from millrace.scaling.worker import measure_throughput
from millrace.systems.registry import models
from millrace.training.distributed import Ranks
from millrace.training.segment import build_trainer

STEPS = 6


@pytest.fixture
def request_for(samples, definition, tmp_path):
    def build(layout="n1_gpu1", mode="strong", **train):
        described = copy.deepcopy(definition)
        described["train"] |= train
        return MeasureRequest(
            experiment="wave",
            layout=layout,
            mode=mode,
            repeat=0,
            definition=described,
            files={role: str(path) for role, path in samples.items()},
            output=str(tmp_path / f"{layout}_{mode}.json"),
            steps=STEPS,
        )

    return build


@pytest.fixture(scope="module")
def one():
    return Ranks(0, 1, torch.device("cpu"))


def first_losses(request, ranks):
    trainer, _ = build_trainer(request.definition, request.files, 0, ranks)
    losses = []
    for batch in list(trainer.batches(0))[:STEPS]:
        losses.append(float(trainer.train_step(batch)))
        trainer.step += 1
    return losses


def test_one_rank(request_for, one):
    request = request_for()
    run = measure(request, one)
    assert run.device.kind == "cpu"
    assert run.backend == "none"
    assert run.bandwidth == ()
    times = {name: run.times.array(name) for name in (*TIMED_PARTS, "total")}
    assert times["total"].shape == (1, STEPS)
    assert (times["communication"] == 0).all()
    for name in ("forward", "backward", "optimiser", "data"):
        assert (times[name] > 0).all(), name
    computed = sum(times[name] for name in TIMED_PARTS)
    # Nearly all of a step is in one of its parts.
    assert (computed <= times["total"]).all()
    assert np.median(computed / times["total"]) > 0.8
    assert run.flops_per_sample > 1e3
    assert run.gradient_bytes == 4 * run.parameters
    # The recorded steps are the first of a training, whatever the warm-up did.
    assert list(run.losses) == first_losses(request, one)


@pytest.mark.slow
def test_two_ranks_train_the_same_problem(request_for, one):
    request = request_for("n1_gpu2")
    assert measure_throughput(request, cpus=2) == 0
    run = read(Path(request.output))
    assert run.backend == "gloo"
    assert run.losses == pytest.approx(first_losses(request, one), rel=1e-5)
    communication = run.times.array("communication")
    assert communication.shape == (2, STEPS)
    assert (communication > 0).all()
    assert [t.bytes for t in run.bandwidth] == list(MESSAGE_BYTES)
    assert {t.link for t in run.bandwidth} == {"intra"}


@pytest.mark.slow
def test_weak_scaling_keeps_the_batch_of_a_rank(request_for, one):
    strong, weak = request_for(mode="strong"), request_for("n1_gpu2", "weak")
    assert measure_throughput(weak, cpus=2) == 0
    assert read(Path(weak.output)).global_batch == 2 * measure(strong, one).global_batch


@pytest.mark.slow
def test_an_error_of_the_user_is_one_sentence(request_for, capfd):
    request = request_for(learning_rat=1.0)
    assert measure_throughput(request, cpus=1) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == "error: train: unknown key 'learning_rat': did you mean 'learning_rate'?"


@pytest.mark.parametrize("model", slow_for(models(), lambda one: one[0] != "downscaler"))
def test_every_model_is_measured(experiments, one, tmp_path, model):
    """With noise that is drawn for each sample, and batches of several sizes."""
    definition, files = experiments[model]
    request = MeasureRequest(
        experiment="any",
        layout="n1_gpu1",
        mode="strong",
        repeat=0,
        definition=definition,
        files=files,
        output=str(tmp_path / "any.json"),
        steps=STEPS,
    )
    run = measure(request, one)
    of_the_first_epoch = first_losses(request, one)
    assert list(run.losses)[: len(of_the_first_epoch)] == of_the_first_epoch
    trainer = build_trainer(definition, files, 0, one)[0]
    assert run.samples_per_epoch == trainer.dataset.groups("train").sum()
    assert run.times.array("total").shape == (1, STEPS)
    assert (run.times.array("forward") > 0).all()
    assert run.flops_per_sample > 1e3
