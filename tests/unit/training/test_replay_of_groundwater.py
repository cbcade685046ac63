"""Training of groundwater models on their own forecasts, see `millrace.training.replay`."""

import pytest
import torch


@pytest.mark.parametrize("model", ["gino", "gfno"])
def test_forecasts_replace_the_past_of_core_points_and_the_truth_follows(
    model, make_trainer, run, monkeypatch
):
    trainer = make_trainer(model, replay={"longest": 8, "fresh": 0.2})
    seen, fill = [], trainer.replay.fill

    def noting(batch, draw):
        seen.append((draw, fill(batch, draw)))
        return batch

    monkeypatch.setattr(trainer.replay, "fill", noting)
    run(trainer, 8)
    dataset, continued = trainer.dataset, 0
    for draw, batch in seen:
        truth = dataset.at_times(draw.lots.part.group, draw.start)
        assert torch.equal(batch.y_KBTV, truth.y_KBTV)
        n_core, steps = len(truth.last_KBV), dataset.config.input_steps
        assert torch.equal(batch.past_NBTV[n_core:], truth.past_NBTV[n_core:]), "ghost points"
        assert torch.equal(batch.last_KBV, batch.past_NBTV[:n_core, :, -1])
        differs_BT = (batch.past_NBTV != truth.past_NBTV)[:n_core].any(dim=3).any(dim=0)
        for lead, differs_T in zip(draw.lead, differs_BT.tolist(), strict=True):
            # As many of the newest states are forecasts as the lead time has steps.
            assert differs_T == [steps - t <= lead for t in range(steps)]
            continued += lead > 0
    assert continued > 3


@pytest.mark.parametrize("model", ["gino", "gfno"])
def test_past_states_are_found_in_the_input(model, make_trainer):
    dataset = make_trainer(model).dataset
    start = dataset.starts("train")[:3]
    batch, steps = dataset.at_times(0, start), dataset.config.input_steps
    n_core = len(batch.last_KBV)
    expected = dataset.core_states(0, start[:, None] + range(steps))
    assert torch.equal(batch.past_NBTV[:n_core], expected)
    again = dataset.with_states(batch, batch.past_NBTV)
    for name in ("x_NBC", "last_KBV", *(["features_BFTHW"] if model == "gfno" else [])):
        assert torch.equal(getattr(again, name), getattr(batch, name))
