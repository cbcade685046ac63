"""The launcher in real SLURM jobs: requeued, cancelled, taken over; ranks and nodes that are lost."""

import signal
from pathlib import Path

import pytest
from pausing import slowed
from slurm_jobs import Training, ranks, same_state, trainers, wait, workers

from millrace.launch.launcher import launch
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


def test_requeued_job_continues_and_a_cancelled_one_saves(training, jobs, slurm, whole):
    """Put back it goes on under its id; cancelled it stays so, and another goes on."""
    request = training.request(epochs=60)
    job = training.submit(request)
    with slowed(lambda: len(training.epochs(request)), trainers):
        training.wait_for_epoch(request, 5)
        assert slurm.run("scontrol", "requeue", job).returncode == 0
        wait(600, lambda: not ranks(job), "the end of all ranks")
        training.wait_for_epoch(request, max(training.epochs(request)) + 5)
        jobs.cancel([job])
        wait(600, lambda: jobs.jobs([job])[job].state.is_over, "the end of the job")
    assert jobs.jobs([job])[job].state is State.FAILED
    wait(600, lambda: not workers(), "the end of all workers")
    done = max(training.epochs(request))
    assert done < 60, "cancelled too late to prove anything"
    again = training.submit(request)
    training.wait_for_end(request, again)
    assert training.epochs(request) == list(range(1, 61)), "a finished epoch was lost"
    state = load_state(Path(request.checkpoint))
    assert [session["job"] for session in state["sessions"]] == [job, job, again]
    same_state(state, whole)


def test_node_that_dies_is_replaced(training, slurm, whole):
    """Its daemon, the job's step on it and the ranks are gone at once, as when power is lost."""
    request = training.request("n2_gpu1", epochs=60)
    job = training.submit(request, nodes=2, gpus=1, cpus=1)
    training.wait_for_epoch(request, 5)
    lost = training.jobs.jobs([job])[job].nodes[1]
    slurm.kill_node(lost)
    try:
        training.wait_for_end(request, job, seconds=900)
    finally:
        slurm.start_node(lost)
        slurm.run("scontrol", "update", f"NodeName={lost}", "State=RESUME")
    state = load_state(Path(request.checkpoint))
    assert len(state["sessions"]) >= 2
    # Two ranks with a thread each are the same two, wherever they are.
    same_state(state, whole)


def test_dead_and_hanging_ranks_are_started_again_and_another_job_takes_over(training, jobs, whole):
    request = training.request(epochs=60)
    first = training.submit(request)
    victims = []
    for number in (signal.SIGKILL, signal.SIGSTOP):
        # Some epochs after each start: a rank that hangs is known by how long steps take.
        training.wait_for_epoch(request, max(training.epochs(request), default=0) + 5)
        victims.append(ranks(first)[1])
        victims[-1].send_signal(number)
        wait(600, lambda: not victims[-1].is_running(), "the end of the rank")
    with slowed(lambda: len(training.epochs(request)), trainers):
        training.wait_for_epoch(request, max(training.epochs(request)) + 5)
        said = training.log(request)
        assert said.count("ChildFailedError") == 0, "they were started in vain"
        assert "connectFullMesh failed" not in said, "they looked for those before"
        # As after a killed Snakemake: the job it has forgotten still trains.
        second = training.submit(request)
        wait(600, lambda: jobs.jobs([first])[first].state.is_over, "the end of the first")
    training.wait_for_end(request, second)
    assert jobs.jobs([first])[first].state is State.FAILED
    state = load_state(Path(request.checkpoint))
    assert [session["job"] for session in state["sessions"]] == [first] * 3 + [second]
    epochs = training.epochs(request)
    assert epochs == sorted(set(epochs)), "both wrote"
    same_state(state, whole)
