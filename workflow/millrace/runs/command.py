"""Look after the stores of checkpoints under ``runs/``.

A RUN is a path, or the beginning of experiment/layout/seed<n>/<run hash>; without one, all runs.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from millrace.cluster.facts import find_profile
from millrace.command_line import add_command, add_json, make_parser, print_json
from millrace.errors import DataError, ExitCode, exits_with_code
from millrace.files import output_errors
from millrace.runs import display, efficiency, maintenance
from millrace.runs.inventory import Run, find_runs, select, select_one
from millrace.runs.queue_status import find_queue
from millrace.runs.watch import Watcher, follow

# A table that is made once waits this long for a busy scheduler.
_PATIENCE_S = 20.0


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, that of damaged data if any was found."""
    options = parser().parse_args(arguments)
    # Piped into a file or another program, a table must not be cut to 80 columns.
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, highlight=False)
    command: Callable[[argparse.Namespace, Console], int] = options.command
    return command(options, console)


def _list(options: argparse.Namespace, console: Console) -> int:
    runs = _runs(options)
    if options.json:
        print_json([display.record(run) for run in runs])
    else:
        console.print(display.runs_table(runs) if runs else f"no runs under {options.root}")
    return ExitCode.OK


def _show(options: argparse.Namespace, console: Console) -> int:
    run = select_one(find_runs(options.root), options.run)
    _warn(run)
    return ExitCode.OK if display.show(run, console) else ExitCode.DATA


def _latest(options: argparse.Namespace, console: Console) -> int:
    runs = select(find_runs(options.root), options.runs)
    if not runs:
        raise DataError(f"no runs under {options.root}")
    run = max(runs, key=lambda run: run.changed)
    checkpoint = run.store().latest()
    _warn(run, beyond=checkpoint.manifest.step if checkpoint else 0)
    if checkpoint is None:
        raise DataError(
            f"{run.path}: no intact checkpoint; the same Snakemake command trains again"
        )
    print(checkpoint.path)
    return ExitCode.OK


def _du(options: argparse.Namespace, console: Console) -> int:
    console.print(display.usage_table(_runs(options)))
    return ExitCode.OK


def _verify(options: argparse.Namespace, console: Console) -> int:
    findings = list(maintenance.verify(select(find_runs(options.root), options.runs)))
    if not options.runs:  # outputs are checked along with all runs
        findings += maintenance.verify_outputs(options.results)
    damaged = [finding for finding in findings if finding.problem]
    if options.json:
        print_json([{"path": str(one.path), "problem": one.problem} for one in findings])
        return ExitCode.DATA if damaged else ExitCode.OK
    for finding in damaged:
        console.print(f"[bold red]damaged[/]  {finding.path}: {finding.problem}", soft_wrap=True)
    console.print(f"{len(findings) - len(damaged)} intact, {len(damaged)} damaged")
    if damaged:
        console.print(
            "Training passes damaged steps over. Delete damaged steps and outputs, and run the same "
            "Snakemake command again: what an intact step holds is restored, the rest is trained again.",
            soft_wrap=True,
        )
    return ExitCode.DATA if damaged else ExitCode.OK


def _clean(options: argparse.Namespace, console: Console) -> int:
    everything = find_runs(options.root)
    runs = select(everything, options.runs)
    if options.runs:
        maintenance.refuse_if_held(runs)
    for run in [run for run in runs if run.holder]:
        console.print(f"left alone  {run.name}: in use by {run.holder}", soft_wrap=True)
        runs.remove(run)
    results = options.results if options.run_hashes else None
    removals = maintenance.plan_cleaning(runs, options.keep, results, everything)
    if not removals:
        console.print("nothing to remove")
        return ExitCode.OK
    console.print(display.removals_table(removals))
    total = display.format_bytes(sum(removal.freed for removal in removals))
    if options.yes:
        maintenance.clean(removals)
        console.print(f"removed, {total} freed")
    else:
        console.print(f"\n{total} would be freed. Nothing was removed: add --yes to do it.")
    return ExitCode.OK


def _backup(options: argparse.Namespace, console: Console) -> int:
    if options.destination.resolve().is_relative_to(options.root.resolve()):
        raise DataError(f"{options.destination}: lies in {options.root}; name a place elsewhere")
    counts = {"copied": 0, "there": 0, "gone": 0, "damaged": 0}
    for run in _runs(options):
        for step, outcome in maintenance.backup(run, options.destination):
            counts[outcome.split(":")[0]] += 1
            if outcome.startswith("damaged"):
                console.print(f"[bold red]not copied[/]  {step.path}: {outcome}", soft_wrap=True)
            elif outcome == "copied":
                console.print(f"copied  {run.name}/{step.path.name}", soft_wrap=True)
    console.print(
        f"{counts['copied']} steps copied and verified, {counts['there']} were there, "
        f"{counts['damaged']} damaged"
    )
    return ExitCode.DATA if counts["damaged"] else ExitCode.OK


def _watch(options: argparse.Namespace, console: Console) -> int:
    batch = find_queue(options.profile)
    if options.once:
        watcher = Watcher(options.root, options.results, batch, patience_s=_PATIENCE_S)
        console.print(watcher.render(time.time()))
    else:
        follow(Watcher(options.root, options.results, batch), options.interval, console)
    return ExitCode.OK


def _efficiency(options: argparse.Namespace, console: Console) -> int:
    rows = efficiency.measure(_runs(options), options.results, options.benchmarks)
    if options.csv is not None:
        efficiency.write_csv(rows, options.csv)
    console.print(efficiency.table(rows) if rows else "no session is over yet")
    return ExitCode.OK


def _compare(options: argparse.Namespace, console: Console) -> int:
    # What it draws with takes as long to start as all else here.
    from millrace.evaluation.compare import Side, compare, write_page

    if options.output is not None and options.output.suffix != ".html":
        raise DataError(f"--output {options.output}: expected a name that ends in .html")
    runs = find_runs(options.root)
    pair = [select_one(runs, name) for name in (options.a, options.b)]
    found = compare(*(Side.of_store(run.path, run.history, options.results) for run in pair))
    if options.output is not None:
        with output_errors(options.output):
            write_page(found, options.output)
    if options.json:
        print_json(found.record())
    else:
        display.compared(found, console)
        if options.output is not None:
            console.print(str(options.output), soft_wrap=True)
    return ExitCode.OK


def _runs(options: argparse.Namespace) -> list[Run]:
    """The runs that were asked for; says what of them is damaged."""
    runs = select(find_runs(options.root), options.runs)
    for run in runs:
        _warn(run)
    return runs


def _warn(run: Run, beyond: int | None = None) -> None:
    """Say what is damaged: records, steps by their sizes, those ``beyond`` a step by their checksums."""
    found = dict(run.records)
    for step in run.steps:
        passed_over = beyond is not None and (step.manifest is None or step.manifest.step > beyond)
        found[step.path] = step.problem(thorough=passed_over)
    for path, problem in found.items():
        if problem:
            print(f"warning: {path}: damaged, {problem}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    shared = argparse.ArgumentParser(add_help=False)
    text = "stores (default: runs)"
    shared.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help=text)
    outputs = argparse.ArgumentParser(add_help=False)
    text = "outputs (default: results)"
    outputs.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help=text)
    several = argparse.ArgumentParser(add_help=False)
    several.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all")
    made = make_parser("runs", __doc__, "list", "show gino_salt/n1_gpu1/seed0", "watch --once")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str,
        command: Callable[[argparse.Namespace, Console], int],
        text: str,
        *parents: argparse.ArgumentParser,
        examples: Sequence[str],
    ) -> argparse.ArgumentParser:
        return add_command(commands, name, command, text, *examples, parents=[shared, *parents])

    one = "gino_salt/n1_gpu1/seed0"
    text = "one line a run: epoch, losses, state, size"
    add_json(add("list", _list, text, several, examples=["", "gino_salt --json"]))
    text = "one run: run hash, sessions, losses, checkpoints"
    shown = add("show", _show, text, examples=[one])
    shown.add_argument("run", metavar="RUN", help="a path, or the beginning of its name")
    text = "path of the newest intact checkpoint of the run changed last"
    add("latest", _latest, text, several, examples=[one])
    text = "remove old steps and leftovers; a dry run without --yes"
    examples = ["--keep 1", "gino_salt --run-hashes --yes"]
    cleaned = add("clean", _clean, text, several, outputs, examples=examples)
    text = "steps kept besides milestones (default: 3)"
    cleaned.add_argument("--keep", type=int, default=3, metavar="N", help=text)
    text = "also whole stores that no receipt refers to and that are not the newest of their kind"
    cleaned.add_argument("--run-hashes", action="store_true", help=text)
    cleaned.add_argument("--yes", action="store_true", help="really remove")
    text = "two runs: settings that differ, losses, paired tests over test cases"
    examples = ["gino_salt/n1_gpu1/seed0 gino_deep/n1_gpu1/seed0 --output compared.html"]
    compared = add("compare", _compare, text, outputs, examples=examples)
    add_json(compared)
    compared.add_argument("a", metavar="A", help="a path, or the beginning of its name")
    compared.add_argument("b", metavar="B", help="the other run")
    text = "also write a page with the curves"
    compared.add_argument("--output", type=Path, metavar="FILE", help=text)
    text = "copy committed steps elsewhere, verified; can be repeated"
    examples = ["/archive/runs", "--root /archive/runs runs"]
    saved = add("backup", _backup, text, examples=examples)
    saved.add_argument(
        "destination", type=Path, metavar="DIR", help="where to; laid out like runs/"
    )
    saved.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all")
    text = "live table: epoch, losses, time left, jobs"
    examples = ["", "--once --profile gilbreth"]
    watched = add("watch", _watch, text, outputs, examples=examples)
    text = "seconds between looks (default: 5)"
    watched.add_argument("--interval", type=float, default=5.0, metavar="S", help=text)
    watched.add_argument("--once", action="store_true", help="one table, then end")
    text = "that of the cluster; default: the scheduler found here"
    watched.add_argument("--profile", type=find_profile, metavar="PROFILE", help=text)
    text = "sessions that are over: shares of their time, CPU, memory, samples by GPU-hour"
    examples = ["gino_salt --csv efficiency.csv"]
    used = add("efficiency", _efficiency, text, several, outputs, examples=examples)
    text = "what Snakemake measured (default: benchmarks)"
    default = Path("benchmarks")
    used.add_argument("--benchmarks", type=Path, default=default, metavar="DIR", help=text)
    used.add_argument("--csv", type=Path, metavar="FILE", help="also write all columns")
    add("du", _du, "disk usage by run", several, examples=[""])
    text = "compare all checksums, of outputs as well"
    add_json(add("verify", _verify, text, several, outputs, examples=["", f"{one} --json"]))
    return made
