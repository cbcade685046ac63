"""Scores of a weather model in the layout of WeatherBench 2, over all starts of its test period.

Writes a file of NetCDF for the model, persistence and climatology, as WeatherBench 2 does: variables by
their names there along metric, region, lead_time and level. `millrace predict --names weatherbench2`
writes forecasts that it reads.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from millrace.command_line import make_parser
from millrace.errors import ConfigError, DataError, ExitCode, exits_with_code
from millrace.files import atomic_write
from millrace.systems.base import Progress


def write_scores(
    checkpoint: Path,
    samples: Path,
    output: Path,
    *,
    days: float = 10.0,
    stride: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the scores of a checkpoint to files in the directory ``output``.

    ``samples`` is the ``weather.h5`` of the training. Returns ``files``, ``starts`` and what
    the ``climatology`` is. Raises `ConfigError` for a model of something else, and `DataError` for samples
    of another grid.
    """
    # Imports PyTorch and xarray, which --help does without.
    from millrace.evaluation.loaded import load
    from millrace.evaluation.trained_model import TrainedModel
    from millrace.systems.weather.results import score_all_starts

    if days <= 0 or stride < 1:
        raise ConfigError("--days, --stride: expected a positive length, and 1 or more steps")
    model = load(checkpoint, device=device)
    if (kind := model.recipe["kind"]) != "weather":
        raise ConfigError(f"{checkpoint} forecasts {kind}; expected a model of weather")
    dataset = model.opened({"weather": samples})
    _check_same(model.recipe, dataset, samples)
    trained = TrainedModel(model.spec, model.module_for(dataset), dataset)
    made, told = score_all_starts(trained, days, stride, progress)
    output.mkdir(parents=True, exist_ok=True)
    files = [f"{name}_deterministic.nc" for name in made]
    for name, file in zip(made, files, strict=True):
        about = {**model.about, "forecast": name, **told}
        with atomic_write(output / file) as partial:
            made[name].assign_attrs(about).to_netcdf(partial)
    return {**told, "files": files}


def _check_same(recipe: Mapping[str, Any], dataset: Any, path: Path) -> None:
    """Refuse samples of other channels, or of another grid as far as the checkpoint holds its own."""
    values = recipe.get("samples", {}).get("weather", {}).get("values", {})
    own = {"channels": list(recipe["normalisation"]["variables"]), **values}
    given = {"channels": list(dataset.variables), "level": dataset.levels}
    given |= {"latitude": dataset.latitude, "longitude": dataset.longitude}
    for name, found in given.items():
        if name in own and not np.array_equal(own[name], found):
            raise DataError(f"{path}: {name} is not that of the training; give the samples of it")


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from millrace.systems.registry import load_plugins

    options = vars(parser().parse_args(arguments))
    load_plugins(options.pop("plugins"))
    told = write_scores(**options)
    print(f"{options['output']}: {', '.join(told['files'])} of {told['starts']} starts")
    print(f"climatology: {told['climatology']}")
    return ExitCode.OK


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "weatherbench",
        __doc__,
        "--checkpoint epoch_20.ckpt --samples weather.h5 --output scores --stride 2",
    )
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE.ckpt", help="of a training")
    add("--samples", type=Path, required=True, metavar="weather.h5", help="of the same training")
    add("--output", type=Path, required=True, metavar="DIR", help="files of scores")
    add("--days", type=float, default=10.0, metavar="N", help="length of a forecast (default: 10)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda, if there is a GPU")
    add("--plugins", nargs="+", default=[], metavar="PLUGIN", help="systems from outside")
    add("--stride", type=int, default=1, metavar="N", help="steps between starts (default: 1)")
    return made
