"""A workflow whose raw files are added to, changed or removed, without Snakemake: which parts it makes."""

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hdf5_content import content

from millrace.data.division import read_share
from millrace.data.split import SplitConfig
from millrace.plan import Plan

SPLIT = {"train": 0.6, "validation": 0.2, "gap": 2}


@dataclass
class Case:
    """A system with raw files, of which some are added later; ``kind`` is the stem of its samples."""

    folder: Path
    made: dict = field(default_factory=dict)
    """What the workflow keeps of each file of a part, to compare: its `raw`."""
    split: dict = field(default_factory=lambda: SPLIT)
    kind: ClassVar[str]

    @property
    def raw(self):
        return self.folder / "raw"

    @property
    def divided(self):
        return SplitConfig(**self.split)

    @property
    def data(self):
        return self.folder / "results/data/set"

    def plan(self, record=True):
        config = self.config()
        config["datasets"] = {"set": {"source": str(self.raw), "parts": 3, **self.dataset()}}
        [*_, (name, block)] = config["experiments"].items()
        config["experiments"] = {name: block | {"dataset": "set"}}
        config["run"]["experiments"] = [name]
        plan = Plan(copy.deepcopy(config), root=self.folder)
        plan.data.count_parts(record=record)
        return plan

    def run(self):
        """Make what is planned, as the workflow does; numbers of the parts that were made."""
        plan = self.plan()
        again = [self.pass_over(plan, stem, make) for stem, make in self.passes()]
        self.gather(self.files(plan, self.kind))
        return again[0]

    def pass_over(self, plan, stem, make):
        made = []
        for path in self.files(plan, stem):
            number = int(path.stem.rpartition("_")[2])
            raw = plan.data.part_raw("set", self.kind, number)
            if not path.exists() or self.made.get(path) != raw:
                path.unlink(missing_ok=True)
                make(path, read_share(*plan.data.share("set", self.kind, number)))
                self.made[path] = raw
                made.append(number)
        return made

    def files(self, plan, stem):
        (self.data / "parts").mkdir(parents=True, exist_ok=True)
        return [self.folder / p for p in plan.data.part_files("set", self.kind, stem)]

    def state(self):
        """Identity of each part."""
        return {
            p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in self.data.glob("parts/*.h5")
        }

    def assert_as_a_whole(self):
        whole = self.folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        self.whole(whole)
        for name in sorted(path.name for path in whole.glob("*.h5")):
            assert content(self.data / name) == content(whole / name), name
        accounts = [folder / "samples.json" for folder in (whole, self.data)]
        assert len({path.read_bytes() for path in accounts}) == 1


def kept(case, before, stem):
    """Numbers of the parts that are the same files as before."""
    now = case.state()
    same = (name for name in before if name.startswith(stem) and now.get(name) == before[name])
    return {int(name[:-3].rpartition("_")[2]) for name in same}


def run_second_pass(case, stem):
    """Numbers of the parts that only the second pass may make again, and whether they were kept."""
    before = case.state()
    made = case.run()
    now = case.state()
    inodes = {n: now[n][0] == before[n][0] for n in before if n.startswith(stem) and n in now}
    return made, inodes


def begun(kind, folder):
    """A case whose three parts have been made."""
    case = kind(folder)
    case.begin()
    assert case.run() == [0, 1, 2]
    return case


def assert_only_new_parts_are_made(case):
    """Add, change and remove files: parts of theirs are made, and all is as if read at once."""
    stem = case.passes()[0][0]
    before = case.state()
    assert case.run() == []
    case.grow()
    made = case.run()
    assert min(made) > 2, "new parts"
    assert kept(case, before, stem) == {0, 1, 2}
    case.assert_as_a_whole()

    before = case.state()
    case.change()
    assert case.run() == [0]
    assert kept(case, before, stem) == {1, 2, *made}
    case.assert_as_a_whole()

    if case.remove is not None:
        before = case.state()
        case.remove()
        assert len(case.run()) <= 1
        assert len(kept(case, before, stem)) >= len(made) + 1
        case.assert_as_a_whole()
