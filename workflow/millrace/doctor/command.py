"""Check a cluster, or this machine, before work is sent there.

On the login node: packages, scheduler, account, partitions, node types, file system, space, and what is
seen in the image, if jobs run in one. Then, by a short job for each layout: GPUs, shared folder, host
names, all-reduce, clocks. The exit code is 1 if a check failed.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from millrace.cluster import Cluster
from millrace.cluster.facts import FILE, find_profile
from millrace.command_line import make_parser, print_json
from millrace.doctor.checks import Check, any_failed, as_json, summary, table, write
from millrace.doctor.container import check_container
from millrace.doctor.environment import check_environment
from millrace.doctor.filesystem import check_filesystem
from millrace.doctor.inside import prepare, run
from millrace.doctor.need import wanted_space
from millrace.doctor.pbs import check_pbs
from millrace.doctor.slurm import check_slurm
from millrace.doctor.submission import check_in_jobs
from millrace.errors import ConfigError, ExitCode, exits_with_code
from millrace.layout import Layout
from millrace.yaml_files import read_yaml

_FOLDER = Path("results/preflight")
_HERE = "this machine"


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the checks and print them as they come; returns 0, or 1 if one failed."""
    options = parser().parse_args(arguments)
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False, quiet=options.json is True)
    sections: dict[str, list[Check]] = {}
    facts = options.profile.absolute()
    cluster = Cluster.read(facts) if (facts / FILE).is_file() else None
    layouts = [Layout.parse(name) for name in options.layout or _layouts(options.configfile)]
    for title, checks in _sections(options, cluster, layouts, console):
        sections[title] = checks
        console.print(table(checks, title))
    if options.json is True:
        print_json(as_json(sections))
    elif options.json is not None:
        write(options.json, sections)
    everything = [check for checks in sections.values() for check in checks]
    console.print(summary(everything))
    # Who waits outside of the job reads the report; an exit code would only say that the job failed.
    return ExitCode.FAILED if any_failed(everything) and not options.here else ExitCode.OK


def _sections(
    options: argparse.Namespace,
    cluster: Cluster | None,
    layouts: Sequence[Layout],
    console: Console,
) -> Iterator[tuple[str, list[Check]]]:
    """What is checked, in order."""
    if options.here is not None:  # inside a job, for one that waits outside
        for layout in layouts:
            yield str(layout), run(options.here, layout, cluster, options.cpus, options.container)
        return
    inside, container = check_container(options.profile, options.configfile, cluster)
    yield _HERE, _outside(options, cluster, layouts) + inside
    if options.no_job:
        return
    if container is None:
        for layout in layouts:
            yield str(layout), [Check.skipped("job", "jobs need the image, see above")]
        return
    if cluster is None or options.direct:
        for layout in layouts:
            yield str(layout), _directly(layout, cluster, options.cpus, container)
        return
    with console.status("submitting …") as status:
        patience_s = 60 * options.patience
        for layout, checks in check_in_jobs(
            cluster, layouts, _FOLDER, patience_s, status.update, container
        ):
            yield str(layout), checks


def _outside(
    options: argparse.Namespace, cluster: Cluster | None, layouts: Sequence[Layout]
) -> list[Check]:
    directory = Path.cwd()
    checks = check_environment(directory)
    if cluster is None:
        reason = f"{options.profile} is not the profile of a cluster"
        checks.append(Check.not_applicable("scheduler", reason))
    else:
        # The layout None stands for rules without GPUs of a layout.
        check = check_slurm if cluster.scheduler == "slurm" else check_pbs
        checks += check(cluster, [*layouts, None])
    need, why = wanted_space(options.configfile, Path("runs"))
    if options.need_gb is not None:
        need, why = options.need_gb, "--need-gb"
    return checks + check_filesystem(directory, need, why, cluster is not None)


def _directly(layout: Layout, cluster: Cluster | None, cpus: int, container: str) -> list[Check]:
    folder = prepare(_FOLDER.absolute())
    try:
        return run(folder, layout, cluster, cpus, container)
    except ConfigError as error:
        return [Check.not_applicable("job", str(error))]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            _FOLDER.rmdir()


def _layouts(configfile: Path) -> list[str]:
    """Layouts that a configuration asks for."""
    try:
        return list(read_yaml(configfile)["run"]["layouts"])
    except (ConfigError, KeyError, TypeError):
        raise ConfigError(
            f"{configfile}: no run.layouts to be read; name layouts with --layout, or a file with "
            "--configfile"
        ) from None


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    examples = ("", "--profile gilbreth --layout n2_gpu2", "--profile gilbreth --no-job --json")
    made = make_parser("doctor", __doc__, *examples)
    add = made.add_argument
    text = "a folder, or its name in profiles/ (default: local)"
    add("--profile", type=find_profile, default="local", metavar="PROFILE", help=text)
    add("--layout", nargs="+", metavar="LAYOUT", help="default: run.layouts of the configuration")
    text = "default: config/config.yaml"
    add("--configfile", type=Path, default=Path("config/config.yaml"), metavar="FILE", help=text)
    add("--no-job", action="store_true", help="only what the login node can tell")
    text = "checks of layouts in this very job, none is submitted"
    add("--direct", action="store_true", help=text)
    add("--need-gb", type=float, metavar="GB", help="space wanted; default: estimated")
    add("--patience", type=float, default=30, metavar="MIN", help="longest wait for jobs (30)")
    text = "print JSON, for scripts; with a name, write it there besides the tables"
    add("--json", nargs="?", const=True, type=Path, metavar="FILE", help=text)
    cpus = len(os.sched_getaffinity(0))
    add("--cpus", type=int, default=cpus, metavar="N", help="CPUs of a node for the ranks")
    add("--here", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    add("--container", default="", help=argparse.SUPPRESS)
    return made
