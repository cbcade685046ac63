"""Three hundred configurations with one mistake each: planning refuses all of them, by the right key.

Mistakes are made in the configurations that are shipped: misspelt keys, other types, values out of range,
and pairs of keys that do not fit each other.
"""

import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from plans import ROOT

from millrace.yaml_files import merged, read_yaml

SHIPPED = ("gfno", "downscaler", "aurora", "smart")
# Where names are the user's, a misspelt one is another name.
FREE = {"datasets", "experiments", "predictions", "claims", "links", "units", "prices", "epochs"}
WRONG = {
    bool: ["yes", 1, None],
    int: ["many", 2.5, True, None, -(10**30), [1]],
    float: ["fast", True, float("nan"), float("inf"), 10**400, {}],
    str: [5, None, [], {"a": 1}],
    list: ["text", 7, {}],
    dict: [3, "text", [1]],
}
MISFITS: list[tuple[str, Any, str]] = [
    ("experiments/gino_head/data/input_steps", 90, "experiments.gino_head.data"),
    ("experiments/gino_head/model/modes", [40, 4, 4], "experiments.gino_head.model"),
    ("experiments/gino_head/model/name", "gfno", "experiments.gino_head"),
    ("experiments/gino_head/dataset", "coats", "experiments.gino_head.dataset"),
    ("experiments/gino_head/data/variables", ["haed"], "experiments.gino_head.data.variables"),
    ("experiments/gino_head/train/schedule/kind", "cosine", "experiments.gino_head.train.schedule"),
    (
        "experiments/gino_head/train/milestone_every",
        0,
        "experiments.gino_head.train.milestone_every",
    ),
    ("experiments/gino_head/train/epochs", 2**31, "experiments.gino_head.train.epochs"),
    ("experiments/gino_head/train/replay", {"longest": 4}, "experiments.gino_head.train.replay"),
    ("experiments/gino_head/parallel", {"dp_shard": 2}, "experiments.gino_head"),
    ("experiments/gfno_plane/data/output_steps", 4, "experiments.gfno_plane.data"),
    ("datasets/coast/split/train", 0.95, "datasets.coast.split"),
    ("datasets/coast/format", "icno", "datasets.coast.format"),
    ("datasets/coast/units", {"heat": "J"}, "datasets.coast.units"),
    ("datasets/coast/demo/slices", 30, "datasets.coast.demo"),
    ("run/experiments", ["gino_haed"], "run.experiments"),
    ("run/layouts", ["n1_gpu0"], "run.layouts"),
    ("run/seeds", [0, 0], "run.seeds"),
    ("run/seeds", [2**64], "run.seeds"),
    ("scaling/experiments", ["gino"], "scaling.experiments"),
    ("scaling/claims", {"n1_gpu4": [0.9, 0.8]}, "scaling"),
]


def paths(block: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Paths of all keys of a configuration."""
    for key, value in block.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, *above, key)


def changed(
    config: dict[str, Any], path: tuple[str, ...], new: Any, name: str | None = None
) -> Any:
    """A copy with another value, or another name, of one key."""
    made = copy.deepcopy(config)
    block = made
    for key in path[:-1]:
        block = block[key]
    value = block.pop(path[-1])
    block[name or path[-1]] = value if name else new
    return made


def misspelt(key: str, draw: random.Random) -> str:
    """The key with a letter dropped, doubled or swapped."""
    at = draw.randrange(len(key) - 1)
    return draw.choice(
        [
            key[:at] + key[at + 1 :],
            key[:at] + key[at] + key[at:],
            key[:at] + key[at + 1] + key[at] + key[at + 2 :],
        ]
    )


def mutated() -> list[tuple[Any, str, str | None]]:
    """Configuration, path that the message must name, and the key that it must suggest; always the same."""
    draw = random.Random(15)
    base = json.loads(json.dumps(read_yaml(ROOT / "config/config.yaml")))
    shipped = [base] + [
        merged(base, read_yaml(ROOT / f"config/demo/{name}.yaml")) for name in SHIPPED
    ]
    shipped = json.loads(json.dumps(shipped))  # anchors would change two places at once
    made: list[tuple[Any, str, str | None]] = [
        (changed(merged(base, {}), tuple(path.split("/")), value), told, None)
        if path.split("/")[-1] in _at(base, path.split("/")[:-1])
        else (_added(base, path.split("/"), value), told, None)
        for path, value, told in MISFITS
    ]
    while len(made) < 300:
        config = draw.choice(shipped)
        path = draw.choice([p for p in paths(config) if not {*p[:-1]} & (FREE - {*p[:1]})])
        above, key = ".".join(path[:-1]), path[-1]
        own_name = len(path) == 2 and path[0] in FREE
        if not own_name and len(key) > 3 and draw.random() < 0.5:
            wrong = misspelt(key, draw)
            if wrong not in _at(config, path[:-1]):
                made.append(
                    (changed(config, path, None, wrong), f"{above}: " if above else "", key)
                )
            continue
        value = _at(config, path)
        new = draw.choice(WRONG[type(value)])
        if (isinstance(value, float) and isinstance(new, int)) or (value == {} and new == {}):
            continue
        nullable = new is None and key in (
            "layouts",
            "seeds",
            "race",
            "clip_norm",
            "milestone_every",
        )
        # A schedule may end within an epoch.
        if (key, new) == ("horizon", 2.5):
            continue
        if nullable or (key == "dataset" and isinstance(new, list)) or (own_name and new is None):
            continue
        made.append((changed(config, path, new), ".".join(path), None))
    return made


def _at(config: Any, path: Any) -> Any:
    for key in path:
        config = config[key]
    return config


def _added(config: Any, path: list[str], value: Any) -> Any:
    made = copy.deepcopy(config)
    _at(made, path[:-1])[path[-1]] = value
    return made


PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from millrace.errors import ConfigError
from millrace.plan import Plan
for line in sys.stdin:
    try:
        plan = Plan(json.loads(line))
        plan.final_checkpoints(), plan.scaling_runs()
        told = "accepted"
    except ConfigError as error:
        told = str(error)
    except BaseException as error:
        told = f"TRACEBACK {error!r}"
    print(json.dumps(told))
# Not ru_maxrss, which begins with that of the process that started this one.
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def answers() -> list[tuple[str, str, str | None]]:
    """What planning says to each, the path it should name, and the key it should suggest."""
    cases = mutated()
    lines = "".join(json.dumps(config) + "\n" for config, _, _ in cases)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=lines, capture_output=True, text=True, check=True
    )
    assert int(done.stderr.split()[-1]) < 500_000, "kB of memory"
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return [(one, path, key) for one, (_, path, key) in zip(told, cases, strict=True)]


def test_all_are_refused_in_one_sentence(answers) -> None:
    assert len(answers) == 300
    assert [a for a in answers if not a[0].startswith("config: ") or "\n" in a[0]] == []


def test_the_right_key_is_named(answers) -> None:
    wrong = [(told, path) for told, path, _ in answers if path not in told.replace("[", ".")]
    assert len(wrong) <= 0.05 * len(answers), wrong


def test_a_misspelt_key_is_answered_with_the_right_one(answers) -> None:
    asked = [(told, key) for told, _, key in answers if key]
    assert len(asked) > 100
    without = [(told, key) for told, key in asked if f"did you mean {key!r}?" not in told]
    assert len(without) <= 0.05 * len(asked), without
