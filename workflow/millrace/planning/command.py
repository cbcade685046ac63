"""Show what a configuration asks for: jobs by stage, what is done, hours, memory, GPUs and disk.

Nothing runs and nothing is submitted. With --profile, hours asked are the walltimes that jobs request
there, an upper bound; hours expected are modelled from finished jobs of the same kind.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from millrace.cluster import Cluster
from millrace.cluster.facts import FILE, PROFILES, find_profile
from millrace.command_line import add_json, make_parser, print_json
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.home import snakefile
from millrace.planning.dry_run import planned_jobs
from millrace.planning.estimates import Row, summarised
from millrace.systems.base import resolve
from millrace.yaml_files import read_files

_WIDTH = 100


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, that of a user's error if the plan is refused."""
    options = parser().parse_args(arguments)
    if options.parallel:
        _show_division(options)
        return ExitCode.OK
    asked = _for_snakemake(options)
    left = planned_jobs(asked)
    every = planned_jobs([*asked, "--forceall"])
    rows = summarised(every, left, Path(options.directory or "."), _datasets(options))
    if options.json:
        print_json(_report(options.profile, rows))
    else:
        console = Console(width=_WIDTH, highlight=False)
        console.print(plan_table(rows))
        console.print(_explained(options.profile, rows))
    return ExitCode.OK


def plan_table(rows: Sequence[Row]) -> Table:
    """Rows by stage, and their sums."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    headings = (
        *("stage", "rule", "layout", ">jobs", ">done", ">left", ">hours\nasked", ">expected"),
        *(">memory\nGB", ">GPUs", ">GPU-hours\nasked", ">expected", ">disk\nGB"),
    )
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading[0] == ">" else "left")
    stage = ""
    for row in rows:
        table.add_row(
            row.stage if row.stage != stage else "",
            row.rule,
            row.layout,
            *(str(n) for n in (row.jobs, row.jobs - row.left, row.left)),
            _number(row.hours_asked),
            ("~" if row.by_size and row.hours_expected is not None else "")
            + _number(row.hours_expected),
            _memory(row),
            str(row.gpus or ""),
            _number(row.gpu_hours_asked),
            _number(row.gpu_hours_expected),
            _number(row.disk_gb),
        )
        stage = row.stage
    sums = [_lower_bound(rows, key) for key in _SUMMED]
    jobs, left = sum(row.jobs for row in rows), sum(row.left for row in rows)
    counts = (str(jobs), str(jobs - left), str(left))
    table.add_row("all", "", "", *counts, *sums[:2], "", "", *sums[2:], style="bold")
    return table


_SUMMED = ("hours_asked", "hours_expected", "gpu_hours_asked", "gpu_hours_expected", "disk_gb")


def totals(rows: Sequence[Row]) -> dict[str, float]:
    """Sums over all jobs that are left, as far as they are known."""
    return {key: sum(getattr(row, key) or 0 for row in rows) for key in ("jobs", "left", *_SUMMED)}


def _lower_bound(rows: Sequence[Row], key: str) -> str:
    """Sum of a column; jobs that are not asked for, which run at once, have no part in it."""
    values = [getattr(row, key) for row in rows if row.left]
    if all(value is None for value in values):
        return _number(None if values else 0)
    is_partial = None in values and not key.endswith("asked")
    return ("≥ " if is_partial else "") + _number(totals(rows)[key])


def _memory(row: Row) -> str:
    """What is asked for, or where nothing is what is expected."""
    if row.memory_gb is None and row.memory_expected_gb is not None:
        return f"~{_number(row.memory_expected_gb)}"
    return _number(row.memory_gb)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _explained(profile: str | None, rows: Sequence[Row]) -> str:
    where = f"profile {profile}" if profile else "this machine, where nothing is asked for"
    return (
        f"{where}. Asked: walltimes, upper bounds for the first attempt of each job that is left. "
        "Expected: modelled from the median of finished jobs of the same rule, experiment and layout, "
        "trainings by epoch, and only from GPUs where GPUs are asked for; ~: modelled from the sizes of "
        "raw files, CPU time of one core; –: neither is possible."
    )


def _report(profile: str | None, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "schema": "millrace.plan/1",
        "profile": profile,
        "totals": totals(rows),
        "rows": [asdict(row) for row in rows],
    }


def _datasets(options: argparse.Namespace) -> Mapping[str, Any]:
    """The section `datasets`, as far as it does not come from a Snakefile."""
    try:
        found = read_files(options.configfile, options.config).get("datasets")
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def _for_snakemake(options: argparse.Namespace) -> list[str]:
    """Arguments of ``snakemake`` for the same plan."""
    here = Path()
    made = list(options.targets)
    own = any((here / name).is_file() for name in ("Snakefile", "workflow/Snakefile"))
    if options.snakefile or not own:
        made += ["--snakefile", options.snakefile or str(snakefile())]
    if options.profile:
        made += ["--profile", str(find_profile(options.profile).absolute())]
    if not any((here / name / "profiles/default").is_dir() for name in (".", "workflow")):
        made += ["--workflow-profile", str(PROFILES / "default")]
    if options.directory:
        made += ["--directory", options.directory]
    if options.configfile:
        made += ["--configfile", *map(str, options.configfile)]
    return made + (["--config", *options.config] if options.config else [])


def _show_division(options: argparse.Namespace) -> None:
    # Needs torch, which a plan does not.
    show_division = resolve("millrace.planning.division:show_division")
    config, name = read_files(options.configfile, options.config), options.parallel
    block = config.get("experiments", {}).get(name, {})
    run = config.get("run", {}).get("layouts", ["n1_gpu1"])
    layouts = [options.layout] if options.layout else block.get("race") or block.get("layouts", run)
    folder = find_profile(options.profile) if options.profile else None
    folders = [folder] if folder else sorted(path.parent for path in PROFILES.glob(f"*/{FILE}"))
    clusters = [Cluster.read(f"{one}/") for one in folders if (one / FILE).is_file()]
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    size = (options.grid, options.levels)
    for layout in dict.fromkeys(layouts):
        show_division(console, config, name, layout, clusters, parallel=options.division, size=size)


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected <rows>x<columns>, as 720x1440, got {text!r}")
    return int(match[1]), int(match[2])


def _block(text: str) -> Mapping[str, Any]:
    try:
        made = yaml.safe_load(text)
    except yaml.YAMLError:
        made = None
    if not isinstance(made, dict):
        raise argparse.ArgumentTypeError(f"expected a mapping, as '{{dp_shard: 2}}', got {text!r}")
    return made


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "plan",
        __doc__,
        "--profile gilbreth",
        "--configfile my_site.yaml --profile gilbreth --json train",
        "--configfile config/experiments/weather.yaml --parallel aurora_large --grid 720x1440",
        "--parallel aurora_large --layout n4_gpu4 --division '{dp_shard: 4, pipeline: 4}'",
    )
    made.add_argument("targets", nargs="*", metavar="TARGET", help="as of snakemake: train, ...")
    text = "as of snakemake: files laid over config/config.yaml"
    made.add_argument("--configfile", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    text = "as of snakemake: values laid over those of files"
    made.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    text = "a folder of profiles/ here or of the checkout, or its path; default: this machine"
    made.add_argument("--profile", metavar="PROFILE", help=text)
    text = "the workflow; default: that of this folder, else that of the checkout"
    made.add_argument("--snakefile", metavar="FILE", help=text)
    made.add_argument("--directory", metavar="DIR", help="where results/ is; default: here")
    add_json(made)
    group = made.add_argument_group("memory and traffic of one experiment, see `parallel`")
    text = "what each GPU holds and sends in a step, and where that fits"
    group.add_argument("--parallel", metavar="EXPERIMENT", help=text)
    group.add_argument("--layout", metavar="LAYOUT", help="default: all of the experiment")
    text = "replaces the section parallel of the experiment"
    group.add_argument("--division", type=_block, metavar="YAML", help=text)
    text = "rows x columns of the samples, as 720x1440; default: of the raw files"
    group.add_argument("--grid", type=_grid, metavar="RxC", help=text)
    group.add_argument("--levels", type=int, metavar="N", help="default: of the raw files")
    return made
