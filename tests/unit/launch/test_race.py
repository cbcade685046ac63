"""Races without a scheduler: claims at the same moment, refusals, what comes after the end of a heat."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from millrace.errors import ExitCode
from millrace.launch import first_to_start as module
from millrace.launch.first_to_start import Entrant, Race, enter, run_race
from millrace.launch.launcher import Outcome
from millrace.schedulers import Job, SchedulerError, State
from millrace.training.deadline import Stop
from millrace.training.request import Request

LAYOUTS = ("n1_gpu4", "n2_gpu2", "n4_gpu1")


@pytest.fixture
def race(tmp_path):
    request = Request(
        experiment="wave",
        layout="-or-".join(LAYOUTS),
        seed=0,
        target_epoch=3,
        definition={},
        files={},
        runs=str(tmp_path / "runs"),
        checkpoint=str(tmp_path / "epoch_3.ckpt"),
        receipt=str(tmp_path / "epoch_3.json"),
    )
    return Race(request, "slurm", [Entrant(layout, 4, {"nodes": 1}) for layout in LAYOUTS])


class Jobs:
    """A queue whose jobs run when they are asked for, in the order of `starts`."""

    def __init__(self, starts=LAYOUTS, refuse=()):
        self.starts, self.refuse = list(starts), refuse
        self.submitted, self.cancelled = {}, []
        self.local = threading.local()

    def submit(self, command, resources, name, log):
        layout = command[-1]
        if layout in self.refuse:
            raise SchedulerError(f"{layout} is refused")
        job = str(len(self.submitted))
        self.submitted[job] = (Path(command[-2]), layout)
        return job

    def jobs(self, ids):
        ids = list(ids)
        if ids and self.starts:
            layout = self.starts.pop(0)
            job = next(j for j, (_, name) in reversed(self.submitted.items()) if name == layout)
            if job not in self.cancelled:
                self.local.job = job
                enter(self.submitted[job][0], layout)
                self.cancelled.append(job)  # it is over
        over = {*self.cancelled}
        return {j: Job(j, State.DONE if j in over else State.PENDING) for j in ids}

    def cancel(self, ids):
        self.cancelled += ids

    def allocation(self):
        return SimpleNamespace(job=self.local.job, requeue=lambda: False)


@pytest.fixture
def use(monkeypatch):
    """Take the place of scheduler and training: (jobs, outcomes of the trainings)."""

    def begin(jobs, outcomes=()):
        outcomes, trained = list(outcomes), []

        def train(request, cpus, surroundings):
            trained.append(request.trained_on)
            outcome = outcomes.pop(0) if outcomes else Outcome(ExitCode.OK)
            if outcome.code == ExitCode.OK:
                for path in (request.checkpoint, request.receipt):
                    Path(path).write_text(request.trained_on)
            return outcome

        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "queue", lambda name: jobs)
        monkeypatch.setattr(module, "allocation", jobs.allocation)
        return trained

    return begin


@pytest.mark.parametrize("first", LAYOUTS)
def test_the_first_that_starts_trains_alone(race, use, first):
    jobs = Jobs([first, *(name for name in LAYOUTS if name != first)])
    trained = use(jobs)
    assert run_race(race, poll_s=0) == ExitCode.OK
    assert trained == [first]
    assert set(jobs.submitted) == set(jobs.cancelled)
    assert not race.directory.exists()


def test_a_hundred_starts_at_one_moment_have_one_winner(race, use, tmp_path):
    jobs = Jobs()
    trained = use(jobs)
    for n in range(20):
        one = replace(race, request=replace(race.request, runs=str(tmp_path / f"runs{n}")))
        one.write()
        barrier = threading.Barrier(5)

        def start(job, layout, race=one, barrier=barrier):
            jobs.local.job = job
            barrier.wait()
            assert enter(race.directory, layout) == ExitCode.OK

        threads = [threading.Thread(target=start, args=(str(i), LAYOUTS[i % 3])) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(trained) == n + 1
        winner = json.loads((one.directory / "claim/winner.json").read_text())
        assert winner["layout"] == trained[-1]


def test_a_winner_that_is_queued_again_still_holds_its_claim(race, use):
    jobs = Jobs()
    trained = use(jobs, [Outcome(ExitCode.TRY_AGAIN, Stop.CANCELLED)])
    race.write()
    jobs.local.job = "7"
    assert enter(race.directory, "n1_gpu4") == ExitCode.TRY_AGAIN
    assert enter(race.directory, "n1_gpu4") == ExitCode.OK
    assert trained == ["n1_gpu4", "n1_gpu4"]


def test_the_end_of_the_walltime_starts_another_race(race, use, capsys):
    jobs = Jobs([*LAYOUTS, *reversed(LAYOUTS)])
    trained = use(jobs, [Outcome(ExitCode.TRY_AGAIN, Stop.END)])
    assert run_race(race, poll_s=0) == ExitCode.OK
    assert trained == ["n1_gpu4", "n4_gpu1"]
    assert capsys.readouterr().out.count("submitted") == 2


def test_an_error_of_the_winner_ends_the_race_with_its_code(race, use):
    trained = use(Jobs(), [Outcome(ExitCode.NOT_FINITE)])
    assert run_race(race, poll_s=0) == ExitCode.NOT_FINITE
    assert len(trained) == 1


def test_a_layout_that_is_refused_does_not_stop_the_others(race, use, capsys):
    trained = use(Jobs(LAYOUTS[1:], refuse=LAYOUTS[:1]))
    assert run_race(race, poll_s=0) == ExitCode.OK
    assert trained == ["n2_gpu2"]
    assert "n1_gpu4 does not take part" in capsys.readouterr().out


def test_all_layouts_refused(race, use):
    use(Jobs(refuse=LAYOUTS))
    with pytest.raises(SchedulerError, match="n4_gpu1 is refused"):
        run_race(race, poll_s=0)


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupt_takes_the_jobs_along_unless_the_workflow_was_killed(
    race, use, monkeypatch, killed
):
    class Interrupted(Jobs):
        def jobs(self, ids):
            if self.submitted and self.starts:
                self.starts.clear()
                raise KeyboardInterrupt
            return super().jobs(ids)

    jobs = Interrupted()
    use(jobs)
    ancestor = SimpleNamespace(is_running=lambda: not killed)
    monkeypatch.setattr(
        module.psutil, "Process", lambda: SimpleNamespace(parents=lambda: [ancestor])
    )
    with pytest.raises((SystemExit, KeyboardInterrupt)) as raised:
        run_race(race, poll_s=0)
    assert raised.type is (SystemExit if killed else KeyboardInterrupt)
    assert jobs.cancelled == ([] if killed else list(jobs.submitted))
