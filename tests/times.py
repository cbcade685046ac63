"""Where the time of the tests goes: ``pytest --times`` (`make test-times`).

Seconds on the clock depend on what else runs; processor time, of the test and of the processes that it
waited for, does not. Processes that load torch are counted by `starts/sitecustomize.py`.
"""

import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

_SLOWEST = 20
_STARTS = "MILLRACE_TEST_STARTS"


def pytest_addoption(parser):
    parser.addoption("--times", action="store_true", help="list the slowest tests and packages")


def _processor_seconds():
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[_BEGUN] = _processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    begun, item.stash[_BEGUN] = item.stash[_BEGUN], _processor_seconds()
    report.user_properties.append(("processor", item.stash[_BEGUN] - begun))
    return report


_BEGUN = pytest.StashKey[float]()


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--times"):
        return
    clock, processor = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                clock[report.nodeid] += report.duration
                processor[report.nodeid] += dict(report.user_properties).get("processor", 0.0)
    starts = _starts()
    write = terminalreporter.write_line
    terminalreporter.section(
        f"slowest {_SLOWEST} tests (with the fixtures that they were first to need)"
    )
    write("  clock s  processor s  torch starts")
    for test, seconds in clock.most_common(_SLOWEST):
        write(f"{seconds:9.1f}{processor[test]:13.1f}{starts[test]:14}  {test}")
    terminalreporter.section("by package")
    packages = defaultdict(lambda: [0, 0.0, 0.0, 0])
    for test, seconds in clock.items():
        row = packages[str(Path(test.partition("::")[0]).parent)]
        for place, value in enumerate((1, seconds, processor[test], starts[test])):
            row[place] += value
    write("  tests   clock s  processor s  torch starts")
    packages["together"] = [sum(column) for column in zip(*packages.values(), strict=True)]
    packages["together"][3] = starts.total()
    for package, (tests, seconds, used, begun) in packages.items():
        write(f"{tests:7}{seconds:10.1f}{used:13.1f}{begun:14}  {package}")


def _starts():
    """Processes that loaded torch, by the test that started them."""
    path = Path(os.environ.get(_STARTS, os.devnull))
    return Counter(
        line.split("\t")[0].rpartition(" (")[0] for line in path.read_text().splitlines()
    )
