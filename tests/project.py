"""A tiny project to run the real workflow on."""

import copy
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from forked_snakemake import snakemake

from millrace.processes import die_with_parent

REPOSITORY = Path(__file__).parents[1]
FOLDER = Path("my runs (é)") / "it's"
"""What folders of users are called."""

CONFIG = {
    "run": {"experiments": ["tiny"], "layouts": ["n1_gpu1"], "seeds": [0]},
    "datasets": {
        "small": {
            "source": "demo",
            "demo": {"slices": 3, "nodes_per_slice": 40, "steps": 60, "spin_up": 5.0},
            "variables": ["head", "mass_concentration"],
            "forcings": ["head_bc", "sea_level_forcing"],
            "split": {"train": 0.6, "validation": 0.2, "gap": 4},
            "patches": {"slice_groups": 1, "clusters": 2},
        }
    },
    "experiments": {
        "tiny": {
            "dataset": "small",
            "data": {
                "variables": ["head", "mass_concentration"],
                "forcings": ["sea_level_forcing"],
                "input_steps": 2,
                "output_steps": 1,
            },
            "model": {
                "name": "gino",
                "latent_shape": [4, 4, 3],
                "radius": 0.6,
                "modes": [2, 2, 2],
                "hidden": 4,
                "layers": 1,
                "kernel_widths": [4],
            },
            "train": {"epochs": 4, "milestone_every": 2, "global_batch": 8},
        }
    },
}


class Project:
    """A copy of the workflow with its own results.

    Parameters
    ----------
    root : Path
        New directory.
    options : sequence of str
        Options of every call of Snakemake.
    """

    def __init__(
        self, root: Path, options: Sequence[str] = ("--profile", "profiles/local")
    ) -> None:
        self.root, self.options = root, options
        self.config = copy.deepcopy(CONFIG)
        for name in ("workflow", "profiles", "envs", "config"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=_generated)
        shutil.copy(REPOSITORY / "Snakefile", root / "Snakefile")

    def copy(self, root: Path) -> "Project":
        """The same project in another directory, times of all files kept."""
        shutil.copytree(self.root, root, symlinks=True)
        copied = copy.copy(self)
        copied.root, copied.config = root, copy.deepcopy(CONFIG)
        return copied

    def command(self, *arguments: str) -> list[str]:
        (self.root / "tiny.yaml").write_text(yaml.safe_dump(self.config))
        options = ["--configfile", "tiny.yaml", *self.options]
        return [sys.executable, "-m", "snakemake", *options, *arguments]

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess:
        command, place = self.command(*arguments), {"cwd": self.root, "env": self.environment()}
        if "-n" in arguments:
            done = snakemake(command[3:], *place.values())
        else:
            # Tests that are killed stop nothing themselves.
            ended = {"timeout": timeout, "preexec_fn": die_with_parent}
            done = subprocess.run(command, **place, capture_output=True, text=True, **ended)
        if check:
            assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        return done

    def planned(self, *arguments: str) -> Counter:
        """Jobs of a dry run, by rule; the targets that only collect files are left out."""
        output = self.run(*arguments, "-n", "--quiet", "rules").stdout
        lines = [line.split() for line in output.splitlines()]
        counts = {p[0]: int(p[1]) for p in lines if len(p) == 2 and p[1].isdigit()}
        for target in ("total", "all", "data", "train", "evaluate", "sweep", "report"):
            counts.pop(target, None)
        return Counter(counts)

    def report(self) -> str:
        """The report of Snakemake, as text."""
        self.run("--report", "report.html")
        return self.path("report.html").read_text()

    def epochs(self, run: str) -> int:
        """Epochs that a run has done: the most of its stores."""
        stores = self.root.glob(f"runs/{run}/*/metrics.jsonl")
        return max((len(path.read_text().splitlines()) for path in stores), default=0)

    @staticmethod
    def environment() -> dict[str, str]:
        return os.environ | {"OMP_NUM_THREADS": "1"}

    def path(self, name: str) -> Path:
        return self.root / name


def _generated(directory, names):
    return [n for n in names if n in ("__pycache__",) or n.endswith(".egg-info")]
