"""What every kind of samples promises the workflow: contracts as in `millrace.checking.contracts`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from millrace.checking.case import Case, is_finite, require, target
from millrace.checking.ranks import on_ranks
from millrace.data.samples import dataset_class, datasets_of
from millrace.data.split import SPLITS
from millrace.evaluation.run import evaluate_run
from millrace.systems.registry import load_plugins
from millrace.training.distributed import Ranks
from millrace.training.request import Request
from millrace.training.segment import run_segment

_COMPARED = 2000
"""Samples of a group that are compared with those of other splits."""
_DATASET = ("groups", "group_costs", "batch", "definition", "normalisation", "preparation")


def samples_open(case: Case) -> None:
    """Sample files are HDF5 and open as a dataset with all that the engine asks of it."""
    for files in datasets_of(case.files):
        for role, path in files.items():
            require(h5py.is_hdf5(path), f"{path.name} ({role}) is no HDF5 file")
    roles = dataset_class(case.kind.name).roles
    require(
        not set(case.files) - set(roles),
        f"files of the roles {', '.join(case.files)} are made, the dataset takes {', '.join(roles)}",
    )
    dataset, again = case.opened(), case.opened()
    missing = [n for n in _DATASET if not hasattr(dataset, n)]
    require(not missing, f"{type(dataset).__name__} has no {', '.join(missing)}")
    require(
        bool(dataset.definition.get("digest")),
        f"{type(dataset).__name__}.definition has no digest of the samples: other samples would count as "
        "the same run",
    )
    for part in ("definition", "preparation"):
        one, other = (json.dumps(getattr(d, part), sort_keys=True) for d in (dataset, again))
        require(one == other, f"{part} is another one when the same files are opened again")
    for split in SPLITS:
        sizes = dataset.groups(split)
        require(len(sizes) == len(dataset.group_costs), f"{split}: group_costs are not one a group")
        require(sum(sizes) > 0, f"{split}: no samples; make the dataset of the example larger")
        batch = dataset.batch(split, int(np.argmax(sizes)), np.zeros(1, dtype=np.int64))
        require(tuple(batch.weight_B.shape) == (1,), f"{split}: weight_B is not one a sample")
        wanted, axes = target(batch)
        require(wanted.shape[axes.index("B")] == 1, f"{split}: one sample has several targets")
        require(is_finite(wanted), f"{split}: a target is infinite or NaN")


def splits_are_disjoint(case: Case) -> None:
    """No target of one split, nor a time step of one, is also in another."""
    dataset = case.opened()
    seen: dict[tuple[int, bytes], str] = {}
    for split in SPLITS:
        for group, size in enumerate(dataset.groups(split)):
            for sample in range(min(int(size), _COMPARED)):
                wanted, axes = target(dataset.batch(split, group, np.array([sample])))
                steps = wanted.unbind(axes.index("T")) if "T" in axes else (wanted,)
                for values in steps:
                    if values.numel() < 2 or values.min() == values.max():
                        continue  # such as a field that is zero everywhere
                    other = seen.setdefault((group, values.cpu().numpy().tobytes()), split)
                    require(
                        other == split,
                        f"sample {sample} of group {group} of the {split} split has a target that is also "
                        f"in the {other} split: windows must not reach into each other",
                    )


def statistics_are_of_training(case: Case) -> None:
    """Statistics come from the training samples only."""
    split = case.dataset.get("split")
    if case.prepared is None or split is None:
        return
    prepared, rest = case.prepared, 1 - split["train"] - split["validation"]

    def statistics(**changes: float) -> Any:
        files = prepared({**case.dataset, "split": {**split, **changes}})
        return case.opened(files).normalisation.to_json()

    given = statistics()
    longer = statistics(validation=split["validation"] + rest / 4)
    shorter = statistics(train=0.75 * split["train"])
    require(
        given == longer,
        "a longer validation split changes the statistics: take them from the training samples only",
    )
    require(
        given != shorter,
        "fewer training samples do not change the statistics: take them from the training samples only",
    )


def evaluation_fills_the_table(case: Case) -> None:
    """Training writes a checkpoint and a receipt, and their evaluation gives the rows of the table."""
    request = Request(
        experiment="example",
        layout="n1_gpu1",
        seed=0,
        target_epoch=1,
        definition=dict(case.definition),
        files=dict(case.files),
        runs=str(case.directory / "runs"),
        checkpoint=str(case.directory / "epoch_1.ckpt"),
        receipt=str(case.directory / "epoch_1.json"),
        plugins=list(case.plugins),
    )
    on_ranks(1, _segment_on_rank, dataclasses.asdict(request), directory=case.directory)
    names = ("metrics.json", "figures", "training.png")
    metrics, figures, curves = (case.directory / name for name in names)
    outputs = (Path(request.checkpoint), Path(request.receipt))
    evaluate_run(*outputs, case.files, metrics, figures, curves)
    scores = json.loads(metrics.read_text())
    missing = {"validation", "test"} - scores.keys()
    require(not missing, f"the scores have no {' and no '.join(sorted(missing))}")
    rows = case.kind.table.rows(scores)
    require(bool(rows), "Table.rows gives no row")
    require(
        all({"variable", "skill"} <= row.keys() for row in rows),
        "a row of the table has no `variable` or no `skill`",
    )
    require(any(figures.iterdir()), "the evaluation drew no figure")


OF_SAMPLES = (
    samples_open,
    splits_are_disjoint,
    statistics_are_of_training,
    evaluation_fills_the_table,
)


def _segment_on_rank(request: Mapping[str, Any], ranks: Ranks) -> None:
    load_plugins(request["plugins"])
    run_segment(Request(**request), ranks)
