"""Look at clusters: what they have, and what jobs would ask for. Nothing is submitted.

A CLUSTER is a folder of profiles/ that has a cluster.yaml; with a slash, the path of such a folder.
"""

import argparse
import shlex
import sys
from collections.abc import Callable

from rich.console import Console

from millrace.cluster import display
from millrace.cluster.facts import FILE, PROFILES, Cluster
from millrace.command_line import add_command, add_json, make_parser, print_json
from millrace.errors import ExitCode, exits_with_code
from millrace.layout import Layout
from millrace.schedulers.requests import qsub_arguments, sbatch_arguments


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, that of a user's error if facts are wrong."""
    options = parser().parse_args(arguments)
    # Piped into a file or another program, a table must not be cut to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    command: Callable[[argparse.Namespace, Console], None] = options.command
    command(options, console)
    return ExitCode.OK


def _show(options: argparse.Namespace, console: Console) -> None:
    if options.name is None:
        names = sorted(path.parent.name for path in PROFILES.glob(f"*/{FILE}"))
        clusters = [Cluster.read(name) for name in names]
        if options.json:
            print_json([display.record(cluster) for cluster in clusters])
        else:
            console.print(display.clusters_table(clusters))
        return
    cluster = Cluster.read(options.name)
    if options.json:
        print_json(display.record(cluster))
        return
    console.print(f"[bold]{cluster.name}[/]  {cluster.scheduler}  {cluster.file}", soft_wrap=True)
    needed = "needed and not set" if cluster.account_required else "none"
    console.print(f"account: {cluster.account or needed}   QOS: {cluster.qos or 'none'}\n")
    console.print(display.nodes_table(cluster))


def _check(options: argparse.Namespace, console: Console) -> None:
    cluster = Cluster.read(options.name)
    cluster.check_profile()
    console.print(display.placements_table(cluster))
    console.print(f"{cluster.file}: no mistakes found", soft_wrap=True)


def _place(options: argparse.Namespace, console: Console) -> None:
    cluster = Cluster.read(options.name)
    layout = None if options.layout == "-" else Layout.parse(options.layout)
    placed = cluster.place(layout, options.rule)
    resources = placed.resources()
    name, log = options.rule, f"logs/{cluster.scheduler}"
    if cluster.scheduler == "slurm":
        request = ["sbatch", *sbatch_arguments(resources, name, f"{log}/%j.log")]
    else:
        request = ["qsub", *qsub_arguments(resources, name, log)]
    if options.json:
        where = {"cluster": cluster.name, "node_type": placed.node_type.name}
        print_json({**where, "resources": resources, "command": request})
        return
    console.print(f"{placed.node_type}")
    for key, value in resources.items():
        console.print(f"  {key} = {value}", soft_wrap=True)
    console.print(shlex.join(request), soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser("cluster", __doc__, "show", "check gilbreth", "place gilbreth n2_gpu2")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    text = "where layouts go on all clusters, or the node types of one"
    shown = add_command(commands, "show", _show, text, "", "gilbreth", "gilbreth --json")
    where = "name of a profile, or a folder with a slash"
    shown.add_argument("name", nargs="?", metavar="CLUSTER", help=f"{where}; default: all")
    add_json(shown)
    text = "read the facts of a cluster, and list what its jobs get"
    checked = add_command(commands, "check", _check, text, "gilbreth", "profiles/mine/")
    checked.add_argument("name", metavar="CLUSTER", help=where)
    examples = ("gilbreth n2_gpu2", "levante - preprocess --json")
    placed = add_command(commands, "place", _place, "what one job would ask for", *examples)
    placed.add_argument("name", metavar="CLUSTER", help=where)
    placed.add_argument("layout", metavar="LAYOUT", help="- for a rule without one")
    text = "of the job (default: train_segment)"
    placed.add_argument("rule", nargs="?", default="train_segment", metavar="RULE", help=text)
    add_json(placed)
    return made
