"""Check a cluster, or this machine, before work is sent there.

    millrace doctor --profile profiles/gilbreth --layout n2_gpu2

On the login node: packages, scheduler, account, partitions, node types, file system, space. Then, by
a short job for each layout: GPUs, shared folder, host names, all-reduce, clocks. The exit code is 1 if
a check failed.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console

from millrace.cluster import Cluster
from millrace.doctor.checks import Check, any_failed, summary, table, write
from millrace.doctor.environment import check_environment
from millrace.doctor.filesystem import check_filesystem
from millrace.doctor.inside import prepare, run
from millrace.doctor.need import wanted_space
from millrace.doctor.pbs import check_pbs
from millrace.doctor.slurm import check_slurm
from millrace.doctor.submission import check_in_jobs
from millrace.errors import ConfigError, exits_with_code
from millrace.layout import Layout

_FOLDER = Path("results/preflight")
_HERE = "this machine"


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the checks and print them as they come; returns 0, or 1 if one failed."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    sections: dict[str, list[Check]] = {}
    cluster = read_cluster(options.profile)
    layouts = [Layout.parse(name) for name in options.layout or _layouts(options.configfile)]
    for title, checks in _sections(options, cluster, layouts, console):
        sections[title] = checks
        console.print(table(checks, title))
    if options.json is not None:
        write(options.json, sections)
    everything = [check for checks in sections.values() for check in checks]
    console.print(summary(everything))
    # Who waits outside of the job reads the report; an exit code would only say that the job failed.
    return 0 if options.here else int(any_failed(everything))


def read_cluster(profile: Path) -> Cluster | None:
    """Facts of a profile; None: it is not that of a cluster.

    Raises `ConfigError` if there is no such profile, or its facts are wrong.
    """
    if not profile.is_dir():
        known = sorted(path.parent.name for path in profile.parent.glob("*/config.yaml"))
        raise ConfigError(
            f"{profile}: no such profile; there are {', '.join(known) or 'none'} in {profile.parent}"
        )
    return Cluster.read(profile.absolute()) if (profile / "cluster.yaml").is_file() else None


def _sections(
    options: argparse.Namespace,
    cluster: Cluster | None,
    layouts: Sequence[Layout],
    console: Console,
) -> Iterator[tuple[str, list[Check]]]:
    """What is checked, in order."""
    if options.here is not None:  # inside a job, for one that waits outside
        for layout in layouts:
            yield str(layout), run(options.here, layout, cluster, options.cpus)
        return
    yield _HERE, _outside(options, cluster, layouts)
    if options.no_job:
        return
    if cluster is None or options.direct:
        for layout in layouts:
            yield str(layout), _directly(layout, cluster, options.cpus)
        return
    with console.status("submitting …") as status:
        patience_s = 60 * options.patience
        for layout, checks in check_in_jobs(cluster, layouts, _FOLDER, patience_s, status.update):
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


def _directly(layout: Layout, cluster: Cluster | None, cpus: int) -> list[Check]:
    folder = prepare(_FOLDER.absolute())
    try:
        return run(folder, layout, cluster, cpus)
    except ConfigError as error:
        return [Check.not_applicable("job", str(error))]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            _FOLDER.rmdir()


def _layouts(configfile: Path) -> list[str]:
    """Layouts that a configuration asks for."""
    try:
        return list(yaml.safe_load(configfile.read_text())["run"]["layouts"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise ConfigError(
            f"{configfile}: no run.layouts to be read; name layouts with --layout, or a file with "
            "--configfile"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--profile", type=Path, default=Path("profiles/local"), help="default: profiles/local")
    add("--layout", nargs="+", metavar="LAYOUT", help="default: run.layouts of the configuration")
    add("--configfile", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    add("--no-job", action="store_true", help="only what the login node can tell")
    text = "checks of layouts in this very job, none is submitted"
    add("--direct", action="store_true", help=text)
    add("--need-gb", type=float, metavar="GB", help="space wanted; default: estimated")
    add("--patience", type=float, default=30, metavar="MIN", help="longest wait for jobs (30)")
    add("--json", type=Path, metavar="FILE", help="also write the results to a file")
    cpus = len(os.sched_getaffinity(0))
    add("--cpus", type=int, default=cpus, metavar="N", help="CPUs of a node for the ranks")
    add("--here", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return parser
