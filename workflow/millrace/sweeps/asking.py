"""Optuna asks for the next trials, knowing how the earlier ones went; only the job that asks imports it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from millrace.sealed import write_sealed
from millrace.sweeps.outcome import Outcome, read_outcomes
from millrace.sweeps.parameter import Parameter, Range
from millrace.sweeps.sweep import Sweep

# Questions for a trial that was not there before, after which any other combination is taken.
_ATTEMPTS = 50


def write_trials(
    sweep: Sweep, receipts: Sequence[str], last_epoch: int, generation: int, output: Path
) -> None:
    """Write the names and values of the trials of a generation, see `ask`.

    ``receipts`` are those of the trials of earlier generations at the milestones where they ended.
    """
    names = ask(sweep, read_outcomes(receipts), last_epoch, generation)
    write_sealed(output, {"trials": names, "values": {name: sweep.values(name) for name in names}})


def ask(sweep: Sweep, outcomes: Sequence[Outcome], last_epoch: int, generation: int) -> list[str]:
    """Return the names of the trials of a generation.

    The study is built anew from the outcomes of all earlier trials, in the order in which they were asked
    for, and its generator of random numbers follows from the seed and the generation: the answer is a
    function of the arguments.
    """
    settings = sweep.optuna
    assert settings is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence([settings.seed, generation]).generate_state(1)[0])
    # Not a share of all trials: asking for more must not change those of before.
    startup = min(10, max(4, 2 * settings.at_once))
    # Trials of the same generation keep away from each other: constant_liar.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    space = {one.key: _distribution(one) for one in sweep.parameters}
    for outcome in outcomes:
        study.add_trial(_told(sweep, outcome, space, last_epoch))
    seen, names = {one.trial for one in outcomes}, list[str]()
    attempts = 0
    if not outcomes and sweep.first is not None:
        study.enqueue_trial(_params(sweep, sweep.first))
    while len(names) < sweep.number(generation):
        trial = study.ask(space)
        values = {one.key: _value(one, trial.params[one.key]) for one in sweep.parameters}
        if (name := sweep.name(values)) in seen:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            attempts += 1
            name = "" if attempts < _ATTEMPTS else _other(sweep, seen, seed)
        if name:
            seen.add(name)
            names.append(name)
    return names


def _distribution(parameter: Parameter) -> BaseDistribution:
    values = parameter.values
    if not isinstance(values, Range):
        return CategoricalDistribution([*values])
    kind: Any = IntDistribution if values.whole else FloatDistribution
    step = values.step or (1 if values.whole else None)
    return kind(values.low, values.high, log=values.log, step=step)


def _value(parameter: Parameter, asked: Any) -> Any:
    """Value of a parameter from that of Optuna, which knows a list by its texts."""
    values = parameter.values
    return values.rounded(asked) if isinstance(values, Range) else values[asked]


def _params(sweep: Sweep, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna knows them, see `_value`."""
    listed = {p.key: p.values for p in sweep.parameters if not isinstance(p.values, Range)}
    return {
        key: next(text for text, one in listed[key].items() if one is value)
        if key in listed
        else value
        for key, value in values.items()
    }


def _told(
    sweep: Sweep, outcome: Outcome, space: dict[str, BaseDistribution], last_epoch: int
) -> optuna.trial.FrozenTrial:
    loss = outcome.loss()
    complete = outcome.epoch == last_epoch and loss < math.inf
    state = optuna.trial.TrialState
    return optuna.create_trial(
        # A pruned trial without a loss, which has failed, is worse than all others for the sampler.
        state=state.COMPLETE if complete else state.PRUNED,
        value=loss if complete else None,
        intermediate_values={outcome.epoch: loss} if loss < math.inf else {},
        params=_params(sweep, sweep.values(outcome.trial) or {}),
        distributions=space,
    )


def _other(sweep: Sweep, seen: set[str], seed: int) -> str:
    """A combination that was not there before; planning made sure that there is one."""
    return next(name for values in sweep.drawn(seed) if (name := sweep.name(values)) not in seen)
