"""One segment of a run: from the newest checkpoint to a target epoch, then the outputs of the rule."""

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from millrace.data.recipe import recipe_of
from millrace.data.samples import Files, open_dataset
from millrace.errors import ConfigError, UserError
from millrace.files import output_errors, write_json
from millrace.models.products import ONEDNN
from millrace.provenance import code_version, provenance
from millrace.sealed import checksum, write_sealed
from millrace.systems.registry import get_model, kind_of
from millrace.training import published, run_hash
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.deadline import Deadline, Stop
from millrace.training.distributed import Ranks
from millrace.training.engine import AGREE_EVERY_S, Trainer
from millrace.training.history import best_epoch
from millrace.training.learning import stalled_loss
from millrace.training.loggers import Logger, StepReports, check_loggers, open_loggers
from millrace.training.owner import current_job
from millrace.training.parallel.config import ParallelConfig
from millrace.training.phases import Mark, no_mark
from millrace.training.profiler import StepProfiler, traces
from millrace.training.progress import Reporter
from millrace.training.receipt import check_published
from millrace.training.request import Request
from millrace.training.roll_back import told
from millrace.training.saving import Saver, snapshot
from millrace.training.store import Checkpoint, CheckpointStore, load_state, publish
from millrace.training.usage import SessionUsage, write_target
from millrace.training.warm_start import content_digest

_REASONS = {
    Stop.END: "the allocation ends",
    Stop.WARNED: "warned by a signal that the allocation ends",
    Stop.CANCELLED: "asked by a signal to stop",
}


def build_trainer(
    definition: Mapping[str, Any],
    files: Files,
    seed: int,
    ranks: Ranks,
    execution: ExecutionConfig | None = None,
    parallel: ParallelConfig | None = None,
    mark: Mark = no_mark,
) -> tuple[Trainer, dict[str, Any]]:
    """Make a trainer from the sections ``data``, ``model`` and ``train`` of an experiment.

    Also returns the definition of the run, the input of `millrace.training.run_hash.digest`. Raises
    `ConfigError` for a wrong section, and `DataError` for a missing or damaged sample file.
    """
    model = dict(definition["model"])
    spec = get_model(model.pop("name"))
    model_config: Any = spec.config.parse(model, "model")
    train = TrainConfig.parse(definition["train"], "train")
    dataset = open_dataset(kind_of(spec.name).name, files, definition["data"], ranks.device)
    if train.loss.variance_weight and not dataset.weighted_variable:
        raise ConfigError(
            "train.loss.variance_weight: these samples hold no variable whose errors it weighs, such as a "
            "concentration; leave it out"
        )
    described = {
        "model": {"name": spec.name, **model_config.essentials()},
        "data": dataset.definition,
        "train": train.essentials(),
        "seed": seed,
    }
    # The content of the checkpoint decides the weights, not its path.
    if train.init_from is not None and train.init_from.published is not None:
        described["train"]["init_from"]["published"] = published.file_digest(
            train.init_from.published
        )
    elif train.init_from is not None:
        checkpoint = Path(str(train.init_from.checkpoint))
        check_published(checkpoint)
        described["train"]["init_from"]["checkpoint"] = content_digest(checkpoint)
    trainer = Trainer(spec, model_config, dataset, train, seed, ranks, execution, parallel, mark)
    return trainer, described


def run_segment(request: Request, ranks: Ranks) -> Stop:
    """Train to the target epoch and publish its checkpoint and receipt.

    Returns why training stopped before the target, so that it has to be run again, or `Stop.NO`. A
    `UserError` of the first rank is raised on all ranks.
    """
    execution = ExecutionConfig.parse(request.execution, "train")
    check_loggers(execution.log)
    parallel = ParallelConfig.parse(request.parallel, "parallel")
    trainer, described = build_trainer(
        request.definition, request.files, request.seed, ranks, execution, parallel
    )
    name = run_hash.digest(described)
    store = CheckpointStore(Path(request.runs) / name, name, code_version())
    with contextlib.ExitStack() as stack:
        with _raised_everywhere(ranks):
            if ranks.is_first:
                stack.enter_context(store.writing())
                write_json(store.root / "identity.json", described)
                write_target(store.root, request.target_epoch, request.final_epoch)
        found = None
        with _raised_everywhere(ranks):
            if ranks.is_first:
                found = _starting_point(store, request, request.target_epoch)
        start, origin = ranks.from_first(found)
        if start is not None:
            trainer.load(load_state(Path(start), full=trainer.divided is None))
        _begin_session(trainer, request)
        deadline = Deadline.from_environment()
        deadline.listen()
        with _observer(request, trainer, store, described, deadline, origin) as observer:
            reached = trainer.run(request.target_epoch, deadline, observer)
            if reached and observer.reporter and (problem := stalled_loss(trainer.history)):
                observer.reporter.say(f"WARNING: {request.name} does not learn: {problem}")
        if reached and ranks.is_first:
            # After early stopping the last state counts as that of all later epochs.
            checkpoint = store.at_epoch(trainer.position.epoch)
            if checkpoint is not None:
                store.keep_permanently(checkpoint)
                publish(checkpoint, Path(request.checkpoint))
                receipt = _receipt(request, store, checkpoint, trainer, described)
                write_sealed(Path(request.receipt), receipt)
    return trainer.stopped


def _starting_point(
    store: CheckpointStore, request: Request, max_epoch: int
) -> tuple[str | None, str]:
    """Checkpoint to continue from, None at the beginning, and a description for the user."""
    checkpoint = store.latest(max_epoch)
    if checkpoint is not None:
        return str(checkpoint.path), f"continues from {checkpoint.path.parent.name}"
    if request.previous is not None and Path(request.previous).is_file():
        check_published(Path(request.previous))
        state = load_state(Path(request.previous))
        if state.get("identity") == store.run_hash and len(state["history"]) <= max_epoch:
            return request.previous, f"continues from {request.previous}: its store is gone"
    return None, "starts from the beginning"


def _begin_session(trainer: Trainer, request: Request) -> None:
    device, kernels = trainer.ranks.device, trainer.spec.kernels
    trainer.sessions.append(
        {
            "session": len(trainer.sessions) + 1,
            "step": trainer.step,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "job": current_job(),
            "layout": request.trained_on,
            "ranks": trainer.ranks.world_size,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "torch": str(torch.__version__),
            "products": "oneDNN" if ONEDNN and device.type == "cpu" else "PyTorch's",
            "kernels": kernels.described() if kernels and device.type == "cpu" else "PyTorch's",
            "execution": trainer.execution.essentials(),
            "parallel": trainer.parallel.essentials() if trainer.divided else {},
        }
    )


@contextlib.contextmanager
def _observer(
    request: Request,
    trainer: Trainer,
    store: CheckpointStore,
    described: Mapping[str, Any],
    deadline: Deadline,
    origin: str,
) -> Iterator["_Observer"]:
    session = trainer.sessions[-1]
    saver = Saver(request.save_steps, request.save_minutes, trainer.step)
    if not trainer.ranks.is_first:
        yield _Observer(request, store, deadline, SessionUsage(None, session), saver)
        return
    execution, name = trainer.execution, request.name
    metrics = store.root / "metrics.jsonl"
    with contextlib.ExitStack() as stack:
        reporter = Reporter(name, metrics, trainer.history, request.target_epoch)
        stack.enter_context(reporter)
        every, done = execution.log_steps, trainer.position
        loggers = open_loggers(execution.log, store.root, name, done, described, every)
        for logger in loggers:
            stack.callback(logger.close)
        steps = StepReports(loggers, every, done, partial(_last_step, trainer))
        profiler = StepProfiler(execution.profile, store.root, trainer.step)
        stack.callback(profiler.close)
        reporter.say(
            f"{name}: {origin} (epoch {trainer.position.epoch} of {request.target_epoch}), "
            f"{session['ranks']} rank(s) on {session['device']}, {session['threads']} thread(s) each"
        )
        if trainer.step == 0 and (started_from := _started_from(trainer, described)):
            for line in published.told(started_from):
                reporter.say(line)
        if not trainer.history:
            for other in run_hash.siblings(store.root.parent, store.root.name):
                changes = "; ".join(run_hash.differences(other, described))
                reporter.say(f"a new run beside an earlier one, because of {changes}")
        for note in _benign_changes(trainer.sessions):
            reporter.say(note)
        usage = SessionUsage(store.root, session)
        stack.callback(lambda: usage.write(trainer.step))
        stack.enter_context(saver)
        kind = kind_of(trainer.spec.name).name
        recipe = recipe_of(kind, request.definition, trainer.dataset)
        shown = reporter, profiler, loggers, steps
        yield _Observer(request, store, deadline, usage, saver, *shown, recipe)


def _last_step(trainer: Trainer) -> dict[str, float]:
    """What is told of a step: the loss is that of the first process' share of the samples."""
    return {
        "loss": float(trainer.step_loss) * trainer.ranks.world_size,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "gradient_norm": float(trainer.gradient_norm),
    }


@dataclass(frozen=True, eq=False)
class _Observer:
    """Saves on the first rank, and passes on what the user wants to see."""

    request: Request
    store: CheckpointStore
    deadline: Deadline
    usage: SessionUsage
    saver: Saver
    reporter: Reporter | None = None
    profiler: StepProfiler | None = None
    loggers: Sequence[Logger] = ()
    steps: StepReports | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How the model is applied, see `millrace.data.recipe`."""

    def on_step(self, position: Any, steps_per_epoch: int, loss: Any) -> None:
        self.usage.lap("training")
        if self.reporter is not None:
            self.reporter.on_step(position, steps_per_epoch, loss)
        if self.profiler is not None:
            self.profiler.on_step(position.step)
        if self.steps is not None:
            self.steps.on_step(position.step)

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.usage.lap("validating")
        if self.reporter is None:
            return
        self.saver.wait()  # an epoch is told of once the checkpoint before it is there
        is_new = record["epoch"] > self.reporter.reported
        self.reporter.on_epoch(record)
        for logger in self.loggers if is_new else ():
            logger.log(record)

    def on_state(self, trainer: Trainer, stopping: bool) -> None:
        if stopping:
            self.usage.lap("training")
        self._save_if_due(trainer, stopping)
        self.usage.lap("saving")
        self.usage.write(trainer.step)

    def saves_at(self, step: int) -> bool:
        return self.saver.saves_at(step)

    def is_late(self, step: int) -> bool:
        # Ranks agree this often, and then a step ends.
        reserve = self.deadline.slow_save + self.deadline.slow_step + AGREE_EVERY_S
        return self.reporter is not None and self.saver.is_late(step, reserve)

    def on_due(self, trainer: Trainer) -> None:
        self._save(trainer, milestone=False)
        self.usage.lap("saving")
        self.usage.write(trainer.step)

    def on_begin(self, trainer: Trainer) -> None:
        position, ranks = trainer.position, trainer.ranks
        with _raised_everywhere(ranks):
            there = ranks.is_first and self.store.latest(max_epoch=position.epoch) is not None
        if not (position.batch or ranks.from_first(there)):
            self._save(trainer, milestone=False)

    def on_roll_back(
        self, trainer: Trainer, roll_back: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        ranks, epoch, found = trainer.ranks, roll_back["epoch"], None
        with _raised_everywhere(ranks):
            if ranks.is_first:
                self.saver.wait()
                self.store.discard_within(epoch)
                found = _starting_point(self.store, self.request, epoch)
        start, origin = ranks.from_first(found)
        if start is None:
            return None
        if self.reporter is not None:
            self.reporter.say(f"{told(roll_back)}; {origin}, with a smaller learning rate")
        return load_state(Path(start), full=trainer.divided is None)

    def _save_if_due(self, trainer: Trainer, stopping: bool) -> None:
        epoch, last, ranks = trainer.position.epoch, trainer.stopped_early, trainer.ranks
        milestone = (epoch == self.request.target_epoch or last) and not stopping
        if not (stopping or milestone or epoch % self.request.save_every == 0):
            return
        if last:
            if self.reporter is not None:
                self.reporter.say(
                    "stopped early: no better validation loss since epoch "
                    f"{best_epoch(trainer.history)}; epoch {epoch} counts as all later ones"
                )
            if ranks.from_first(ranks.is_first and self.store.at_epoch(epoch) is not None):
                return  # saved already: every later milestone comes here again
        self._save(trainer, milestone, at_once=stopping)
        if stopping and self.reporter is not None:
            self.reporter.say(
                f"{_REASONS[trainer.stopped]}: stopped at step {trainer.step} and saved; the same command "
                "continues from there"
            )

    def _save(self, trainer: Trainer, milestone: bool, at_once: bool = False) -> None:
        """Save, in the background if training goes on without the checkpoint."""
        started, ranks = time.monotonic(), trainer.ranks
        self.saver.begin(trainer.step)
        state, tensors = trainer.checkpoint()
        write_shards = None
        if tensors:
            from millrace.training.parallel.checkpoints import save

            write_shards = partial(save, tensors, ranks=ranks)
        if self.reporter is None:
            if write_shards:
                with output_errors(self.store.root):
                    write_shards(None)
            self.deadline.has_saved = True
            return
        state |= {"identity": self.store.run_hash, "recipe": self.recipe}
        position = trainer.position

        def commit(state: Mapping[str, Any]) -> None:
            self.store.commit(state, position, milestone, write_shards)
            self.deadline.record_save(time.monotonic() - started)

        if milestone or at_once or tensors:  # shards are written by all ranks together
            self.saver.wait()
            commit(state)
        else:
            self.saver.start(partial(commit, snapshot(state)))


def _benign_changes(sessions: list[dict[str, Any]]) -> list[str]:
    """Messages about changes since the last session that affect rounding, but not the run hash."""
    if len(sessions) < 2:
        return []
    before, now = (
        {"micro_batch": one.get("execution", {}).get("micro_batch"), "kernels": "PyTorch's", **one}
        for one in sessions[-2:]
    )
    keys = ("ranks", "parallel", "micro_batch", "threads", "device", "products", "kernels", "torch")
    return [
        f"resumed with another {key} ({before[key]} -> {now[key]}): results agree to rounding, not "
        "bit by bit"
        for key in keys
        if before.get(key, now[key]) != now[key]
    ]


def _receipt(
    request: Request,
    store: CheckpointStore,
    checkpoint: Checkpoint,
    trainer: Trainer,
    described: Mapping[str, Any],
) -> dict[str, Any]:
    dataset: Any = trainer.dataset
    started_from = _started_from(trainer, described)
    state, output = load_state(checkpoint.path, full=False), Path(request.checkpoint)
    return {
        "schema": "millrace.receipt/1",
        "experiment": request.experiment,
        "layout": request.layout,
        "seed": request.seed,
        "epoch": checkpoint.manifest.epoch,
        "step": checkpoint.manifest.step,
        "stopped_early": checkpoint.manifest.epoch < request.target_epoch,
        "best_epoch": best_epoch(state["history"]),
        "profiles": traces(store.root),
        "identity": store.run_hash,
        "checkpoint": {
            "file": output.name,
            "size": output.stat().st_size,
            "crc32": checksum(output) if checkpoint.manifest.shards else checkpoint.manifest.crc32,
        },
        "store": str(store.root),
        "definition": request.definition,
        "normalisation": dataset.normalisation.to_json(),
        "dataset": dataset.preparation,
        "history": state["history"],
        "sessions": state["sessions"],
        **({"roll_backs": state["roll_backs"]} if "roll_backs" in state else {}),
        **({"started_from": started_from} if started_from else {}),
        "provenance": provenance(),
    }


def _started_from(trainer: Trainer, described: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was taken of published weights; None: there were none."""
    init_from = trainer.config.init_from
    if trainer.adopted is None or init_from is None or init_from.published is None:
        return None
    sha256 = described["train"]["init_from"]["published"]
    return published.record(init_from.published, sha256, trainer.adopted)


@contextlib.contextmanager
def _raised_everywhere(ranks: Ranks) -> Iterator[None]:
    """Raise an error of the first rank on all ranks: the others would wait for it for ever."""
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    shared = ranks.from_first((str(failure), failure.exit_code) if failure else None)
    if shared is not None:
        message, code = shared
        raised = UserError(message)
        raised.exit_code = code
        raise raised
