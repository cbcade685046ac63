"""Segments of a run whose loss is no number at one step, on one rank of some."""

from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

from millrace.training import segment
from millrace.training.deadline import Deadline
from millrace.training.request import Request
from millrace.training.store import load_state

EPOCHS = 4


@dataclass(frozen=True)
class Fault:
    """What happens while the loss of a step is computed."""

    step: int | None = None
    """The loss of the samples of ``rank`` is multiplied by ``by``, in the first ``tries``."""
    by: float = float("nan")
    tries: int = 1
    rank: int = 0
    killed_at: tuple[int, int] | None = None
    """Step, and roll-backs before it, at which the process ends."""
    stopped_at: tuple[int, int] | None = None
    """The same: it saves and stops after the step."""


class KilledError(Exception):
    """Stands for a SIGKILL: nothing is saved."""


def train(
    directory,
    definition,
    files,
    ranks,
    fault=None,
    target=EPOCHS,
    save_every=1,
    previous=None,
    parallel=None,
):
    """Train until the end of ``target``; returns how training stopped."""
    output, deadline, build = (
        Path(directory, f"epoch_{target}.ckpt"),
        Deadline(),
        segment.build_trainer,
    )
    request = Request(
        experiment="head",
        layout=f"n1_gpu{ranks.world_size}",
        seed=0,
        target_epoch=target,
        definition=definition,
        files=files,
        runs=str(Path(directory, "runs")),
        checkpoint=str(output),
        receipt=str(output.with_suffix(".json")),
        save_every=save_every,
        previous=previous,
        parallel=parallel or {},
    )

    def with_fault(*arguments):
        trainer, described = build(*arguments)
        spec = trainer.spec

        def loss(model, samples, config):
            at = (trainer.step, len(trainer.roll_backs))
            if model.training and at == fault.killed_at:
                raise KilledError
            if model.training and at == fault.stopped_at:
                deadline.stop_now()
            found = spec.loss(model, samples, config)
            wrong = model.training and at[0] == fault.step and at[1] < fault.tries
            return found * fault.by if wrong and ranks.rank == fault.rank else found

        trainer.passes = replace(trainer.passes, spec=replace(spec, loss=loss))
        return trainer, described

    with (
        patch.object(segment, "build_trainer", with_fault if fault else build),
        patch.object(Deadline, "from_environment", lambda: deadline),
        patch.object(Deadline, "listen", lambda self: None),
        patch("millrace.training.engine.AGREE_EVERY_S", 0.0),
    ):
        return segment.run_segment(request, ranks)


def train_on_ranks(directory, definition, files, fault, parallel, ranks):
    """On the first rank, of the last checkpoint: weights in short, losses and roll-backs."""
    train(directory, definition, files, ranks, Fault(**fault), parallel=parallel)
    if not ranks.is_first:
        return None  # it is not published yet, perhaps
    state = load_state(Path(directory, f"epoch_{EPOCHS}.ckpt"))
    return {
        "norms": [float(value.abs().double().sum()) for value in state["model"].values()],
        "losses": [record["train_loss"] for record in state["history"]],
        "roll_backs": state["roll_backs"],
    }
