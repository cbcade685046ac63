"""A finished project, and what reads and continues it: commands, and jobs with the scripts of their rules.

Everything runs in the project's folder, in a child of a process that has imported it already.
"""

import hashlib
import importlib
import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import h5py
import torch
import yaml
from matplotlib.figure import Figure
from project import REPOSITORY, Project
from segment import train_all
from synthetic import series
from warm import forked

from millrace import cli
from millrace.launch import launcher
from millrace.launch.train import train
from millrace.launch.worker import work_on
from millrace.scaling import records
from millrace.training.request import Request

# What the children need, which they would each import else.
for _module in (
    *("evaluation.predict", "evaluation.run", "evaluation.summary", "runs.command"),
    *("scaling.analysis", "scaling.report", "job_log", "systems.groundwater.evaluation"),
    *("systems.groundwater.gino", "systems.groundwater.application", "systems.groundwater.graphs"),
):
    importlib.import_module(f"millrace.{_module}")

RUN = "tiny/n1_gpu1/seed0"
TRAINED, STORE = f"results/train/{RUN}", f"runs/{RUN}"
DATA, SCALING = "results/data/small", "results/scaling"
PATCHES, GRAPH = f"{DATA}/patches.h5", f"{DATA}/graph_4x4x3_r0.6.h5"
EPOCHS = 4
LAYOUTS = ("n1_gpu1", "n1_gpu2", "n1_gpu4")


def finish(root: Path) -> Project:
    """A project whose whole workflow has run."""
    project = Project(root)
    project.run()
    return project


def prepare(finished: Project, root: Path) -> None:
    """Copy what a project has made, and add measurements of scaling."""
    unread = shutil.ignore_patterns("*.png", "*.gif")
    for folder in ("results", "runs"):
        shutil.copytree(finished.root / folder, root / folder, ignore=unread)
    for one in series(LAYOUTS, repeats=2):
        path = root / SCALING / f"model_a/{one.layout}/strong/run_{one.repeat}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write(one, path)


def finished_at(root: Path) -> Project:
    """A project that has run already."""
    project = Project.__new__(Project)
    project.root, project.options = root, ("--profile", "profiles/local")
    project.config = yaml.safe_load((root / "tiny.yaml").read_text())
    return project


def copy_to(base: Path, folder: Path) -> Path:
    """A fresh copy of what a project has made, below a folder."""
    project = folder / "project"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(base, project, copy_function=_copy)
    return project


def copy_for(action, base: Path, folder: Path) -> Path:
    """A fresh copy in which an action can begin."""
    project = copy_to(base, folder)
    before = forked(lambda: action.before() and 0, project, folder / "said")
    assert before.code == 0, before.said
    return project


def _copy(source, target):
    """Raw files are never changed."""
    (os.link if source.endswith(".csv") else shutil.copy2)(source, target)


def request(root: Path, epoch: int, layout="n1_gpu1", seed=0, every=2) -> Request:
    """A segment of the tiny experiment on the samples of a project, to the end of an epoch."""
    described = json.loads((root / f"{TRAINED}/epoch_2.json").read_text())
    run = f"tiny/{layout}/seed{seed}"
    outputs = {
        key: f"results/train/{run}/epoch_{epoch}.{suffix}"
        for key, suffix in (("checkpoint", "ckpt"), ("receipt", "json"))
    }
    before = f"results/train/{run}/epoch_{epoch - every}.ckpt" if epoch > every else None
    return Request(
        experiment="tiny",
        layout=layout,
        seed=seed,
        target_epoch=epoch,
        definition=described["definition"],
        files={"patches": PATCHES, "graph": GRAPH},
        runs=f"runs/{run}",
        previous=before,
        **outputs,
    )


begin = list
"""Called where a disk may be full from: what came before is not done by the library."""

# --- what is run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """Something that a user or the workflow does in the folder of a project."""

    work: Callable[[], int]
    reads: tuple[str, ...]
    """Patterns of the files that it reads."""
    made: Callable[[Path], str] = lambda root: ""
    """A digest of what it makes, besides what it says."""
    before: Callable[[], object] = lambda: None
    """What is done first, undisturbed."""
    shows: bool = False
    """Whether what it says is its output, of files that are there: removed ones are not missed."""
    tells: str = ""
    """A file in which it tells what is damaged."""


class _Named(dict):
    """Files of a rule by their names."""

    __getattr__ = dict.__getitem__


def job(script, inputs, outputs, log="logs/job.log", **given):
    """Work of a job: the script of its rule, with what Snakemake would tell it."""

    def work():
        told = SimpleNamespace(
            input=_Named(inputs),
            output=_Named(outputs),
            log=[log],
            config={},
            threads=1,
            **{key: SimpleNamespace(**value) for key, value in given.items()},
        )
        for path in [*told.output.values(), *told.log]:  # as Snakemake does
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        begin()
        try:
            runpy.run_path(
                str(REPOSITORY / f"workflow/scripts/{script}.py"), {"snakemake": told}, "__main__"
            )
        finally:
            if Path(log).is_file():
                sys.stdout.write(Path(log).read_text(errors="replace"))
        return 0

    return work


def millrace(*arguments):
    """Work of a command."""

    def work():
        begin()
        return cli.main(list(arguments))

    return work


class _Rank:
    """In place of the agent: the only rank, in a child of the launcher, without its own start."""

    def __init__(self, command, env, **_):
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.environ.clear()
                os.environ.update(env)
                sys.argv = ["train", command[-1]]
                code = work_on(Request, train)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number):
        os.kill(self.pid, number)


def training(epoch, every=2):
    """Work of a launcher with one rank."""

    def work():
        launcher.subprocess = SimpleNamespace(Popen=_Rank)
        begin()
        return train_all([request(Path(), epoch, every=every)])

    return work


def without_figures(work):
    """The same, with empty figures: they take most of the time."""

    def patched():
        Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"<svg></svg>")
        return work()

    return patched


def _remove(*patterns):
    def remove():
        for pattern in patterns:
            for path in Path().glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


# --- what it makes -------------------------------------------------------------------------------

_VOLATILE = {"provenance", "seal", "history", "sessions", "size", "crc32"}


def _plain(value):
    """JSON without what differs each time."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in _VOLATILE}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _digest(*parts):
    content = hashlib.sha256()
    for part in parts:
        content.update(part if isinstance(part, bytes) else repr(part).encode())
    return content.hexdigest()


def tensors(value):
    """Bytes of all tensors of a state, and its other values."""
    if isinstance(value, torch.Tensor):
        return value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return _digest(
            *(part for key in value for part in (repr(key).encode(), tensors(value[key])))
        )
    if isinstance(value, list | tuple):
        return _digest(*map(tensors, value))
    return repr(value).encode()


def weights(checkpoint: Path) -> str:
    """Digest of model and optimiser of a checkpoint."""
    state = torch.load(checkpoint, weights_only=True)
    return _digest(*(tensors(state[key]).__repr__() for key in ("model", "optimizer")))


def _trained(epoch):
    def digest(root):
        receipt = json.loads((root / f"{TRAINED}/epoch_{epoch}.json").read_text())
        return weights(root / f"{TRAINED}/epoch_{epoch}.ckpt") + _digest(_plain(receipt))

    return digest


def _json(*names):
    return lambda root: _digest(*(_plain(json.loads((root / name).read_text())) for name in names))


def _hdf5(name, *more):
    def digest(root):
        found = []
        with h5py.File(root / name) as file:
            file.visititems(
                lambda path, item: (
                    found.append((path, item[()].tobytes()))
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
        return _digest(*found, *(part(root) for part in more))

    return digest


def _bytes(*names):
    return lambda root: _digest(*((root / name).read_bytes() for name in names))


def _backed_up(root):
    steps = sorted((root / "safe").rglob("*"))
    return _digest(
        *(path.read_bytes() for path in steps if path.name in ("state.pt", "manifest.json"))
    )


_SAMPLES = (PATCHES, GRAPH)
_STEPS = (f"{STORE}/*/step_*", f"{STORE}/*/step_*/*")
_RECORDS = tuple(f"{STORE}/*/{n}" for n in ("identity.json", "metrics.jsonl", "sessions.jsonl"))
_TARGET = f"{STORE}/*/target.json"
_PUBLISHED = (f"{TRAINED}/epoch_{EPOCHS}.ckpt", f"{TRAINED}/epoch_{EPOCHS}.json")
_SCORES = f"results/evaluate/{RUN}/metrics.json"
_GRAPH = "again/graph.h5"
_MEASURED = tuple(
    f"{SCALING}/model_a/{layout}/strong/run_{repeat}.json"
    for layout in LAYOUTS
    for repeat in (0, 1)
)
_SKILL = {n: f"again/skill.{s}" for n, s in (("table", "html"), ("csv", "csv"), ("figure", "png"))}
_REPORT = {name: f"again/{name}" for name in ("html", "csv", "json", "extrap", "badges", "figures")}


_EVALUATED = {"patches": PATCHES, "graph": GRAPH} | dict(
    zip(("checkpoint", "receipt"), _PUBLISHED, strict=True)
)


ACTIONS = {
    "continue": Action(
        training(EPOCHS + 2), (*_SAMPLES, *_STEPS, *_RECORDS, _TARGET), _trained(EPOCHS + 2)
    ),
    "continue without a store": Action(
        training(EPOCHS + 2), (*_SAMPLES, *_PUBLISHED), _trained(EPOCHS + 2), _remove("runs")
    ),
    "restore": Action(
        training(EPOCHS), (*_SAMPLES, *_STEPS, *_RECORDS), _trained(EPOCHS), _remove(*_PUBLISHED)
    ),
    "evaluate": Action(
        without_figures(
            job(
                "evaluate_run",
                _EVALUATED,
                {
                    "metrics": "again/metrics.json",
                    "figures": "again/figures",
                    "curves": "again/training.png",
                },
            )
        ),
        (*_SAMPLES, *_PUBLISHED),
        _json("again/metrics.json"),
    ),
    "predict": Action(
        millrace(
            *("predict", "--checkpoint", _PUBLISHED[0], "--source", f"{DATA}/raw"),
            *("--output", "again/new.nc", "--metrics", "again/new.json", "--device", "cpu"),
        ),
        _PUBLISHED,
        _hdf5("again/new.nc", _json("again/new.json")),
        lambda: Path("again").mkdir(),
    ),
    "summarise": Action(
        without_figures(
            job(
                "summarise_skill",
                {"metrics": [_SCORES], "ensembles": []},
                _SKILL,
                params={"others": ..., "datasets": {}, "benchmarks": "benchmarks"},
            )
        ),
        (_SCORES, "results/data/*/samples.json"),
        _bytes(_SKILL["csv"], _SKILL["table"]),
        tells=_SKILL["table"],
    ),
    "analyse scaling": Action(
        without_figures(
            job(
                "analyse_scaling",
                {"runs": _MEASURED},
                _REPORT,
                params={"settings": {"draws": 200}},
            )
        ),
        _MEASURED,
        _json(_REPORT["json"]),
    ),
    "build graph": Action(
        job(
            "build_graph",
            {"patches": PATCHES},
            {"graph": _GRAPH},
            wildcards={"geometry": "4x4x3_r0.6"},
        ),
        (PATCHES,),
        _hdf5(_GRAPH),
    ),
    "runs verify": Action(millrace("runs", "verify"), (*_STEPS, *_RECORDS, _TARGET, *_PUBLISHED)),
    "runs list": Action(millrace("runs", "list"), (*_STEPS, *_RECORDS), shows=True),
    "runs show": Action(millrace("runs", "show", RUN), (*_STEPS, *_RECORDS), shows=True),
    "runs latest": Action(millrace("runs", "latest"), _STEPS, shows=True),
    "runs watch": Action(
        millrace("runs", "watch", "--once"), (*_RECORDS, _TARGET, *_STEPS), shows=True
    ),
    "runs efficiency": Action(millrace("runs", "efficiency"), _RECORDS, shows=True),
    "runs backup": Action(
        millrace("runs", "backup", "safe"), (*_STEPS, *_RECORDS), _backed_up, shows=True
    ),
}
"""By name."""

_SIZES = re.compile(r"[\d.,]+ ?[kMGT]?B\b|\d\d:\d\d(:\d\d)?|[─━┏┓┗┛┃│╇┡┩╭╮╰╯ \n]+")


def shown(said: str) -> str:
    """What a command says, without sizes, times of day and the widths of columns."""
    return _SIZES.sub(" ", said)
