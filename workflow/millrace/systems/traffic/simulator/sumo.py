"""Traffic simulated by SUMO (Lopez et al. 2018) on random road networks, in steps of 0.1 s.

    <base>/<town>.net.xml      network, by netgenerate: signals, bicycle lanes, pavements and crossings
    <base>/<town>.rou.xml      types of agents, and when each departs from where to where
    <base>/<town>.fcd.xml.gz   floating car data
    <base>/<town>.tls.xml.gz   states of the traffic lights

These are the files that `millrace.systems.traffic.formats.sumo` reads. The programs ``netgenerate`` and
``sumo`` come with the package ``eclipse-sumo``, see envs/sumo.lock; seeds determine all that they do.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from millrace.errors import ConfigError
from millrace.processes import dying_with_this
from millrace.systems.base import Progress
from millrace.systems.traffic.formats.sumo_network import read_network
from millrace.systems.traffic.formats.xml_elements import elements
from millrace.systems.traffic.settings import SumoConfig
from millrace.systems.traffic.tracks import STEP_S, STEPS

_WARM_UP = 120.0  # s, until the roads are full
_TRIES = 40  # networks that are drawn until one has two intersections and two ends
_EIDM = {"carFollowModel": "EIDM"}
# Fractions of motor vehicles, and all types. EIDM is SUMO's car-following model for steps below a second.
_SHARES = {"car": 0.78, "van": 0.12, "truck": 0.06, "bus": 0.04}
_TYPES: dict[str, dict[str, str]] = {
    "car": {"vClass": "passenger", "length": "4.6", "width": "1.8", **_EIDM},
    "van": {"vClass": "delivery", "length": "6.0", "width": "2.1", **_EIDM},
    "truck": {"vClass": "truck", "length": "8.5", "width": "2.5", **_EIDM},
    "bus": {"vClass": "bus", "length": "12.0", "width": "2.5", **_EIDM},
    # By default a bicycle keeps so far to the right that half of it is beyond its lane.
    "bicycle": {"vClass": "bicycle", "length": "1.8", "width": "0.65", "latAlignment": "center"}
    | _EIDM,
    "walker": {"vClass": "pedestrian", "length": "0.5", "width": "0.6"},
}


def program(name: str) -> str:
    """Path of a program of SUMO: beside this Python, on the ``PATH``, or in ``$SUMO_HOME/bin``.

    Raises
    ------
    ConfigError
        The program is not installed.
    """
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    folders += [f"{home}/bin"] if (home := os.environ.get("SUMO_HOME")) else []
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise ConfigError(
            f"demo: no program {name!r}, with which SUMO simulates: run `make demo-sumo`, or "
            "install it with `pip install -r envs/sumo.lock`"
        )
    return found


def simulate(config: SumoConfig, base: Path, progress: Progress | None = None) -> None:
    """Simulate the traffic of all networks into the directory ``base``.

    Raises
    ------
    ConfigError
        SUMO is not installed, or fails.
    """
    netgenerate, sumo = program("netgenerate"), program("sumo")
    base.mkdir(parents=True, exist_ok=True)
    for number in range(config.towns):
        random = np.random.default_rng([config.seed, number])
        town = f"town{number:02d}"
        network = base / f"{town}.net.xml"
        _draw(netgenerate, network, random)
        # The last scenario ends with its 91st step.
        end = _WARM_UP + config.scenes * STEPS * STEP_S + 0.05
        routes, signals = base / f"{town}.rou.xml", base / f"{town}.add.xml"
        _write(routes, "routes", _demand(network, config, end, random))
        states = base / f"{town}.tls.xml.gz"
        event = {"type": "SaveTLSStates", "dest": str(states.resolve())}
        _write(signals, "additional", [ElementTree.Element("timedEvent", event)])
        _run(
            *(sumo, "--net-file", network, "--route-files", routes),
            *("--additional-files", signals, "--fcd-output", base / f"{town}.fcd.xml.gz"),
            *("--fcd-output.attributes", "x,y,angle,type,speed,vehicle"),
            *("--begin", 0, "--end", end, "--step-length", STEP_S),
            *("--device.fcd.begin", _WARM_UP, "--precision", 4),
            # Lanes in parts: vehicles move over gradually instead of jumping, and pass cyclists.
            *("--lateral-resolution", 0.8, "--seed", _seed(random)),
            # More points where pedestrians turn, so that they do not jump there.
            *("--pedestrian.striping.walkingarea-detail", 12),
            # No agent vanishes from a queue, or appears elsewhere.
            *("--time-to-teleport", -1, "--collision.action", "none"),
            *("--no-step-log", "--xml-validation", "never"),
        )
        signals.unlink()
        if progress is not None:
            progress(number + 1, config.towns)


def _draw(netgenerate: str, network: Path, random: np.random.Generator) -> None:
    """Draw networks until one has two intersections, all with traffic lights, and two ends."""
    for _ in range(_TRIES):
        _run(
            *(netgenerate, "--rand", "--rand.iterations", 10, "--seed", _seed(random)),
            *("--rand.min-distance", 160, "--rand.max-distance", 220, "--rand.min-angle", 55),
            *("--default.lanenumber", 2, "--random-lanenumber", "--default.speed", 13.89),
            *("--default-junction-type", "traffic_light", "--no-turnarounds"),
            *("--tls.cycle.time", 60, "--sidewalks.guess", "--crossings.guess"),
            *("--bikelanes.guess", "--default.bikelane-width", 1.8),
            *("--junctions.internal-link-detail", 10, "--precision", 3),
            *("--xml-validation", "never", "--no-warnings", "--output-file", network),
        )
        inward, outward = _ends(network)
        # Agents that come in at one end leave at another.
        two_ends = inward and len({edge["to"] for edge in outward}) > 1
        if two_ends and len(read_network(network).centre_C2) > 1:
            return
    raise ConfigError(f"demo: netgenerate drew no network in {_TRIES} tries; take another seed")


def _demand(
    network: Path, config: SumoConfig, end: float, random: np.random.Generator
) -> Iterator[ElementTree.Element]:
    """Types of agents, and trips from every end of the network to another one, sorted by time."""
    for name, values in _TYPES.items():
        yield ElementTree.Element("vType", {"id": name, "speedDev": "0.1", **values})
    inward, outward = _ends(network)
    trips: list[tuple[float, ElementTree.Element]] = []
    for own in inward:
        start = own["id"]
        others = [edge["id"] for edge in outward if edge["to"] != own["from"]]
        for kinds, per_minute in (
            (list(_SHARES), config.vehicles_per_minute),
            (["bicycle"], config.cyclists_per_minute),
            (["walker"], config.pedestrians_per_minute),
        ):
            shares = list(_SHARES.values()) if len(kinds) > 1 else [1.0]
            for depart in np.sort(random.uniform(0, end, random.poisson(per_minute * end / 60))):
                kind = str(random.choice(kinds, p=shares))
                to = str(random.choice(others))
                trips.append((depart, _trip(f"{kind}{len(trips)}", kind, depart, start, to)))
    yield from (trip for _, trip in sorted(trips, key=lambda pair: pair[0]))


def _ends(network: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Edges that begin at an end of the network, and edges that end there, sorted by name."""
    ends = {e.attrib["id"] for e in elements(network, "junction") if e.get("type") == "dead_end"}
    edges = [e.attrib for e in elements(network, "edge") if e.get("function", "normal") == "normal"]
    edges.sort(key=lambda edge: edge["id"])
    return [e for e in edges if e["from"] in ends], [e for e in edges if e["to"] in ends]


def _trip(name: str, kind: str, depart: float, start: str, to: str) -> ElementTree.Element:
    about = {"id": name, "type": kind, "depart": f"{depart:.2f}"}
    if kind == "walker":
        person = ElementTree.Element("person", about | {"departPos": "random"})
        ElementTree.SubElement(person, "walk", {"from": start, "to": to})
        return person
    about |= {"from": start, "to": to, "departLane": "best", "departSpeed": "max"}
    return ElementTree.Element("trip", about)


def _write(path: Path, root: str, found: Iterable[ElementTree.Element]) -> None:
    tree = ElementTree.Element(root)
    tree.extend(found)
    ElementTree.indent(tree)
    ElementTree.ElementTree(tree).write(path, encoding="utf-8", xml_declaration=True)


def _seed(random: np.random.Generator) -> int:
    return int(random.integers(2**31))


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=dying_with_this())
    print(done.stdout + done.stderr, end="")  # to the log of the job
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise ConfigError(f"demo: {Path(str(command[0])).name} failed ({reason}), see the log")
