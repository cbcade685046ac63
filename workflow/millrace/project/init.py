"""Write a small project folder, from which the workflow of this installation is run.

It holds a Snakefile, a commented configuration, profiles, a .gitignore and a README. Without --source raw
files are simulated. With it their format is found by the names of the files, and what to take of those of
groundwater and of ICON by their content.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from millrace.cluster.facts import FILE, PROFILES, Cluster, find_profile
from millrace.command_line import make_parser
from millrace.config import nearest
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.files import output_errors
from millrace.home import snakefile
from millrace.systems.base import Block, RawFormat, System, resolve
from millrace.systems.registry import load_plugins, plugin, recognised, systems

_HERE = "millrace.project"


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Write the folder and say what to do next; returns the exit code."""
    options = parser().parse_args(arguments)
    plugins = load_plugins(options.plugins)
    source = options.source.absolute() if options.source else None
    system, raw = choose(options.system, options.format, source, plugins)
    config = configuration(system, raw, source, plugins)
    write_project(options.folder, config, options.profile)
    print(
        f"{options.folder}: a project of {system.name}. Look at config/config.yaml in it, then:\n"
        f"  cd {options.folder}\n  snakemake -n --profile profiles/{options.profile.name}"
    )
    return ExitCode.OK


def choose(
    system: str | None, raw: str | None, source: Path | None, plugins: Sequence[str] = ()
) -> tuple[System, RawFormat]:
    """Find the system and the format of a new project.

    Those that are named, else those whose files are in ``source``, else those of the first of ``plugins``,
    else the first of all. Raises `ConfigError` if there is none, or more than one fits.
    """
    known = systems()
    if system is not None and system not in known:
        raise ConfigError(f"--system: no system named {system!r}; {nearest(system, known)}")
    pairs = {
        one.name: (other, one)
        for other in known.values()
        for one in other.formats
        if system in (None, other.name)
    }
    if raw is not None and raw not in pairs:
        raise ConfigError(f"--format: no format named {raw!r}; {nearest(raw, pairs)}")
    if source is not None and not source.is_dir():
        raise ConfigError(f"--source: no directory {source}; name the one that holds the raw files")
    if raw is None and source is not None:
        raw = recognised(list(pairs), source, "--format")
    if raw is None:
        first = system or (plugin(plugins[0]).name if plugins else next(iter(known)))
        raw = next((name for name, (other, _) in pairs.items() if other.name == first), None)
    if raw is None:
        raise ConfigError(f"--system: {system} has no raw files of its own; name their --format")
    return pairs[raw]


def configuration(
    system: System, raw: RawFormat, source: Path | None, plugins: Sequence[str] = ()
) -> str:
    """Text of the configuration of a new project.

    The template of the system is given ``source`` (None: raw files are simulated), ``format``, ``plugins``
    and ``found``, what `RawFormat.inspect` says of the source. Raises `ConfigError` without raw files and a
    simulator for them, `DataError` if the source holds other files.
    """
    if source is None and raw.simulate is None:
        raise ConfigError(
            f"--source: there is no simulator of {raw.name}; name the directory that holds {raw.holds}"
        )
    found = resolve(raw.inspect)(source) if source is not None and raw.inspect else {}
    where = None if source is None else str(source)
    values = {"source": where, "format": raw.name, "found": found, "plugins": list(plugins)}
    if system.project:
        return _render(system.project, **values)
    return _render(
        f"{_HERE}:templates/config.yaml.j2", **values, blocks=_example(system, raw, where)
    )


def write_project(folder: Path, config: str, profile: Path) -> None:
    """Write the folder, which must be new or empty; nothing stays if that fails.

    Raises `ConfigError` if there is something, `millrace.files.OutputError` if the place cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not an empty folder; name a new one")
    workflow, activation = snakefile(), Path(sys.prefix, "bin/activate")
    values = {
        "name": folder.absolute().name,
        "profile": profile.name,
        "snakefile": str(workflow),
        "environment": shlex.quote(str(activation)) if activation.is_file() else "",
        "account": (profile / FILE).is_file() and Cluster.read(profile.absolute()).account_required,
    }
    files = {
        name: _render(f"{_HERE}:templates/{template}.j2", **values)
        for name, template in {
            "Snakefile": "Snakefile",
            "README.md": "README.md",
            ".gitignore": "gitignore",
        }.items()
    }
    with output_errors(folder):
        # Beside a new folder, within one that is there: the place above it may be closed.
        place = folder if folder.exists() else folder.absolute().parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".millrace_init_", dir=place) as scratch:
            made = Path(scratch) / "project"
            (made / "config").mkdir(parents=True)
            for name, text in {**files, "config/config.yaml": config}.items():
                (made / name).write_text(text)
            # Those that every other one builds on, and this machine's.
            profiles = {one: PROFILES / one for one in ("default", "local")} | {
                profile.name: profile
            }
            for name, path in profiles.items():
                shutil.copytree(path, made / "profiles" / name)
            if folder.exists():
                for path in made.iterdir():
                    path.rename(folder / path.name)
            else:
                made.rename(folder)


def _example(system: System, raw: RawFormat, source: str | None) -> Block:
    """Blocks of a configuration from what a system gives to try its models on."""
    kind = next((kind for kind in system.kinds if raw.name in kind.formats), None)
    model = next((one for one in system.models if kind and one.kind == kind.name), None)
    if kind is None or model is None:
        raise ConfigError(f"--system: {system.name} has no model on raw files of {raw.name}")
    dataset = {**kind.example.get("dataset", {}), "source": source or "demo", "format": raw.name}
    if source is not None:
        dataset.pop("demo", None)
    experiment = {
        "dataset": "mine",
        "data": dict(kind.example.get("data", {})),
        "model": {"name": model.name, **model.example},
        "train": {"epochs": 10, "global_batch": 8},
    }
    return {"datasets": {"mine": dataset}, "experiments": {model.name: experiment}}


def _render(template: str, **values: Any) -> str:
    """Text of a template, ``package:file``."""
    package, _, name = template.partition(":")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are no pages of the web
    )
    environment.filters.update(yaml=_inline, block=_block, quoted=json.dumps)
    return environment.from_string((resources.files(package) / name).read_text()).render(values)


def _inline(value: Any) -> str:
    """A value in YAML, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _block(value: Any) -> str:
    """A mapping in YAML, in several lines."""
    return yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=None
    ).strip()


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "init",
        __doc__,
        "my_project",
        "my_project --source /data/site --profile gilbreth",
        "my_project --system weather",
        "my_project --format waymo --source /data/womd/training",
    )
    add = made.add_argument
    add("folder", type=Path, metavar="FOLDER", help="to make; it must be new or empty")
    text = "the field; default: that of the raw files, else groundwater"
    add("--system", metavar="SYSTEM", help=text)
    add("--source", type=Path, metavar="DIR", help="raw files; default: simulated ones")
    add("--format", metavar="FORMAT", help="of the raw files; default: found by their names")
    text = "where it will run, a name or a folder (default: local, this machine)"
    add("--profile", type=find_profile, default="local", metavar="PROFILE", help=text)
    text = "systems from outside: files or modules"
    add("--plugins", nargs="+", default=[], metavar="PLUGIN", help=text)
    return made
