"""The command ``millrace config``: check, show and explain a configuration."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from millrace.command_line import add_command, add_json, make_parser, print_json
from millrace.config import Settings
from millrace.configuration import Configuration, configuration_schema
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.plan import Plan
from millrace.reference import explain, reference
from millrace.systems.registry import get_kind, load_plugins, models, raw_format
from millrace.yaml_files import DEFAULT, read_files


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    examples = ("check my_site.yaml", "explain learning_rate", "schema > schema.json")
    made = make_parser("config", __doc__, *examples)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    text = "check files as Snakemake reads them together"
    checked = add_command(commands, "check", _check, text, "", "my_site.yaml")
    text = "print what comes of files, with the defaults of all keys"
    parts = ("my_site.yaml", "my_site.yaml --key experiments.site_head.train --json")
    shown = add_command(commands, "show", _show, text, *parts)
    for one in (checked, shown):
        one.add_argument("files", nargs="*", type=Path, metavar="FILE", help=f"laid over {DEFAULT}")
    shown.add_argument("--key", default="", metavar="KEY", help="only this part")
    add_json(shown)
    text = "what a key takes, its default and meaning; of all keys as Markdown, without KEY"
    told = add_command(commands, "explain", _explain, text, "learning_rate", "train.loss.kind")
    told.add_argument("key", nargs="?", metavar="KEY", help="a name, or the end of a path")
    text = "print the JSON schema, by which editors complete and check keys"
    printed = add_command(commands, "schema", _print_schema, text, "", "--plugin my_gru.py")
    text = "file or module of a system from outside, whose keys are told as well; can be repeated"
    for one in (told, printed):
        one.add_argument("--plugin", action="append", default=[], metavar="PLUGIN", help=text)
    return made


@exits_with_code
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    options.command(options)
    return ExitCode.OK


def _check(options: argparse.Namespace) -> None:
    plan = _plan(options.files)
    for note in plan.advice():
        print(f"note: {note}", file=sys.stderr)
    print(f"checked: {len(plan.experiments)} experiments on {len(plan.datasets)} datasets")


def _show(options: argparse.Namespace) -> None:
    made = _part(with_defaults(_plan(options.files)), options.key)
    if options.json:
        print_json(made)
    else:
        print(yaml.safe_dump(made, sort_keys=False, allow_unicode=True), end="")


def _explain(options: argparse.Namespace) -> None:
    load_plugins(options.plugin)
    print(explain(options.key) if options.key else reference().rstrip("\n"))


def _print_schema(options: argparse.Namespace) -> None:
    load_plugins(options.plugin)
    print_json(configuration_schema())


def with_defaults(plan: Plan) -> dict[str, Any]:
    """The configuration of a plan with the defaults of all keys that were left out."""
    whole = Configuration.parse(plan.config, "config:").model_dump(mode="json")
    for name, dataset in plan.datasets.items():
        whole["datasets"][name] = _filled(raw_format(dataset).dataset_settings(), dataset)
    for name, block in plan.experiments.items():
        model = models()[block["model"]["name"]]
        given = {key: value for key, value in block["model"].items() if key != "name"}
        if "parallel" not in block:  # which divides the model even with defaults alone
            del whole["experiments"][name]["parallel"]
        whole["experiments"][name] |= {
            "data": _filled(get_kind(model.kind).data_settings(), block["data"]),
            "model": {"name": model.name, **_filled(model.model_settings(), given)},
        }
    return whole


def _filled(settings: type[Settings], values: Any) -> dict[str, Any]:
    return settings.parse(values, "config:").model_dump(mode="json")


def _plan(files: Sequence[Path]) -> Plan:
    return Plan(read_files(files), folders=[file.parent for file in files])


def _part(config: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        if not isinstance(config, dict) or part not in config:
            known = ", ".join(config) if isinstance(config, dict) else "nothing"
            raise ConfigError(f"--key {key}: there is no {part!r}; known are {known}")
        config = config[part]
    return config
