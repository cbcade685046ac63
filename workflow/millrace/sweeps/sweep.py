"""The section ``sweep`` of an experiment: which settings are tried, and how."""

import copy
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from millrace.config import Count, Seed, Settings, as_number, nearest
from millrace.errors import ConfigError
from millrace.sweeps.parameter import Parameter, read_parameter
from millrace.training.request import EXECUTION, LENGTHS

MOST_TRIALS = 500
_SECTIONS = ("data", "model", "train")
# The trials are ranked by their validation losses, which have to mean the same.
_LOSSES = ("data.variables", "data.output_steps", "model.name", "train.loss")
_LONGEST_NAME = 200
# Combinations of the ends of ranges that are checked when planning.
_MOST_CHECKED = 256


class Draws(Settings):
    """The block ``sweep.random``: settings drawn independently of each other."""

    trials: Count
    """How many."""
    seed: Seed = 0
    """Others are drawn with another one."""


class OptunaConfig(Settings):
    """The block ``sweep.optuna``: settings that Optuna asks for, learning from earlier trials."""

    trials: Count
    """How many at most."""
    at_once: Count = 4
    """Trials of a generation, which are trained beside each other."""
    prune: bool = True
    """Stop trials at a milestone whose validation loss is above the median there."""
    seed: Seed = 0
    """Other trials are asked for with another one."""


@dataclass(frozen=True)
class Sweep:
    """The sweep of an experiment."""

    experiment: str
    parameters: tuple[Parameter, ...]
    """In the order of their keys."""
    method: Draws | OptunaConfig | None
    """None: all combinations."""
    seeds: tuple[int, ...] | None
    """Seeds of each trial; None: those of the experiment."""
    first: Mapping[str, Any] | None
    """Values of the experiment itself, with which Optuna begins; None: they are none of those to try."""
    question: Mapping[str, Any]
    """What decides which trials Optuna asks for: all of the section but their number, and ``first``."""

    @property
    def optuna(self) -> OptunaConfig | None:
        """How Optuna is asked; None: all trials are known from the beginning."""
        return self.method if isinstance(self.method, OptunaConfig) else None

    @property
    def prunes(self) -> bool:
        """Whether trials may be stopped at a milestone."""
        return self.optuna is not None and self.optuna.prune

    @property
    def generations(self) -> int:
        """Number of groups of trials that are trained one after the other."""
        return math.ceil(self.optuna.trials / self.optuna.at_once) if self.optuna else 1

    @property
    def description(self) -> str:
        """A sentence on what is trained."""
        trials = self.optuna.trials if self.optuna else len(self.trials or ())
        text = f"sweep of {self.experiment}: {trials} trials"
        if self.optuna is None:
            return text
        stopped = ", and some are stopped at milestones" if self.prunes else ""
        return f"{text}, {self.optuna.at_once} at once; which ones follows from the earlier ones{stopped}"

    def number(self, generation: int) -> int:
        """Return the number of trials of a generation."""
        if self.optuna is None:
            return len(self.trials or ())
        return min(self.optuna.at_once, self.optuna.trials - generation * self.optuna.at_once)

    def name(self, values: Mapping[str, Any]) -> str:
        """Return the name of the trial with these values by key."""
        return self.experiment + "".join(one.text(values[one.key]) for one in self.parameters)

    @cached_property
    def pattern(self) -> str:
        """Regular expression of the names of trials."""
        return re.escape(self.experiment) + "".join(one.pattern for one in self.parameters)

    def values(self, trial: str) -> dict[str, Any] | None:
        """Return the values of a trial by key, which its name says; None: it is not one of this sweep."""
        match = re.fullmatch(self.pattern, trial)
        if match is None:
            return None
        found = zip(self.parameters, match.groups(), strict=True)
        values = {parameter.key: parameter.value(text) for parameter, text in found}
        return values if self.name(values) == trial else None

    def block(self, base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the block of a trial, as one would write it by hand, from that of the experiment."""
        made = {key: copy.deepcopy(one) for key, one in base.items() if key != "sweep"}
        for parameter in self.parameters:
            parameter.set(made, values[parameter.key])
        return made

    @cached_property
    def trials(self) -> list[str] | None:
        """Names of all trials; None: Optuna asks for them one after the other."""
        if isinstance(self.method, Draws):
            drawn = itertools.islice(self.drawn(self.method.seed), self.method.trials)
            return [*map(self.name, drawn)]
        return None if self.method else [*map(self.name, self._combinations())]

    def checked(self) -> Iterator[dict[str, Any]]:
        """Iterate over values that show whether all trials are allowed: all of them, if they are known."""
        if self.trials is not None:
            yield from (values for name in self.trials if (values := self.values(name)))
        else:
            yield from itertools.islice(self._combinations(), _MOST_CHECKED)
            base = {one.key: one.extremes[0] for one in self.parameters}
            for one in self.parameters:
                yield from (base | {one.key: value} for value in one.extremes)

    def _combinations(self) -> Iterator[dict[str, Any]]:
        keys = [one.key for one in self.parameters]
        for values in itertools.product(*(one.extremes for one in self.parameters)):
            yield dict(zip(keys, values, strict=True))

    def drawn(self, seed: int) -> Iterator[dict[str, Any]]:
        """Iterate over all combinations of values, drawn at random and each once."""
        rng, seen = random.Random(seed), set[str]()
        while len(seen) < math.prod(one.size for one in self.parameters):
            values = {one.key: one.draw(rng) for one in self.parameters}
            if (name := self.name(values)) not in seen:
                seen.add(name)
                yield values


def read_sweeps(experiments: Mapping[str, Mapping[str, Any]]) -> dict[str, Sweep]:
    """Return the sweeps of the experiments that have one, by experiment.

    Raises `ConfigError` for a wrong section, but does not know the values that a model allows.
    """
    found = {name: block["sweep"] for name, block in experiments.items() if block.get("sweep")}
    return {name: _read(name, block, experiments[name]) for name, block in found.items()}


def _read(experiment: str, block: Mapping[str, Any], base: Mapping[str, Any]) -> Sweep:
    where = f"config: experiments.{experiment}.sweep"
    methods = [key for key in ("random", "optuna") if key in block]
    if len(methods) > 1:
        raise ConfigError(f"{where}: both random and optuna; leave one of them out")
    values = {key: one for key, one in block.items() if key not in ("random", "optuna", "seeds")}
    if not values:
        raise ConfigError(
            f"{where}: no setting to try, such as train.learning_rate: [1.0e-3, 3.0e-3]"
        )
    for key in values:
        _check_key(where, key)
    labels = _labels(sorted(values))
    parameters = tuple(
        read_parameter(key, labels[key], values[key], where) for key in sorted(values)
    )
    method = _method(where, methods[0], block[methods[0]]) if methods else None
    _check_number(where, parameters, method)
    own = {one.key: one.own_value(base) for one in parameters}
    first = own if None not in own.values() else None
    more = {k: v for k, v in method.model_dump().items() if k != "trials"} if method else {}
    question = {"values": values, "method": more, "first": first}
    seeds = _seeds(where, block.get("seeds"))
    sweep = Sweep(experiment, parameters, method, seeds, first, question)
    longest = max(map(len, map(sweep.name, itertools.islice(sweep.checked(), MOST_TRIALS))))
    if longest > _LONGEST_NAME:
        raise ConfigError(
            f"{where}: the names of trials have {longest} characters, at most {_LONGEST_NAME} are "
            "possible; try fewer settings at once"
        )
    return sweep


def _check_key(where: str, key: Any) -> None:
    section, _, rest = str(key).partition(".")
    if section not in _SECTIONS or not all(
        re.fullmatch("[A-Za-z0-9_]+", one) for one in rest.split(".")
    ):
        hint = nearest(section, (*_SECTIONS, "random", "optuna", "seeds"))
        raise ConfigError(
            f"{where}: unknown key {key!r}; expected a dotted key of data, model or train, such as "
            "train.learning_rate, or random, optuna, seeds"
            + (f"; {hint}" if hint.startswith("did you") else "")
        )
    if section == "train" and rest.split(".")[0] in (*LENGTHS, *EXECUTION):
        raise ConfigError(f"{where}.{key}: it does not decide the weights; set it in {section}")
    if any(f"{key}.".startswith(f"{one}.") for one in _LOSSES):
        raise ConfigError(
            f"{where}.{key}: validation losses, by which trials are ranked, would not mean the same; write "
            "an experiment for each value"
        )


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of the keys that tell them apart."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        ends = (parts[-n:] for n in range(1, len(parts) + 1))
        own = next(
            end for end in ends if [one.split(".")[-len(end) :] for one in keys].count(end) == 1
        )
        labels[key] = re.sub("_+", "_", "-".join(own)).strip("_")
    return labels


def _method(where: str, name: str, block: Any) -> Draws | OptunaConfig:
    given = as_number(block, whole=True)
    given = {"trials": given} if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}.{name}: expected a number of trials or a mapping, got {block!r}"
        )
    kind: Any = Draws if name == "random" else OptunaConfig
    method: Draws | OptunaConfig = kind.parse(given, f"{where}.{name}")
    return method


def _check_number(
    where: str, parameters: Sequence[Parameter], method: Draws | OptunaConfig | None
) -> None:
    several = math.prod(one.size for one in parameters)
    if method is None and (
        of := next((p for p in parameters if not isinstance(p.values, Mapping)), None)
    ):
        raise ConfigError(
            f"{where}.{of.key}: all combinations of a range cannot be tried; give a list of values, or "
            "random or optuna"
        )
    if method is not None and method.trials > several:
        raise ConfigError(
            f"{where}: {method.trials} trials are asked for, but there are {several:.0f} combinations; "
            "leave the number out, or give more values"
        )
    if (trials := method.trials if method else several) > MOST_TRIALS:
        raise ConfigError(
            f"{where}: {trials:.0f} trials, at most {MOST_TRIALS} are possible; give fewer values, or "
            "random or optuna"
        )


def _seeds(where: str, seeds: Any) -> tuple[int, ...] | None:
    if seeds is None:
        return None
    found = [as_number(one, whole=True) for one in seeds] if isinstance(seeds, list) else []
    whole = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found)
    if not found or not whole or len(set(found)) < len(found):
        raise ConfigError(
            f"{where}.seeds: expected a list of different integers >= 0, got {seeds!r}"
        )
    return tuple(found)
