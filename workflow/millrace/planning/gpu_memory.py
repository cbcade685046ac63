"""Whether trainings fit on the GPUs of a cluster, by the footprint of their models.

Known for models on samples with an outline, whose footprint planning can find without weights or data:
of each layout, divided or not. Other models are left alone. Finding it takes seconds for each model, in a
process of its own because it needs torch; answers are kept.
"""

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import millrace
from millrace.cluster import Cluster
from millrace.errors import ConfigError
from millrace.files import OutputError, write_json
from millrace.layout import Layout
from millrace.plan import Plan
from millrace.processes import dying_with_this, library_environment
from millrace.systems.base import Block, dataset_names
from millrace.systems.registry import kind_of, models

CACHE = Path(".snakemake/millrace/gpu_memory.json")
"""Answers by the hash of what decides them, below the working directory."""
LIMIT: float | None = 600.0
"""Seconds after which the check is given up."""
GB = 2**30
# Of the section `train`, what the footprint depends on; the batch is that of one share, see `_question`.
_DECIDING = ("precision", "loss", "activation_checkpointing")


def check_gpu_memory(plan: Plan, cluster: Cluster, say: Callable[[str], None]) -> None:
    """Raise `ConfigError` for a training that does not fit on the GPUs that its layout is placed on.

    ``say`` is told if this takes a while, or could not be done. A cluster whose facts do not have the
    memory of its GPUs is not checked.
    """
    asked = []
    for experiment, layout, rule in plan.trainings():
        model = models()[plan.experiments[experiment]["model"]["name"]]
        try:
            node = cluster.place(Layout.parse(layout), rule).node_type
        except ConfigError:  # told when the job is asked for: a measurement need not be
            continue
        if node.gpu_memory_gb and kind_of(model.name).outline:
            where = f"config: experiments.{experiment} on {layout}"
            where += "" if rule == "train_segment" else f" (job {rule})"
            # A batch comes from one dataset: the one with the largest samples decides.
            names = dataset_names(plan.experiments[experiment])
            asked += [
                (
                    where if len(names) == 1 else f"{where}, samples of {name}",
                    experiment,
                    node,
                    _question(plan, experiment, layout, name),
                )
                for name in names
            ]
    answers = _answers([question for *_, question in asked], plan.plugins, say)
    for where, experiment, node, question in asked:
        answer = answers.get(_key(question), {})
        if "refused" in answer:
            raise ConfigError(f"{where}: {answer['refused']}")
        usable = cluster.usable_gpu_memory * node.gpu_memory_gb
        if (needed := answer.get("bytes", 0) / GB) > usable:
            raise ConfigError(
                f"{where}: a GPU needs {needed:.1f} of its {node.gpu_memory_gb} GB ({node.gpu_model}, node "
                f"type {node.name} of {cluster.name}), and may take {usable:.1f}: "
                f"{_remedy(question)}; `millrace plan --parallel {experiment}` shows what takes it"
            )


def _question(plan: Plan, experiment: str, layout: str, name: str) -> dict[str, Any]:
    """Arguments of `millrace.training.parallel.workload.needed_bytes` on one of the datasets.

    Replicas and micro-batches beyond two add nothing: layouts of different sizes share an answer.
    """
    block, (parallel, _) = plan.experiments[experiment], plan.parallel(experiment, layout)
    train, replicas = block["train"], min(parallel.dp_replicate or 1, 2)
    share = parallel.samples(train["global_batch"])
    parts = parallel.micro_batches or -(-share // (train.get("micro_batch") or share))
    size = -(-share // parts)
    divided: dict[str, Any] = {
        **{key: getattr(parallel, key) for key in ("dp_shard", "pipeline", "tensor", "schedule")},
        "dp_replicate": replicas,
    }
    if parallel.pipeline > 1:
        divided["micro_batches"] = parts
    else:
        parts = min(parts, 2)
    shares = replicas * parallel.dp_shard
    dataset = plan.datasets[name]
    return {
        "experiment": {
            "data": block["data"],
            "model": block["model"],
            "train": {
                **{key: train[key] for key in _DECIDING if key in train},
                "epochs": 1,
                "global_batch": size * parts * shares,
                "micro_batch": size,
            },
            "parallel": divided,
        },
        "dataset": {key: value for key, value in dataset.items() if key != "split"},
        "layout": f"n1_gpu{shares * parallel.pipeline * parallel.tensor}",
    }


def _remedy(question: Mapping[str, Any]) -> str:
    train, parallel = question["experiment"]["train"], question["experiment"]["parallel"]
    if not train.get("activation_checkpointing"):
        return "set train.activation_checkpointing"
    if train["micro_batch"] > 1:
        return (
            "raise parallel.micro_batches"
            if parallel["pipeline"] > 1
            else f"set train.micro_batch to less than {train['micro_batch']}"
        )
    name = question["experiment"]["model"]["name"]
    if models()[name].limits is None:
        return f"{kind_of(name).smaller or 'make the samples smaller'}, or leave this layout out"
    return "divide the model further by the section parallel, or leave this layout out"


def _key(question: Mapping[str, Any]) -> str:
    """Hash of a question, of the files that it is about, and of the code that answers it."""
    source = Path(question["dataset"]["source"])
    changed = source.stat().st_mtime_ns if source.exists() else 0
    code = (Path(millrace.__file__).parent / "training/parallel/footprint.py").read_bytes()
    text = json.dumps([question, changed, hashlib.sha256(code).hexdigest(), millrace.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _answers(
    questions: Sequence[Block], plugins: Sequence[str], say: Callable[[str], None]
) -> dict[str, Block]:
    """Answers by key, those of earlier plans as far as they are kept; some are missing if they fail."""
    try:
        known: dict[str, Block] = json.loads(CACHE.read_text())
    except (OSError, ValueError):
        known = {}
    missing = {key: question for question in questions if (key := _key(question)) not in known}
    if not missing:
        return known
    say(f"looking whether {len(missing)} kinds of training fit on the GPUs; it is done once")
    try:
        done = subprocess.run(
            # Not the working directory: nothing that the program imports may come from there.
            [sys.executable, "-P", "-m", "millrace.training.parallel.workload", *plugins],
            input=json.dumps(list(missing.values())),
            env={**library_environment(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            preexec_fn=dying_with_this(),
        ).stdout
    except subprocess.TimeoutExpired as error:
        done = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    found = dict(zip(missing, map(json.loads, done.splitlines()), strict=False))
    if len(found) < len(missing):
        say(
            "it is not known whether all trainings fit on the GPUs: the process that finds out failed or "
            f"took more than {LIMIT or 0:.0f} s; `millrace plan --parallel` tells why"
        )
    with contextlib.suppress(OutputError):
        write_json(CACHE, {**known, **found})
    return {**known, **found}
