"""What every model promises to the training engine. Each contract is a function that asserts one promise.

`test_contract.py` holds every model of the registry to all of them, and shows that models that break
one are told by its name.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rank_worker
import torch

from millrace.training.batches import GlobalBatch, rank_shares
from millrace.training.deadline import Deadline
from millrace.training.distributed import Ranks
from millrace.training.engine import Trainer
from millrace.training.segment import build_trainer

GOLDEN = Path(__file__).parents[2] / "golden"
EPOCHS = 2


@dataclass(frozen=True)
class Case:
    """A model in a small experiment."""

    name: str
    definition: Mapping[str, Any]
    files: Mapping[str, str]
    ranks: Ranks
    directory: Path
    train_on_ranks: Callable[..., Mapping[str, Any]]
    regenerate: bool = False

    def trainer(self, seed: int = 0) -> Trainer:
        return build_trainer(self.definition, self.files, seed, self.ranks)[0]

    def batch(self, trainer: Trainer, samples: int | None = None) -> Any:
        first = next(trainer.batches(0))
        group, index = first.parts[0]
        [share] = rank_shares(GlobalBatch(((group, index[:samples]),)), 0, 1)
        return trainer.passes.samples("train", share, trainer.position)


class Recorder:
    """Keeps the last state, and asks for a stop after a given step."""

    def __init__(self, deadline: Deadline, stop_after: int | None = None) -> None:
        self._deadline, self._stop_after = deadline, stop_after
        self.state: Mapping[str, Any] = {}

    def on_step(self, position, steps_per_epoch, loss):
        if position.step == self._stop_after:
            self._deadline._end = 0.0

    def on_epoch(self, record):
        pass

    def on_state(self, trainer, stopping):
        self.state = trainer.state()


def forecast_fits_the_target(case: Case) -> None:
    trainer = case.trainer()
    batch = case.batch(trainer)
    forecast = trainer.spec.predict(trainer.module.eval(), batch)
    assert forecast.shape == batch.y_KBTV.shape
    assert bool(torch.isfinite(forecast).all())
    loss_B = trainer.spec.loss(trainer.module, batch, trainer.config.loss)
    assert loss_B.shape == batch.weight_B.shape, "one loss for each sample"


def every_parameter_learns(case: Case) -> None:
    trainer = case.trainer()
    trainer.passes.backward(next(trainer.batches(0)), trainer.position)
    named = dict(trainer.module.named_parameters())
    unused = [n for n, p in named.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert not unused, f"no gradient: {', '.join(unused)}"
    broken = [n for n, p in named.items() if not torch.isfinite(p.grad).all()]
    assert not broken, f"gradient not finite: {', '.join(broken)}"


def no_hidden_state(case: Case) -> None:
    """A forecast depends on weights and batch: not on what the model saw, nor on other samples."""
    trainer = case.trainer()
    module, batch = trainer.module.eval(), case.batch(trainer)
    with torch.no_grad():
        first = trainer.spec.predict(module, batch)
        assert torch.equal(first, trainer.spec.predict(module, batch)), "another second forecast"
        alone = trainer.spec.predict(module, case.batch(trainer, samples=1))
        assert torch.allclose(first[:, :1], alone, atol=1e-5), "other samples show"
    before = {n: b.clone() for n, b in module.named_buffers()}
    trainer.spec.loss(module.train(), batch, trainer.config.loss).sum().backward()
    changed = [n for n, b in module.named_buffers() if not torch.equal(b, before[n])]
    assert not changed, f"buffers change in training: {', '.join(changed)}"
    with torch.no_grad():
        assert torch.equal(first, trainer.spec.predict(module.eval(), batch)), "training shows"


def survives_a_file(case: Case) -> None:
    trainer, other = case.trainer(seed=0), case.trainer(seed=1)
    path = case.directory / "state.pt"
    torch.save(trainer.state(), path)
    other.load(torch.load(path, weights_only=True))
    assert same_tensors(trainer, other)
    batch = case.batch(trainer)
    with torch.no_grad():
        forecasts = [t.spec.predict(t.module.eval(), batch) for t in (trainer, other)]
    assert torch.equal(*forecasts)


def follows_its_golden_curve(case: Case) -> None:
    trainer = case.trainer()
    trainer.run(EPOCHS, Deadline(None), Recorder(Deadline(None)))
    curve = {
        key: [record[key] for record in trainer.history]
        for key in ("train_loss", "validation_loss")
    }
    path = GOLDEN / f"{case.name}.json"
    if case.regenerate:
        path.write_text(json.dumps(curve, indent=1) + "\n")
    golden = json.loads(path.read_text())
    for key, values in curve.items():
        assert values == pytest.approx(golden[key], rel=1e-4), key


def ranks_agree(case: Case) -> None:
    steps = 8
    job = {"definition": case.definition, "files": case.files, "steps": steps}
    alone = rank_worker.train(job, case.ranks)
    together = case.train_on_ranks(2, case.definition, case.files, steps)
    for key, tolerance in (("losses", 1e-5), ("norms", 1e-4), ("validation", 1e-5)):
        assert together[key] == pytest.approx(alone[key], rel=tolerance), key


def resumes_bitwise(case: Case) -> None:
    whole = case.trainer()
    whole.run(EPOCHS, Deadline(None), Recorder(Deadline(None)))
    deadline = Deadline(None)
    recorder = Recorder(deadline, stop_after=2)
    assert not case.trainer().run(EPOCHS, deadline, recorder)
    torch.save(recorder.state, case.directory / "stopped.pt")
    again = case.trainer()
    torch.manual_seed(99)
    again.load(torch.load(case.directory / "stopped.pt", weights_only=True))
    again.run(EPOCHS, Deadline(None), Recorder(Deadline(None)))
    assert same_tensors(whole, again), "the resumed run has other weights"


def precisions_agree(case: Case) -> None:
    """A forecast in float32 is that in float64 to rounding."""
    single, double = case.trainer(), case.trainer()
    batch = case.batch(single)
    for tensor in (*double.module.parameters(), *double.module.buffers()):
        tensor.data = in_double(tensor.data)
    with torch.no_grad():
        forecasts = [
            single.spec.predict(single.module.eval(), batch).double(),
            double.spec.predict(double.module.eval(), in_double(batch)),
        ]
    assert forecasts[1].dtype == torch.float64
    torch.testing.assert_close(*forecasts, rtol=1e-4, atol=1e-5)


CONTRACTS = (
    forecast_fits_the_target,
    every_parameter_learns,
    no_hidden_state,
    survives_a_file,
    follows_its_golden_curve,
    ranks_agree,
    resumes_bitwise,
    precisions_agree,
)


def same_tensors(one: Trainer, other: Trainer) -> bool:
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def in_double(value: Any) -> Any:
    """Tensors of a batch, or one of a model, in double precision."""
    if isinstance(value, torch.Tensor):
        if value.is_complex():
            return value.to(torch.complex128)
        return value.double() if value.is_floating_point() else value
    if dataclasses.is_dataclass(value):
        fields = {f.name: in_double(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
