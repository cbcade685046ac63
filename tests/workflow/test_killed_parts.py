"""Jobs of parts that are killed at any instant: only that part is made again, and all is as if none was."""

import copy
import random
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from hdf5_content import content
from project import FOLDER, Project

from millrace.processes import die_with_parent

pytestmark = pytest.mark.nightly  # five minutes; the DAG suites make lost parts again more often

KILLS = 3
SPLIT = {"train": 0.6, "validation": 0.2, "gap": 2}


@dataclass(frozen=True)
class Case:
    """A data set in three parts."""

    dataset: dict[str, Any]
    samples: str
    rules: dict[str, str]
    """Jobs of parts, and the beginnings of the names of what they make."""
    gathered: dict[str, int]
    """Jobs that follow on those of the last rule."""
    experiment: dict[str, Any] = field(default_factory=dict)


CASES = {
    "groundwater": Case(
        {"parts": 3, "missing": {"value": -999, "then": "mask"}},
        "series",
        {"find_missing": "missing", "preprocess_part": "series"},
        {"gather_series": 1},
    ),
    "weather": Case(
        {
            "source": "demo",
            "format": "weather",
            "demo": {"steps": 60, "spin_up": 0.5},
            "split": SPLIT,
            "weather": {"surface": ["2t"], "air": ["z"], "levels": [500, 850]},
            "parts": 3,
        },
        "weather",
        {"extract_part": "weather"},
        {"gather_samples": 1},
    ),
    "icon": Case(
        {
            "source": "demo",
            "format": "icon",
            "demo": {"level": 3, "steps": 60, "steps_per_file": 20},
            "variables": ["tas"],
            "split": SPLIT,
            "blocks": {"levels": 2},
            "parts": 3,
        },
        "blocks",
        {"extract_part": "blocks"},
        {"gather_samples": 1},
    ),
    "traffic": Case(
        {
            "source": "demo",
            "format": "tracks",
            "demo": {"towns": 3, "scenes": 8, "cars_per_minute": 3},
            "tokens": {"motion": 64, "road": 16, "tolerance": 0.2, "train": 0.5},
            "parts": 3,
        },
        "scenarios",
        {"sample_motion": "motion", "tokenise_part": "scenarios"},
        {"gather_scenarios": 1},
    ),
}


class Parted:
    """A project whose samples are made in parts."""

    def __init__(self, project, case, name):
        self.project, self.case = project, case
        self.data = project.path(f"results/data/{name}")
        self.samples = f"results/data/{name}/{case.samples}.h5"

    def begin_again(self):
        """Leave the raw files alone."""
        shutil.rmtree(self.data / "parts")
        for path in self.data.glob("*.h5"):
            path.unlink()

    def parts(self):
        """Identity of each part that is there."""
        return {path.name: path.stat().st_ino for path in self.data.glob("parts/*.h5")}

    def kill(self, rule, number, share):
        """Kill the so manieth job of a rule after this share of the time that the one before took."""
        command = self.project.command(self.samples, "--keep-going", "--retries", "0")
        head = subprocess.Popen(
            command,
            cwd=self.project.root,
            env=self.project.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        seen, begun, lasted = set(), time.monotonic(), 0.0
        while len(seen) < number or time.monotonic() < begun + share * lasted:
            assert head.poll() is None, "it ended before"
            for one in jobs(head, rule):
                if one.pid not in seen:
                    victim, lasted, begun = one, time.monotonic() - begun, time.monotonic()
                    seen.add(one.pid)
            time.sleep(0.005)
        victim.kill()
        assert head.wait(600) != 0


def jobs(head, rule):
    """Processes of a rule's scripts."""
    try:
        every = psutil.Process(head.pid).children(recursive=True)
        return [one for one in every if any(f".{rule}.py" in word for word in one.cmdline())]
    except psutil.Error:
        return []


@pytest.mark.parametrize("system", CASES)
def test_a_killed_part_alone_is_made_again(system, tmp_path):
    case, name = CASES[system], "small" if system == "groundwater" else "large"
    project = Project(tmp_path / FOLDER, ("--profile", "profiles/local", "--cores", "1"))
    project.config["datasets"].setdefault(name, {}).update(copy.deepcopy(case.dataset))
    made = Parted(project, case, name)
    project.run(made.samples)
    expected, names = content(project.path(made.samples)), set(made.parts())
    chance = random.Random(system)
    for rule, stem in case.rules.items():
        for _ in range(KILLS):
            made.begin_again()
            number, share = chance.randint(2, 3), chance.random()
            print(f"{system}: {rule}, job {number}, after {share:.2f} of its time")
            made.kill(rule, number, share)
            before = made.parts()
            [lost] = {one for one in names if one.startswith(stem)} - before.keys()
            planned = project.planned(made.samples)
            assert planned[rule] == 1, lost
            follows = rule == [*case.rules][-1]
            assert not follows or planned == {rule: 1, **case.gathered}
            project.run(made.samples)
            now = made.parts()
            assert [one for one in before if now[one] != before[one]] == []
            assert content(project.path(made.samples)) == expected
