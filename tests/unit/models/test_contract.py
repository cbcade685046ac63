"""Every model of the registry is held to every contract; a model that breaks one fails by its name.

After a change that is meant to change results: ``pytest tests/unit/models --regenerate-golden``.
"""

import copy
import dataclasses

import contract
import pytest
import torch
from contract import CONTRACTS, Case

from millrace.systems.groundwater import gino
from millrace.systems.registry import models


@pytest.fixture(autouse=True)
def agree_at_every_step(monkeypatch):
    monkeypatch.setattr("millrace.training.engine._AGREE_EVERY_S", 0.0)


@pytest.fixture
def make_case(experiments, alone, tmp_path, train_on_ranks, request):
    def make(name):
        definition, files = copy.deepcopy(experiments[name])
        regenerate = request.config.getoption("--regenerate-golden")
        return Case(name, definition, files, alone, tmp_path, train_on_ranks, regenerate)

    return make


@pytest.mark.parametrize("check", CONTRACTS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("model", models())
def test_contract(make_case, model, check):
    check(make_case(model))


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


BROKEN = [
    (Spare, "every_parameter_learns", "no gradient: spare"),
    (Remembers, "no_hidden_state", "another second forecast"),
    (Counts, "no_hidden_state", "buffers change in training: seen"),
    (Averages, "no_hidden_state", "other samples show"),
    (Mixes, "resumes_bitwise", "the resumed run has other weights"),
]


@pytest.mark.parametrize(("kind", "name", "told"), BROKEN, ids=lambda value: str(value))
def test_a_broken_model_fails_the_contract_it_breaks(make_case, monkeypatch, kind, name, told):
    build = gino.SPEC.build
    broken = dataclasses.replace(gino.SPEC, build=lambda *given: kind(build(*given)))
    monkeypatch.setattr(gino, "SPEC", broken)
    with pytest.raises(AssertionError, match=told):
        getattr(contract, name)(make_case("gino"))
