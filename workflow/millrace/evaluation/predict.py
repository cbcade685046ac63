"""Apply a trained model to new raw files, which need not be those of its training."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.command_line import make_parser
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.systems.base import resolve
from millrace.systems.registry import kind_of, load_plugins


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(parser().parse_args(arguments))
    # Imports PyTorch, which --help can do without.
    from millrace.evaluation.trained_model import read_training

    options["receipt"] = options["receipt"] or options["checkpoint"].with_suffix(".json")
    load_plugins(options.pop("plugins"))
    kind = kind_of(read_training(options["receipt"])["definition"]["model"]["name"])
    if kind.prediction is None:
        raise ConfigError(f"models on {kind.name} are not applied to new raw files")
    options["device"] = _device(options["device"])
    given = {key: value for key, value in options.items() if value is not None}
    _report(resolve(kind.prediction)(**given), options["output"])
    return ExitCode.OK


def _device(name: str | None) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; leave the option out")
    return None if name is None else torch.device(name)


def _report(result: Mapping[str, Any], output: Path) -> None:
    print(f"{output}: {result['windows']} forecasts of {result['points']} points")
    for name, scores in result["variables"].items():
        skill = "undefined" if scores["skill"] is None else f"{scores['skill']:.3f}"
        unit = result["units"][name]
        print(
            f"{name}: RMSE {scores['rmse']:.4g} {unit}, persistence "
            f"{scores['persistence']['rmse']:.4g} {unit}, skill {skill}"
        )
    if share := result["points_outside_training_box"]:
        print(f"warning: {share:.0%} of the points lie outside the box of the training data")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "predict",
        __doc__,
        "--checkpoint epoch_12.ckpt --source /data/finer --output predictions.h5",
        "--checkpoint epoch_12.ckpt --source new --output new.h5 --metrics new.json --device cpu",
    )
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE.ckpt", help="of a training")
    add("--receipt", type=Path, metavar="FILE.json", help="default: beside the checkpoint")
    add("--source", type=Path, required=True, metavar="DIR", help="raw files, as for training")
    add("--output", type=Path, required=True, metavar="FILE.h5", help="forecasts")
    add("--metrics", type=Path, metavar="FILE.json", help="errors against the truth")
    add("--figure", type=Path, metavar="FILE.png", help="error over time")
    add("--workspace", type=Path, metavar="DIR", help="for samples; default: temporary")
    add("--device", choices=("cpu", "cuda"), help="default: cuda, if there is a GPU")
    add("--stride", type=int, metavar="N", help="steps between forecasts; default: no overlap")
    add("--workers", type=int, default=1, metavar="N", help="processes that read (default: 1)")
    add("--plugins", nargs="+", default=[], metavar="PLUGIN", help="systems from outside")
    return made
