"""Apply a trained model to raw files that no training has seen, of any system."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from millrace.command_line import make_parser
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.files import write_json
from millrace.job_log import progress_in_lines
from millrace.provenance import provenance
from millrace.systems.base import Progress
from millrace.systems.registry import load_plugins

OPTIONS = {
    "times": "FIRST..LAST or one time, as dates or in the unit of the series, or `validation`",
    "limit": "at most so many forecasts, the first ones",
    "scenarios": "of traffic: their names",
    "members": "forecasts drawn of each start or time",
    "seed": "of what is drawn",
    "perturb": "size of changes of the first states of weather, for members, in changes of one step",
    "days": "length of a forecast of the weather (default: 5)",
    "seconds": "length of a rollout of traffic (default: 8)",
    "stride": "steps between forecasts; default: no overlap",
    "names": "in files of weather: cf (default) or weatherbench2",
}
"""Options of forecasts that the command has; which of them a system takes, it says itself."""


def predict_files(
    checkpoint: str | Path | Sequence[str | Path],
    source: str | Path,
    output: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    samples: Mapping[str, Path] | None = None,
    raw: str | None = None,
    calibration: Path | None = None,
    metrics: Path | None = None,
    figure: Path | None = None,
    workspace: Path | None = None,
    device: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    command: str = "millrace predict",
) -> dict[str, Any]:
    """Forecast from raw files, and compare with what they know.

    Parameters
    ----------
    checkpoint : path, or sequence of paths
        Of a training, from any device; nothing else is needed, see `millrace.evaluation.loaded.load`. Those
        of several seeds, say, forecast as members of an ensemble.
    source : path
        Raw files of a format that the system reads.
    output : path
        Forecasts to write, NetCDF (.nc) or Zarr (.zarr), see `forecast_file`.
    options : mapping, optional
        Of the forecasts, such as ``members``, ``times`` and ``limit``; by default they are from all states.
    samples : mapping, optional
        Sample files of the training by role, for checkpoints that do not load by themselves.
    raw : str, optional
        Format of the raw files; by default it is recognised by the names of the files.
    calibration : Path, optional
        Scores on validation data, see `millrace.evaluation.calibration.read_calibration`: members are
        spread about their mean as the errors there ask for, or drawn with another temperature.
    metrics, figure : Path, optional
        JSON to write with what is returned, and the error over time to draw.
    workspace : Path, optional
        Directory for the samples made of the raw files; by default a temporary one.
    device : str, optional
        By default the GPU, if there is one.
    workers : int
        Processes that parse raw files.
    progress : callable, optional
        Called with (done, all).
    command : str
        For the attribute ``history``.

    Raises
    ------
    DataError
        The checkpoint is damaged or of an earlier version, or a raw file is malformed.
    ConfigError
        An option is wrong, or the raw files cannot be what the model was trained on.
    """
    # Imports PyTorch and xarray, which --help and planning do without.
    from millrace.evaluation.calibration import read_calibration
    from millrace.evaluation.ensemble_forecasts import check_alike, together
    from millrace.evaluation.forecast_file import axis_of, forecast_file
    from millrace.evaluation.forecast_scores import ForecastScores
    from millrace.evaluation.loaded import load

    source, output = Path(source), Path(output)
    given = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    models = [load(one, samples=samples, device=device) for one in given]
    check_alike(models)
    model, calibrated = models[0], None
    known = model.application.options.model_fields
    every = {"every": True} if "every" in known else {}
    chosen = model.options({**every, **(options or {})})
    if calibration is not None:
        calibrated = read_calibration(calibration, models, chosen)
        if twice := sorted(calibrated.options.keys() & (options or {}).keys()):
            raise ConfigError(f"--calibration sets {twice[0]}, too; give one of them")
        chosen = chosen.replaced(**calibrated.options)
    described = {key: ", ".join(one.about[key] for one in models) for key in model.about}
    described |= {key: model.about[key] for key in ("model", "millrace_version")}
    described |= calibrated.about if calibrated else {}
    scores, before, forecasts = ForecastScores(), ForecastScores(), 0
    with nullcontext(workspace) if workspace else tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        prepared = model.prepared(source, directory, chosen, raw, workers)
        remarks = model.remarks(prepared)
        about = {**described, "options": chosen.model_dump_json()}
        with forecast_file(output, about, command) as write:
            told = [progress, *[None] * (len(models) - 1)]
            pairs = zip(models, told, strict=True)
            for piece in together([one.pieces(prepared, chosen, tell) for one, tell in pairs]):
                if calibrated is not None and calibrated.factors:
                    before.add(piece)
                    piece = replace(piece, forecast=calibrated(piece.forecast))
                write(model.application.as_written(piece.forecast, chosen))
                scores.add(piece)
                forecasts += piece.forecast.sizes[axis_of(piece.forecast)]
    variables = scores.result()
    for name, plain in before.result().items():
        variables[name]["uncalibrated"] = {
            key: plain[key] for key in ("crps", "spread", "spread_skill")
        }
    result = {
        "schema": "millrace.prediction_metrics/2",
        **described,
        "options": chosen.model_dump(),
        "forecasts": forecasts,
        "remarks": remarks,
        "variables": variables,
        "provenance": provenance(),
    }
    if metrics is not None:
        write_json(metrics, result)
    if figure is not None:
        from millrace.figures.forecasts import error_over_time

        error_over_time(*scores.over_time(), figure)
    return result


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    options = vars(parser().parse_args(given))
    load_plugins(options.pop("plugins"))
    chosen = {key: options.pop(key) for key in OPTIONS}
    result = predict_files(
        **options,
        options={key: value for key, value in chosen.items() if value is not None},
        progress=progress_in_lines("forecasts", sys.stderr),
        # Where files lie is nobody's business who gets the forecasts.
        command=f"millrace predict {shlex.join(Path(one).name if '/' in one else one for one in given)}",
    )
    from millrace.evaluation.forecast_scores import sentences

    print(f"{options['output']}: {result['forecasts']} forecasts")
    for line in sentences(result["variables"]):
        print(line)
    for remark in result["remarks"]:
        print(f"warning: {remark}")
    return ExitCode.OK


def samples_by_role(values: Iterable[str]) -> dict[str, Path]:
    """Sample files by role, from ``role=FILE``; raises `ConfigError` for something else."""
    found = {}
    for value in values:
        role, equals, path = value.partition("=")
        if not (role and equals and path):
            raise ConfigError(f"--samples {value}: expected role=FILE, such as blocks=blocks.h5")
        found[role] = Path(path)
    return found


class _Samples(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, samples_by_role(values))


def add_model_options(made: argparse.ArgumentParser, several: bool = False) -> None:
    """Options that name a model, which `millrace export` has, too, or several."""
    add = made.add_argument
    number: dict[str, Any] = {"nargs": "+"} if several else {}
    about = "of a training; several are an ensemble" if several else "of a training"
    add("--checkpoint", type=Path, required=True, metavar="FILE.ckpt", help=about, **number)
    add("--samples", nargs="+", action=_Samples, metavar="ROLE=FILE", help="sample files of "
        "the training, for a checkpoint that is of an earlier version or of a very large grid")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), help="default: cuda, if there is a GPU")
    add("--plugins", nargs="+", default=[], metavar="PLUGIN", help="systems from outside")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "predict",
        __doc__,
        "--checkpoint epoch_12.ckpt --source /data/finer --output forecasts.nc",
        "--checkpoint epoch_8.ckpt --source /data/icon --output fine.zarr --members 20 --seed 1",
        "--checkpoint epoch_20.ckpt --source /data/era5.zarr --output weather.nc --days 10 "
        "--times 2020-01-01..2020-01-03",
        "--checkpoint seed*/epoch_12.ckpt --source /data/site --output ensemble.nc",
    )
    add_model_options(made, several=True)
    add = made.add_argument
    add("--source", type=Path, required=True, metavar="PATH", help="raw files, as for training")
    add("--output", type=Path, required=True, metavar="FILE", help="forecasts, .nc or .zarr")
    add("--calibration", type=Path, metavar="FILE.json", help="--metrics of --times validation, or "
        "metrics.json of an evaluation: spread members as validation data ask for")  # fmt: skip
    add("--metrics", type=Path, metavar="FILE.json", help="errors against the truth")
    add("--figure", type=Path, metavar="FILE.png", help="error over time")
    add("--workspace", type=Path, metavar="DIR", help="for samples; default: temporary")
    add("--format", dest="raw", metavar="NAME", help="of the raw files; default: by their names")
    add("--workers", type=int, default=1, metavar="N", help="processes that read (default: 1)")
    kinds: dict[str, type] = dict.fromkeys(("times", "names", "scenarios"), str)
    kinds |= dict.fromkeys(("days", "seconds", "perturb"), float)
    for name, text in OPTIONS.items():
        kind = kinds.get(name, int)
        metavar = "TIMES" if name == "times" else "NAME" if kind is str else "N"
        several: dict[str, Any] = {"nargs": "+"} if name == "scenarios" else {}
        add(f"--{name}", type=kind, metavar=metavar, help=text, **several)
    return made
