"""The command ``millrace config``: check, show and explain a configuration."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from millrace.config import Settings
from millrace.configuration import Configuration, configuration_schema
from millrace.errors import ConfigError, exits_with_code
from millrace.plan import Plan
from millrace.reference import explain, reference
from millrace.systems.registry import get_kind, load_plugins, models, raw_format
from millrace.yaml_files import merged, read_yaml

_DEFAULT = Path("config/config.yaml")
_EXAMPLES = """\
examples:
  millrace config check my_site.yaml                 as snakemake --configfile my_site.yaml reads it
  millrace config show my_site.yaml --key experiments.site_head
  millrace config explain learning_rate
  millrace config explain                            the reference of all keys, in Markdown
  millrace config schema > schema.json               for editors
"""


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    made = argparse.ArgumentParser(
        prog="millrace config",
        description="Check, show and explain a configuration.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("check", "check files as Snakemake reads them together, without running it"),
        ("show", "print what comes of them, with all defaults"),
    ):
        one = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        one.add_argument("files", nargs="*", type=Path, help=f"laid over {_DEFAULT} in this order")
        if name == "show":
            one.add_argument("--key", default="", help="only this part: experiments.my_run.train")
            one.add_argument("--json", action="store_true", help="JSON instead of YAML")
    one = commands.add_parser("explain", help="what a key takes, its default and meaning")
    one.add_argument("key", nargs="?", help="a name, or the end of a path; all keys without it")
    one.add_argument("--plugin", action="append", default=[], help="with the keys of a plug-in")
    one = commands.add_parser(
        "schema", help="print the JSON schema, by which editors complete keys"
    )
    one.add_argument("--plugin", action="append", default=[], help="with the keys of a plug-in")
    return made


@exits_with_code
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(arguments)
    if given.command in ("explain", "schema"):
        load_plugins(given.plugin)
    if given.command == "explain":
        print(explain(given.key) if given.key else reference(), end="" if not given.key else "\n")
    elif given.command == "schema":
        print(json.dumps(configuration_schema(), indent=1, ensure_ascii=False))
    else:
        plan = Plan(_read(given.files), folders=[file.parent for file in given.files])
        if given.command == "check":
            for note in plan.advice():
                print(f"note: {note}", file=sys.stderr)
            print(f"checked: {len(plan.experiments)} experiments on {len(plan.datasets)} datasets")
        else:
            _show(_part(with_defaults(plan), given.key), given.json)
    return 0


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


def _read(files: Sequence[Path]) -> dict[str, Any]:
    found = [*([_DEFAULT] if _DEFAULT.is_file() else []), *files]
    if not found:
        raise ConfigError(f"no configuration: there is no {_DEFAULT} here, and no file was named")
    made: dict[str, Any] = {}
    for file in found:
        made = merged(made, read_yaml(file))
    return made


def _part(config: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        if not isinstance(config, dict) or part not in config:
            known = ", ".join(config) if isinstance(config, dict) else "nothing"
            raise ConfigError(f"--key {key}: there is no {part!r}; known are {known}")
        config = config[part]
    return config


def _show(config: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(config, indent=1, ensure_ascii=False))
    else:
        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
