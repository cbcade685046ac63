"""Small configurations of every kind of samples."""

from dataclasses import replace
from pathlib import Path

from millrace.systems import registry

ROOT = Path(__file__).parents[2]


def config():
    return {
        "run": {"experiments": ["head"], "layouts": ["n1_gpu1", "n2_gpu2"], "seeds": [0, 3]},
        "datasets": {
            "coast": {
                "source": "demo",
                "demo": {"steps": 300},
                "variables": ["head", "mass_concentration"],
                "forcings": ["head_bc"],
                "split": {"train": 0.7, "validation": 0.15, "gap": 20},
                "patches": {},
            }
        },
        "experiments": {
            "head": {
                "dataset": "coast",
                "data": {"variables": ["head"], "input_steps": 10, "output_steps": 10},
                "model": {
                    "name": "gino",
                    "latent_shape": [12, 8, 6],
                    "radius": 0.2,
                    "modes": [8, 8, 6],
                },
                "train": {"epochs": 10, "milestone_every": 4, "save_every": 2, "global_batch": 8},
            }
        },
    }


def changed(path: str, value):
    made = config()
    block = made
    *parents, last = path.split("/")
    for key in parents:
        block = block[key]
    if value is None:
        del block[last]
    else:
        block[last] = value
    return made


def icon():
    made = config()
    made["datasets"]["globe"] = {
        "source": "demo",
        "format": "icon",
        "variables": ["tas"],
        "split": {"train": 0.7, "validation": 0.15, "gap": 4},
    }
    made["experiments"]["fine"] = {
        "dataset": "globe",
        "data": {"variables": ["tas"]},
        "model": {"name": "downscaler"},
        "train": {"epochs": 2, "global_batch": 4},
    }
    made["run"] |= {"experiments": ["fine"], "layouts": ["n1_gpu1"]}
    return made


def traffic():
    made = config()
    made["datasets"]["town"] = {"source": "demo", "format": "tracks", "tokens": {"motion": 64}}
    made["experiments"]["drive"] = {
        "dataset": "town",
        "data": {},
        "model": {"name": "smart"},
        "train": {"epochs": 2, "global_batch": 4},
    }
    made["run"] |= {"experiments": ["drive"], "layouts": ["n1_gpu1"]}
    return made


def weather():
    made = config()
    made["datasets"]["planet"] = {
        "source": "demo",
        "format": "weather",
        "split": {"train": 0.7, "validation": 0.1, "gap": 4},
    }
    made["experiments"]["globe"] = {
        "dataset": "planet",
        "data": {},
        "model": {"name": "aurora"},
        "train": {"epochs": 2, "global_batch": 4},
    }
    made["run"] |= {"experiments": ["head", "globe"]}
    return made


def small(name):
    """A small experiment ``tiny`` of a model, that which `millrace check` tries."""
    model = registry.models()[name]
    example = registry.kinds()[model.kind].example
    return {
        "run": {"experiments": ["tiny"], "layouts": ["n1_gpu1"], "seeds": [0]},
        "datasets": {"small": dict(example["dataset"])},
        "experiments": {
            "tiny": {
                "dataset": "small",
                "data": dict(example["data"]),
                "model": {"name": name, **model.example},
                "train": {"epochs": 2, "global_batch": 4},
            }
        },
    }


def changed_part(monkeypatch, part, name, **changes):
    """Change something that a system says of one of its ``formats``, ``kinds`` or ``models``."""
    made = {
        system.name: replace(
            system,
            **{
                part: tuple(
                    replace(one, **changes) if one.name == name else one
                    for one in getattr(system, part)
                )
            },
        )
        for system in registry.systems().values()
    }
    monkeypatch.setattr(registry, "systems", lambda: made)
