"""A submission to the Waymo Open Sim Agents Challenge: rollouts of the scenarios of its test set.

Writes a folder with a shard for each TFRecord file. Pack it before it is submitted:
`tar czf submission.tar.gz -C FOLDER .`
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from millrace.command_line import make_parser
from millrace.errors import ConfigError, DataError, ExitCode, exits_with_code
from millrace.files import output_errors
from millrace.systems.base import Progress
from millrace.systems.registry import load_plugins

_TEXTS = {
    "account": ("account_name", "email address that is registered at waymo.com/open"),
    "method": ("unique_method_name", "short name of the method"),
    "affiliation": ("affiliation", "of the authors"),
    "description": ("description", "of the method"),
    "link": ("method_link", "to a paper, say"),
}


def write_submission(
    checkpoint: Path,
    source: Path,
    output: Path,
    about: dict[str, Any],
    *,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write a submission to a folder, complete or not at all; see `millrace.systems.traffic.submission`.

    ``about`` are values of the fields of a submission by name. Returns the numbers of ``scenarios``,
    ``objects`` and ``shards``. Raises `ConfigError` for a model of something else, raw files that are not
    of Waymo, or a folder that is there; `DataError` for malformed files.
    """
    # Imports PyTorch, which --help does without.
    from millrace.evaluation.loaded import load
    from millrace.systems.traffic.formats import Traffic
    from millrace.systems.traffic.submission import write_shards

    if output.exists():
        raise ConfigError(f"{output} is there already; name another folder, or remove it")
    model = load(checkpoint, device=device)
    if (kind := model.recipe["kind"]) != "scenarios":
        raise ConfigError(f"{checkpoint} forecasts {kind}; expected a model of traffic")
    try:
        traffic = Traffic("waymo", source)
    except DataError as error:
        raise DataError(f"{error}, whose scenarios and objects a submission names") from None
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with output_errors(output):
            partial.mkdir(parents=True)
            scenarios, objects = write_shards(model, traffic, partial, about, seed, progress)
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"scenarios": scenarios, "objects": objects, "shards": len(traffic.files)}


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(parser().parse_args(arguments))
    load_plugins(options.pop("plugins"))
    about = {name: options.pop(key) for key, (name, _) in _TEXTS.items()}
    about = {name: value for name, value in about.items() if value}
    about["authors"] = options.pop("authors")
    about["acknowledge_complies_with_closed_loop_requirement"] = options.pop("closed_loop")
    told = write_submission(**options, about=about)
    print(f"{options['output']}: {', '.join(f'{count} {key}' for key, count in told.items())}")
    return ExitCode.OK


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "sim-agents",
        __doc__,
        "--checkpoint epoch_32.ckpt --source /data/womd/test --output submission "
        "--account me@lab.org --method SMART",
    )
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE.ckpt", help="of a training")
    add("--source", type=Path, required=True, metavar="DIR", help="TFRecord files of Waymo")
    add("--output", type=Path, required=True, metavar="DIR", help="folder that is made")
    for name, (_, text) in _TEXTS.items():
        required = name in ("account", "method")
        add(f"--{name}", required=required, metavar="TEXT", help=text)
    add("--authors", nargs="+", default=[], metavar="NAME", help="of the method")
    add(
        "--closed-loop",
        action="store_true",
        help="acknowledge that the method meets the closed-loop requirement of the challenge",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda, if there is a GPU")
    add("--plugins", nargs="+", default=[], metavar="PLUGIN", help="systems from outside")
    return made
