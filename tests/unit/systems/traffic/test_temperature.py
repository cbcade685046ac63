"""The temperature of tokens against its closed form."""

import numpy as np
import pytest
import torch

from millrace.systems.traffic.scores import temperature_for, token_scores
from millrace.systems.traffic.temperature import BOUNDS, fitted_temperature


def test_of_two_tokens_it_makes_probabilities_frequencies():
    logits = torch.tensor([1.5, -0.5]).expand(1000, 2)
    token = (torch.arange(1000) >= 600).long()
    found = fitted_temperature(lambda: [(logits[:300], token[:300]), (logits[300:], token[300:])])
    # softmax(z / T) = 0.6 where T = (z_0 - z_1) / log(0.6 / 0.4)
    assert found["value"] == pytest.approx(2 / np.log(1.5), rel=2e-3)
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert found["calibrated_log_loss"] == pytest.approx(entropy, rel=1e-5)
    p = 1 / (1 + np.exp(-2))
    assert found["log_loss"] == pytest.approx(-(0.6 * np.log(p) + 0.4 * np.log(1 - p)), rel=1e-5)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_that_tokens_were_drawn_with_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 30, generator=generator)
    token = torch.multinomial((logits / true).softmax(dim=1), 1, generator=generator)[:, 0]
    found = fitted_temperature(lambda: [(logits, token)])
    assert found["value"] == pytest.approx(true, rel=0.03)
    assert found["calibrated_log_loss"] <= found["log_loss"] + 1e-12


def test_what_has_no_minimum_stays_within_bounds():
    sure, wrong = torch.tensor([[4.0, -4.0]]), torch.tensor([[0.0, 8.0]])
    token = torch.tensor([0])
    assert 1 / BOUNDS[1] <= fitted_temperature(lambda: [(sure, token)])["value"] < 1
    assert fitted_temperature(lambda: [(wrong, token)])["value"] == pytest.approx(1 / BOUNDS[0])
    assert fitted_temperature(list) is None


def test_losses_of_a_model_are_those_of_its_tokens(saved):
    _, trained, _ = saved("smart")
    fitted = temperature_for(trained.module, trained.dataset, "validation")
    scores = token_scores(
        trained.module, trained.dataset, "validation", temperature=fitted["value"]
    )["all"]
    for key in ("log_loss", "calibrated_log_loss"):
        assert scores[key] == pytest.approx(fitted[key], rel=1e-4)
    assert fitted["calibrated_log_loss"] <= fitted["log_loss"]
    plain = token_scores(trained.module, trained.dataset, "validation")["all"]
    assert plain == {k: v for k, v in scores.items() if k != "calibrated_log_loss"}
