"""The table of `make bench`: variants timed in turns, limits of the machine, rows, results, comparisons.

    python tests/bench/rows.py                       all measurements, each file's in a process of its own
    python tests/bench/rows.py gino-1500 windows     these: names, or what they begin with
    python tests/bench/rows.py --quick gfno          two rounds, to try it out
    python tests/bench/rows.py --list                names; those in brackets run only by their full name
    python tests/bench/rows.py --results docs/results    write them there, by commit and machine
    python tests/bench/rows.py --compare OLD.json NEW.json

A file ``bench_<name>.py`` has measurements ``<name>`` or ``<name>-<part>``: functions that take the number
of rounds and yield rows.
"""

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCHEMA = "millrace.bench/1"
ROUNDS, QUICK = 7, 2
COLUMNS = ("what", "ours", "peer", "ratio", "goal", "of the limit", "")
TOLD = {None: "", True: "met", False: "MISSED"}

Measurement = Callable[[int], Iterator["Row"]]


@dataclass(frozen=True)
class Interval:
    """A median, and the interval in which it lies with 95 %, or of all values where these are few."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """By order statistics, whatever the distribution (David & Nagaraja 2003, Order Statistics, 7.1)."""
        ordered, count = sorted(values), len(values)
        below, outside = 0.0, 0
        for k in range(count // 2):
            below += math.comb(count, k) / 2**count
            if below > 0.025:
                break
            outside = k
        return cls(statistics.median(ordered), ordered[outside], ordered[-1 - outside])

    def apart(self, other: "Interval") -> bool:
        """Whether the two have no value in common."""
        return self.high < other.low or other.high < self.low


@dataclass(frozen=True)
class Row:
    """What was measured in rounds, beside a peer that took turns with it, or on its own."""

    what: str
    unit: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    """As many as ``ours``, or fewer of a slow peer."""
    goal: float | None = None
    """Of how many times better than the peer; without a peer, of ``ours``."""
    larger: bool = False
    """Whether larger values are better."""
    share: float | None = None
    """Of what the machine's products and copies could do in that time."""

    @property
    def result(self) -> Interval:
        """What the goal is about."""
        if not self.theirs:
            return Interval.of(self.ours)
        ours, theirs = self.ours, self.theirs
        if len(theirs) != len(ours):
            ours, theirs = [statistics.median(ours)], [statistics.median(theirs)]
        pairs = zip(theirs, ours, strict=True)
        return Interval.of([b / a if self.larger else a / b for a, b in pairs])

    @property
    def met(self) -> bool | None:
        """Whether the goal is; None: there is none."""
        if self.goal is None:
            return None
        upwards = self.larger or bool(self.theirs)
        return self.result.middle >= self.goal if upwards else self.result.middle <= self.goal

    def cells(self) -> list[str]:
        """By `COLUMNS`."""
        sign = "≥" if self.larger or self.theirs else "≤"
        goal = (
            "" if self.goal is None else f"{sign} {self.goal:g} {'x' if self.theirs else self.unit}"
        )
        ratio = self.result
        return [
            self.what,
            f"{number(statistics.median(self.ours))} {self.unit}",
            f"{number(statistics.median(self.theirs))} {self.unit}, {self.peer}"
            if self.theirs
            else "",
            f"{ratio.middle:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})" if self.theirs else "",
            goal,
            "" if self.share is None else f"{self.share:.0%}",
            TOLD[self.met],
        ]


def number(value: float) -> str:
    """Three digits, without exponents."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process and of children that end meanwhile."""
    started = _clock()
    work()
    return _clock() - started


def _clock() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turns(
    variants: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round; other load hits all alike. The first one warms up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + warm):
        for name, work in variants.items():
            seconds = cpu_seconds(work)
            if turn or not warm:
                times[name].append(seconds)
    return times


@dataclass(frozen=True)
class Limits:
    """Operations a second of a large float32 product, and bytes a second of a copy, read and written."""

    gemm: float
    copy: float

    @classmethod
    def measured(cls) -> "Limits":
        """The best of some, of this core now."""
        import torch  # results are compared without it

        from millrace.models.products import HAS_ONEDNN

        a, b = torch.randn(1024, 1024), torch.empty(64 << 20)
        c = torch.empty_like(b)
        ways = [partial(torch.mm, a, a)]
        if HAS_ONEDNN:  # on some processors twice as fast
            onednn = torch.ops.mkldnn._linear_pointwise
            ways.append(partial(onednn, a, a, None, "none", [], ""))
        product = min(cpu_seconds(way) for way in ways for _ in range(10))
        copy = min(cpu_seconds(lambda: c.copy_(b)) for _ in range(5))
        return cls(2 * 1024**3 / product, 2 * 4 * len(b) / copy)

    def seconds(self, operations: float = 0, moved: float = 0) -> float:
        """The least that so many operations and bytes take."""
        return operations / self.gemm + moved / self.copy


def run(
    measurements: Mapping[str, Measurement], about: str | None, on_request: Sequence[str] = ()
) -> None:
    """What a file of measurements does as a script; those ``on_request`` run by their full name alone."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(measurements)}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds in place of {ROUNDS}")
    parser.add_argument("--list", action="store_true", help="tell names alone")
    parser.add_argument("--lines", type=Path, help="append rows and limits to this file, too")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"({n})" if n in on_request else n for n in measurements))
        return
    chosen = selected([*measurements], given.names, on_request)
    if not chosen:
        parser.error(
            f"no measurement {' '.join(given.names)!r}: expected {', '.join(measurements)}"
        )
    for name in chosen:
        for row in measurements[name](QUICK if given.quick else ROUNDS):
            tell(row)
            _append(given.lines, {"name": name, **asdict(row)})
    if given.lines:
        _append(given.lines, {"limits": asdict(Limits.measured())})


def _append(path: Path | None, value: Mapping[str, Any]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(value) + "\n")


def selected(names: Sequence[str], wanted: Sequence[str], on_request: Sequence[str]) -> list[str]:
    """Names that are wanted, or begin with what is; those on request only if they are named."""
    begun = [n for n in names if not wanted or n.startswith(tuple(wanted))]
    return [n for n in begun if n not in on_request or n in wanted]


def tell(row: Row) -> None:
    """Print a row."""
    what, ours, peer, ratio, goal, share, met = row.cells()
    limit = f"{share} of the limit" if share else ""
    print("; ".join(filter(None, [f"{what}: {ours}", peer, ratio, goal, limit, met])), flush=True)


def machine(limits: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Where results are from; ``limits`` are those that the measurements found."""
    from importlib.metadata import version

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "neuraloperator", "numpy", "pandas")},
        "gemm_gflops": round(statistics.median(one["gemm"] for one in limits) / 1e9, 1),
        "copy_gb_s": round(statistics.median(one["copy"] for one in limits) / 1e9, 2),
    }


def commit() -> str:
    """Abbreviated hash of the checkout, with a mark if its files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.check_output(command, cwd=ROOT, text=True).strip()


def write(folder: Path, rows: Sequence[Mapping[str, Any]], on: Mapping[str, Any], of: str) -> Path:
    """Write results, by commit and machine."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{on['cpu']} {on['cores']}".lower()).strip("-")
    path = folder / f"cpu-{of}-{slug}.json"
    save(path, [{**row, "cells": _row(row).cells()} for row in rows], on, of, COLUMNS)
    return path


def save(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    on: Mapping[str, Any],
    of: str,
    columns: Sequence[str],
) -> None:
    """Write rows with ``cells`` by ``columns``, a machine and a commit to a file."""
    head = {"schema": SCHEMA, "commit": of, "date": time.strftime("%Y-%m-%d"), "machine": on}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head | {"columns": columns, "rows": rows}, indent=1, ensure_ascii=False)
    # Lists of numbers stand on one line each.
    text = re.sub(r"\[\s+([-\d.,\se+]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(text + "\n")


def _row(values: Mapping[str, Any]) -> Row:
    return Row(**{key: values[key] for key in Row.__annotations__})


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines on what changed beyond noise: intervals of the rounds have no value in common.

    Rows without a peer are compared on one machine only.
    """
    same = old["machine"]["cpu"] == new["machine"]["cpu"]
    before = {row["what"]: _row(row) for row in old["rows"]}
    after = {row["what"]: _row(row) for row in new["rows"]}
    lines = []
    for what, row in after.items():
        one = before.get(what)
        if one is None:
            lines.append(f"new        {what}")
        elif (same or row.theirs) and row.result.apart(one.result):
            a, b, better = one.result, row.result, row.larger or bool(row.theirs)
            unit = "x" if row.theirs else row.unit
            said = "better" if (b.middle > a.middle) == better else "WORSE"
            lines.append(
                f"{said:9}  {what}: {number(a.middle)} ({number(a.low)} to {number(a.high)}) -> "
                f"{number(b.middle)} {unit} ({number(b.low)} to {number(b.high)})"
            )
    lines += [f"gone       {what}" for what in before if what not in after]
    if not same:
        lines.append("other CPU: rows without a peer were not compared")
    return lines or ["no change beyond noise"]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run the files of measurements, or compare results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--results", type=Path, metavar="FOLDER")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    given = parser.parse_args()
    if given.compare:
        old, new = (json.loads(path.read_text()) for path in given.compare)
        if "cpu" not in old["machine"] or "cpu" not in new["machine"]:
            parser.error("--compare: expected two results of `make bench`; GPUs are not compared")
        print("\n".join(compare(old, new)))
        return
    options = ["--quick"] * given.quick + ["--list"] * given.list
    files = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    chosen = {
        name: path
        for name, path in files.items()
        if not given.names or any(one.split("-")[0] in ("", name) for one in given.names)
    }
    if not chosen:
        parser.error(f"no measurements {' '.join(given.names)!r}: expected {', '.join(files)}")
    found: list[dict[str, Any]] = []
    failed, begun = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "lines")
        lines.touch()
        for name, path in chosen.items():
            mine = [one for one in given.names if one.split("-")[0] == name]
            command = [sys.executable, str(path), *options, "--lines", str(lines), *mine]
            if subprocess.run(command, env=os.environ | ONE_THREAD).returncode:
                failed.append(name)
        found = [json.loads(line) for line in lines.read_text().splitlines()]
    rows = [one for one in found if "what" in one]
    if rows:
        on = machine([one["limits"] for one in found if "limits" in one])
        print(
            f"\n{on['cpu']}, {on['cores']} cores, 1 thread, torch {on['torch']}: products "
            f"{on['gemm_gflops']} GF/s, copies {on['copy_gb_s']} GB/s; commit {commit()}; medians of "
            f"rounds in turns, CPU time; {(time.perf_counter() - begun) / 60:.0f} minutes\n"
        )
        print(markdown([_row(row).cells() for row in rows]))
        if given.results:
            print(f"\nwritten to {write(given.results, rows, on, commit())}")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

if __name__ == "__main__":
    main()
