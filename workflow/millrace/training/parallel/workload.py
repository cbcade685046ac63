"""An experiment as a `Workload`, and a program that says what GPUs hold for many of them.

The program serves planning, which imports no torch: it reads a JSON list of the arguments of `needed_bytes`
from its input, and writes a line of JSON for each.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millrace.errors import ConfigError, DataError
from millrace.layout import Layout
from millrace.models.spec import Division
from millrace.systems.base import Block, resolve
from millrace.systems.registry import get_model, kind_of, load_plugins
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.footprint import Workload, footprints
from millrace.training.request import EXECUTION, decisive


def _refused(*_: Any) -> Any:
    raise ConfigError("a model that can only be replicated has no stages")


_UNDIVIDED = Division(
    units=lambda module: [name for name, _ in module.named_children()],
    stage=_refused,
    costs=_refused,
    drop=_refused,
    steps=lambda _: 1,
    inputs=lambda _: {},
    loss=_refused,
    pairs=lambda _: (),
    packed=lambda _: {},
    rounded=lambda _: (),
)
"""Of models that can only be replicated."""


def described(
    experiment: Block,
    dataset: Block,
    layout: Layout,
    grid: tuple[int, int] | None = None,
    levels: int | None = None,
) -> tuple[Workload, ParallelConfig, ExecutionConfig]:
    """Workload of an experiment, and how it is divided and executed on a layout.

    ``grid`` are the rows and columns of the samples, ``levels`` their pressure levels; None: those of the
    raw files. Raises `ConfigError` if the experiment cannot be divided in this way, `DataError` if the raw
    files do not say their size.
    """
    model = dict(experiment["model"])
    spec = get_model(model.pop("name"))
    outline = kind_of(spec.name).outline
    if outline is None:
        raise ConfigError(
            f"{spec.name}: what its samples will hold is not known before they are made"
        )
    division = spec.division or _UNDIVIDED
    model_config: Any = spec.config.parse(model, "model")
    train: TrainConfig = TrainConfig.parse(decisive(experiment["train"]), "train")
    others = {k: v for k, v in experiment["train"].items() if k in EXECUTION}
    execution: ExecutionConfig = ExecutionConfig.parse(others, "train")
    outlined = resolve(outline)(dataset, experiment["data"], grid, levels)
    asked = ParallelConfig.parse(experiment.get("parallel", {}), "parallel")
    parallel = asked.for_model(
        spec.name,
        model_config,
        layout.world_size,
        train.global_batch,
        division.steps(outlined),
    )
    parallel.check_options(
        bool(execution.compile), train.gradient_compression, train.replay is not None
    )
    spec = replace(spec, division=division)
    return Workload(spec, model_config, outlined, outlined.batch, train), parallel, execution


def needed_bytes(experiment: Block, dataset: Block, layout: str) -> int:
    """Bytes that the GPU with the most of them holds in a training; raises as `described` does."""
    workload, parallel, execution = described(experiment, dataset, Layout.parse(layout))
    recompute = execution.activation_checkpointing
    found = footprints(workload, parallel, execution.micro_batch, recompute)
    return max(one.total for one in found)


def _answer(arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"bytes": needed_bytes(**arguments)}
    except ConfigError as error:
        return {"refused": str(error)}
    except DataError as error:
        return {"unknown": str(error)}


if __name__ == "__main__":
    load_plugins(sys.argv[1:])
    for asked in json.load(sys.stdin):
        print(json.dumps(_answer(asked)), flush=True)
