"""A race of layouts: one job for each is submitted, the first that starts trains, the others are removed.

It is hard to predict which nodes are free next. Checkpoints do not depend on the layout, so that the winner
continues the same run.

A job claims the race by making a directory, which is atomic on every file system. The process that
submitted the jobs waits for the outputs; if it is killed and started again, it finds its jobs.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from millrace.cluster import Cluster
from millrace.errors import ExitCode
from millrace.files import write_json
from millrace.launch.launcher import Surroundings, launch, surroundings_of, train
from millrace.layout import Layout
from millrace.schedulers import Queue, SchedulerError, allocation, queue
from millrace.training.request import Request

_POLL_S = 5.0
_CLAIM, _WINNER = "claim", "winner.json"
_JOBS, _RESULT, _PLAN = "jobs.json", "result.json", "race.json"


@dataclass(frozen=True)
class Entrant:
    """A layout that takes part."""

    layout: str
    cpus: int
    """CPUs of each node."""
    resources: Mapping[str, Any]
    """Resources of its job, see `millrace.cluster.Placement.resources`."""


@dataclass(frozen=True)
class Race:
    """A race, as its jobs read it from a file."""

    request: Request
    scheduler: str
    entrants: Sequence[Entrant]
    surroundings: Surroundings = field(default_factory=Surroundings)

    @property
    def directory(self) -> Path:
        """Directory of the files of the race."""
        return Path(self.request.runs) / f".race_epoch_{self.request.target_epoch}"

    @property
    def is_won(self) -> bool:
        """Whether the outputs exist."""
        return Path(self.request.checkpoint).is_file() and Path(self.request.receipt).is_file()

    def write(self) -> None:
        """Make the directory, and write the race for its jobs."""
        self.directory.mkdir(parents=True)
        write_json(self.directory / _PLAN, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "Race":
        """Read a race that was written by `write`."""
        values = json.loads((directory / _PLAN).read_text())
        return cls(
            request=Request(**values["request"]),
            scheduler=values["scheduler"],
            entrants=[Entrant(**one) for one in values["entrants"]],
            surroundings=Surroundings(**values["surroundings"]),
        )


def race_layouts(
    request: Request, cluster: Cluster | None, cpus: int, container: str | None = None
) -> int:
    """Train a segment on the layout of the cluster whose job starts first; returns an `ExitCode`.

    On a machine without a queue there is no race: the first layout with one node trains, with ``cpus``. For
    ``container`` see `millrace.launch.launcher.Surroundings`.
    """
    layouts, around = Layout.entrants(request.layout), surroundings_of(cluster, container)
    if cluster is None:
        first = next((one for one in layouts if one.nodes == 1), layouts[0])
        return launch(replace(request, won_by=str(first)), cpus, around)
    placements = {str(one): cluster.place(one, "train_segment") for one in layouts}
    entrants = [
        Entrant(layout, place.cpus_per_node, place.resources())
        for layout, place in placements.items()
    ]
    return run_race(Race(request, cluster.scheduler, entrants, around))


def run_race(race: Race, poll_s: float = _POLL_S) -> int:
    """Submit the jobs of a race and wait until its outputs are there; returns an `ExitCode`.

    If the winner reaches the end of its walltime and cannot be requeued, there is another race. Unless the
    code is 0, no job is left. Raises `SchedulerError` if the scheduler takes no job of the race.
    """
    jobs = queue(race.scheduler)
    ancestors = psutil.Process().parents()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while True:
        try:
            code = _heat(race, jobs, ancestors, poll_s)
        except (KeyboardInterrupt, SchedulerError):
            _leave_if_alone(ancestors)  # their end stops this process, too
            _cancel_all(race, jobs)
            raise
        if code is not None:
            shutil.rmtree(race.directory, ignore_errors=True)
            return code


def _heat(
    race: Race, jobs: Queue, ancestors: Sequence[psutil.Process], poll_s: float
) -> int | None:
    """Run the race once; returns its exit code, or None if it has to be run again."""
    submitted = _read(race.directory / _JOBS) or {}
    if any(not job.state.is_over for job in jobs.jobs(submitted.values()).values()):
        print(f"continues to wait for {_listed(submitted)}")
    else:
        shutil.rmtree(race.directory, ignore_errors=True)
        race.write()
        submitted = _submit(race, jobs)
    while True:
        states = {job: found.state for job, found in jobs.jobs(submitted.values()).items()}
        if all(state.is_over for state in states.values()):
            return _outcome(race)
        winner = _winner(race.directory)
        if winner is not None:
            # The winner does this, too, but does not know of jobs submitted after its start.
            jobs.cancel(j for j, s in states.items() if j != winner["job"] and not s.is_over)
        _leave_if_alone(ancestors)
        time.sleep(poll_s)


def _leave_if_alone(ancestors: Sequence[psutil.Process]) -> None:
    if not all(ancestor.is_running() for ancestor in ancestors):
        sys.exit(
            "the workflow has been killed: the jobs stay, and it finds them when it runs again"
        )


def _submit(race: Race, jobs: Queue) -> dict[str, str]:
    """Submit a job for each layout; returns them by layout."""
    submitted: dict[str, str] = {}
    refused, directory = "", race.directory.absolute()
    command = [sys.executable, "-m", "millrace.launch.first_to_start", str(directory)]
    for entrant in race.entrants:
        layout = entrant.layout
        name, log = f"race-{race.request.experiment}-{layout}", str(directory / f"{layout}.log")
        try:
            submitted[layout] = jobs.submit([*command, layout], entrant.resources, name, log)
        except SchedulerError as error:
            refused = str(error)
            print(f"layout {layout} does not take part: {error}")
            continue
        write_json(race.directory / _JOBS, submitted)
    if not submitted:
        raise SchedulerError(refused)
    print(f"submitted {_listed(submitted)}")
    return submitted


def _outcome(race: Race) -> int | None:
    """Exit code of a race whose jobs are all over; None: the winner had too little time."""
    winner = _winner(race.directory)
    if race.is_won:
        print(f"{winner['layout'] if winner else 'another job'} won")
        return ExitCode.OK
    for entrant in race.entrants:
        log = race.directory / f"{entrant.layout}.log"
        if log.is_file():
            print(f"--- {entrant.layout}\n{log.read_text(errors='replace')}")
    result = _read(race.directory / _RESULT)
    if result is not None:
        return None if result["again"] else int(result["code"])
    what = f"the job of {winner['layout']} ended" if winner else "all jobs of the race ended"
    print(f"error: {what} without a result: cancelled, killed or lost", file=sys.stderr)
    return 1


def _cancel_all(race: Race, jobs: Queue) -> None:
    known = (_read(race.directory / _JOBS) or {}).values()
    jobs.cancel(job for job, found in jobs.jobs(known).items() if not found.state.is_over)


def enter(directory: Path, layout: str) -> int:
    """Train in this job if it is the first of the race, else do nothing; returns an `ExitCode`."""
    race = Race.read(directory)
    job = allocation().job
    try:
        (directory / _CLAIM).mkdir()
        write_json(directory / _CLAIM / _WINNER, {"layout": layout, "job": job})
    except FileExistsError:
        winner = _winner(directory)
        # A job that was requeued still holds its claim.
        if winner is None or winner["job"] != job:
            print(f"{layout}: too late, {winner['layout'] if winner else 'another layout'} has won")
            return ExitCode.OK
    others = [other for other in (_read(directory / _JOBS) or {}).values() if other != job]
    queue(race.scheduler).cancel(others)
    [entrant] = [one for one in race.entrants if one.layout == layout]
    outcome = train(replace(race.request, won_by=layout), entrant.cpus, race.surroundings)
    # If the job cannot be requeued, there is another race.
    again = outcome.wants_more_time and not allocation().requeue()
    if outcome.code != ExitCode.OK:
        write_json(directory / _RESULT, {"code": int(outcome.code), "again": again})
    return outcome.code


def _winner(directory: Path) -> dict[str, str] | None:
    return _read(directory / _CLAIM / _WINNER)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return None


def _listed(submitted: Mapping[str, str]) -> str:
    return ", ".join(f"{layout} (job {job})" for layout, job in submitted.items())


def main() -> int:
    """Run the command line of the jobs."""
    parser = argparse.ArgumentParser(description="Take part in a race of layouts.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("layout")
    return enter(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
