"""The launcher in real SLURM jobs: several nodes, time limit, cancelling, requeueing, losses."""

import json
import signal
from pathlib import Path

import pytest
from pausing import slowed
from slurm_jobs import Training, ranks, same_state, trainers, wait, workers

from millrace.launch import launch
from millrace.schedulers import State
from millrace.training.store import load_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(samples, definition, tmp_path_factory):
    """Final state of a run on two GPUs that was never stopped."""
    alone = Training(tmp_path_factory.mktemp("whole"), samples, definition, jobs=None)
    request = alone.request(epochs=60)
    assert launch(request, cpus=2) == 0
    return load_state(Path(request.checkpoint))


def test_ranks_of_two_nodes_train_like_one_process(training):
    request = training.request("n2_gpu2", epochs=3)
    job = training.submit(request, nodes=2, gpus=2)
    training.wait_for_end(request, job)
    alone = training.request("n1_gpu1", epochs=3, name="alone")
    assert launch(alone, cpus=1) == 0
    receipts = [json.loads(Path(r.receipt).read_text()) for r in (request, alone)]
    assert [r["sessions"][0]["ranks"] for r in receipts] == [4, 1]
    # The loss is a mean over all samples of the epoch: one sample twice, or none, would show.
    losses = [[record["train_loss"] for record in r["history"]] for r in receipts]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_cancelled_job_saves_and_stays_cancelled(training, jobs, whole):
    request = training.request(epochs=60)
    job = training.submit(request)
    training.wait_for_epoch(request, 5)
    jobs.cancel([job])
    wait(20, lambda: jobs.jobs([job])[job].state.is_over, "the end of the job")
    assert jobs.jobs([job])[job].state is State.FAILED
    wait(5, lambda: not workers(), "the end of all workers")
    done = max(training.epochs(request))
    assert done < 60, "cancelled too late to prove anything"
    again = training.submit(request)
    training.wait_for_end(request, again)
    assert training.epochs(request) == list(range(1, 61)), "a finished epoch was lost"
    same_state(load_state(Path(request.checkpoint)), whole)


def test_requeued_job_continues_under_its_id(training, slurm, whole):
    request = training.request(epochs=60)
    job = training.submit(request)
    training.wait_for_epoch(request, 5)
    assert slurm.run("scontrol", "requeue", job).returncode == 0
    training.wait_for_end(request, job)
    state = load_state(Path(request.checkpoint))
    assert [session["job"] for session in state["sessions"]] == [job, job]
    same_state(state, whole)


def test_node_that_dies_is_replaced(training, slurm, whole):
    """Its daemon, the job's step on it and the ranks are gone at once, as when power is lost."""
    request = training.request("n2_gpu1", epochs=60)
    job = training.submit(request, nodes=2, gpus=1, cpus=1)
    training.wait_for_epoch(request, 5)
    lost = training.jobs.jobs([job])[job].nodes[1]
    slurm.kill_node(lost)
    try:
        training.wait_for_end(request, job, seconds=480)
    finally:
        slurm.start_node(lost)
        slurm.run("scontrol", "update", f"NodeName={lost}", "State=RESUME")
    state = load_state(Path(request.checkpoint))
    assert len(state["sessions"]) >= 2
    # Two ranks with a thread each are the same two, wherever they are.
    same_state(state, whole)


def test_rank_that_dies_or_hangs_is_started_again(training, whole):
    request = training.request(epochs=60)
    job = training.submit(request)
    victims = []
    for number in (signal.SIGKILL, signal.SIGSTOP):
        # Some epochs after each start: a rank that hangs is known by how long steps take.
        training.wait_for_epoch(request, max(training.epochs(request), default=0) + 5)
        victims.append(ranks(job)[1])
        victims[-1].send_signal(number)
    training.wait_for_end(request, job)
    state = load_state(Path(request.checkpoint))
    assert len(state["sessions"]) == 3
    assert training.log(request).count("ChildFailedError") == 0, "they were started in vain"
    assert "connectFullMesh failed" not in training.log(request), "they looked for those before"
    assert not any(victim.is_running() for victim in victims)
    same_state(state, whole)


def test_second_job_on_a_run_ends_the_first(training, jobs, whole):
    """As after a killed Snakemake: the job it has forgotten still trains."""
    request = training.request(epochs=60)
    first = training.submit(request)
    with slowed(lambda: len(training.epochs(request)), trainers):
        training.wait_for_epoch(request, 5)
        second = training.submit(request)
        wait(120, lambda: jobs.jobs([first])[first].state.is_over, "the end of the first")
    training.wait_for_end(request, second)
    assert jobs.jobs([first])[first].state is State.FAILED
    state = load_state(Path(request.checkpoint))
    assert [session["job"] for session in state["sessions"]] == [first, second]
    epochs = training.epochs(request)
    assert epochs == sorted(set(epochs)), "both wrote"
    same_state(state, whole)
