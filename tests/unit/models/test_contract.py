"""Every model of the registry is held to every contract; a model that breaks one fails by its name.

After a change that is meant to change results: ``pytest tests/unit/models --regenerate-golden``.
"""

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from observers import silent
from tiers import nightly_for, slow_for

from millrace.checking import contracts
from millrace.checking.case import Case, ContractError
from millrace.checking.contracts import OF_MODELS
from millrace.checking.subjects import find_subjects
from millrace.systems.groundwater import gino
from millrace.systems.registry import models
from millrace.training.deadline import Deadline

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def make_case(experiments, tmp_path):
    examples = []  # keeps their files

    def make(name):
        if name not in experiments:
            examples.extend(find_subjects([name]))
            return examples[-1].case
        definition, files = copy.deepcopy(experiments[name])
        return Case(definition, files, tmp_path)

    return make


@pytest.mark.parametrize(
    ("model", "contract"),
    [
        *slow_for(
            [
                *itertools.product(
                    models(), (one for one in OF_MODELS if one is not contracts.exports)
                )
            ],
            ("smart", contracts.loss_falls).__eq__,
        ),
        # Programs of these models are also run elsewhere, see evaluation/test_export.py.
        *nightly_for([(model, contracts.exports) for model in models()], bool),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_contract(make_case, model, contract):
    assert contract(make_case(model)) is None


@pytest.mark.parametrize("model", models())
def test_losses_follow_the_golden_curve(make_case, model, request):
    trainer = make_case(model).trainer()
    trainer.run(2, Deadline(), silent())
    curve = {
        key: [record[key] for record in trainer.history]
        for key in ("train_loss", "validation_loss")
    }
    path = GOLDEN / f"{model}.json"
    if request.config.getoption("--regenerate-golden"):
        path.write_text(json.dumps(curve, indent=1) + "\n")
    if not path.is_file():
        pytest.skip("there is no golden curve; write it with --regenerate-golden")
    golden = json.loads(path.read_text())
    for key, values in curve.items():
        # The simulated climate is not the same to the last digit on all CPUs: losses of models on it
        # differ by up to 7e-4 between machines with AVX2 and AVX-512, those of others by 1e-6.
        assert values == pytest.approx(golden[key], rel=2e-3), key


class Spare(torch.nn.Module):
    """Has a parameter that nothing depends on."""

    def __init__(self, module):
        super().__init__()
        self.inner, self.spare = module, torch.nn.Parameter(torch.ones(2))

    def forward(self, batch):
        return self.inner(batch)


class Remembers(Spare):
    """Forecasts otherwise when it is asked again."""

    def __init__(self, module):
        super().__init__(module)
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        return self.inner(batch) + 1e-3 * self.calls * self.spare.sum()


class Counts(Remembers):
    """Keeps statistics of what it was trained on, as batch normalisation does."""

    def __init__(self, module):
        super().__init__(module)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        if self.training:
            self.seen += batch.weight_B.sum()
        return self.inner(batch) + self.spare.sum()


class Averages(Spare):
    """Looks at the other samples of a batch, whose number depends on the layout."""

    def forward(self, batch):
        forecast = self.inner(batch)
        return forecast + self.spare.sum() * forecast.mean(dim=1, keepdim=True)


class Mixes(Spare):
    """Random numbers that no checkpoint knows."""

    def forward(self, batch):
        noise = torch.Generator()
        noise.seed()
        factor = torch.rand(2, generator=noise) if self.training else 1.0
        return self.inner(batch) + (self.spare * factor).sum()


class Stops(Spare):
    """Gives nothing that can be used."""

    def forward(self, batch):
        return self.inner(batch) + torch.nan * self.spare.sum()


class Rounds(Spare):
    """Works in single precision, whatever it is given."""

    def forward(self, batch):
        return (self.inner(batch) + self.spare.sum()).float()


class Shrinks(Spare):
    """Forecasts less than it should."""

    def forward(self, batch):
        return self.inner(batch)[:, :, :1]


class Forgets(Spare):
    """Computes with a number that no checkpoint holds."""

    def __init__(self, module):
        super().__init__(module)
        self.factor = 1 + torch.rand(())

    def forward(self, batch):
        return self.inner(batch) * self.factor + self.spare.sum()


class Coarse(Spare):
    """Loses what half precision cannot hold."""

    def forward(self, batch):
        large = 1e4 * torch.nn.functional.linear(self.spare[None], self.spare[None])
        return self.inner(batch) + (large + 3.0) - large.float() + self.spare.sum()


BROKEN = [
    (Forgets, "survives_a_file", "gives another forecast: what it computes with is not among its"),
    (Coarse, "half_precision_agrees", "in bfloat16 and .* in float32: compute what loses digits"),
    (Spare, "every_parameter_learns", "no gradient: spare; the loss does not depend on it"),
    (Remembers, "no_hidden_state", "another second forecast"),
    (Counts, "no_hidden_state", "buffers change in training: seen"),
    (Averages, "no_hidden_state", "other samples show"),
    (
        Averages,
        "gives_a_loss_per_sample",
        r"the first sample has the loss .* alone: do not average",
    ),
    (Mixes, "resumes_bitwise", "the resumed run has other weights"),
    (Stops, "gives_a_loss_per_sample", r"the loss is not finite: \[nan"),
    (Stops, "forecast_fits_the_target", "the forecast has values that are infinite or NaN"),
    (Stops, "every_parameter_learns", r"gradient not finite: spare, inner.* and \d+ more"),
    (Rounds, "double_precision_agrees", "give a forecast in torch.float32: something is cast"),
    (
        Shrinks,
        "forecast_fits_the_target",
        r"has the shape \(\d+, 4, 1, 2\), the target \(\d+, 4, 2, 2\)",
    ),
]


@pytest.mark.parametrize(("kind", "name", "told"), BROKEN, ids=lambda value: str(value))
def test_a_broken_model_fails_the_contract_it_breaks(make_case, monkeypatch, kind, name, told):
    build = gino.SPEC.build
    broken = dataclasses.replace(gino.SPEC, build=lambda *given: kind(build(*given)))
    monkeypatch.setattr(gino, "SPEC", broken)
    with pytest.raises(ContractError, match=told):
        getattr(contracts, name)(make_case("gino"))


SPOILT = [
    ({"name": "other"}, "builds", "ModelSpec.name is 'other', it is registered as 'gino'"),
    ({"config": int}, "builds", "ModelSpec.config is not a class of"),
    ({"loss": lambda *given: gino.SPEC.loss(*given).mean()}, "gives_a_loss_per_sample", "one loss"),
    (
        {"loss": lambda *given: 1 + 0 * gino.SPEC.loss(*given)},
        "loss_falls",
        "is 1 at first and 1 after",
    ),
]


@pytest.mark.parametrize(("changes", "name", "told"), SPOILT, ids=[one[2] for one in SPOILT])
def test_a_wrong_spec_fails_the_contract_it_breaks(make_case, monkeypatch, changes, name, told):
    monkeypatch.setattr(contracts, "get_model", lambda _: dataclasses.replace(gino.SPEC, **changes))
    monkeypatch.setattr("millrace.training.segment.get_model", contracts.get_model)
    with pytest.raises(ContractError, match=told):
        getattr(contracts, name)(make_case("gino"))
