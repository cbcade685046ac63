"""Runs jobs in several modes of parallelism in one process group, and returns their results.

A job is ``{"parallel": section, "do": "gradients" | "train" | "continue", ...}``, see `perform`.
"""

import gc
import itertools
import warnings
from collections import Counter
from concurrent.futures import Executor, Future
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from millrace.training.config import ExecutionConfig
from millrace.training.parallel.checkpoints import save
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.shards import full, local
from millrace.training.parallel.state import load_weights, local_weights
from millrace.training.segment import build_trainer
from millrace.training.store import load_state


def build(job, ranks):
    parallel = ParallelConfig.parse(job.get("parallel", {}), "parallel")
    execution = ExecutionConfig.parse(job.get("execution", {}), "train")
    return build_trainer(job["definition"], job["files"], 0, ranks, execution, parallel)[0]


def perform(job, ranks) -> dict:
    """Do a job: its result, on the first rank; tensors go to ``job["output"]``."""
    trainer = build(job, ranks)
    if job["do"] == "gradients":
        return gradients(trainer, job, ranks)
    if job["do"] == "memory":
        return memory(trainer, ranks)
    if job["do"] == "continue":
        path = Path(job["state"]) / "state.pt"
        trainer.load(load_state(path, full=trainer.divided is None))
    losses = steps(trainer, job["steps"], ranks)
    if "output" in job:
        write(trainer, Path(job["output"]), ranks)
    kept = types(trainer.checkpoint(), trainer.module.state_dict())
    return {
        "losses": losses,
        "validation": trainer.validation_loss(),
        "kept": kept,
        "groups": ranks.gather(trainer.dataset.group_of_ranks),
    }


def types(*values) -> list[str]:
    """Types of the real numbers in structures."""
    tensors = [x for x in tree_leaves(values) if torch.is_tensor(x) and x.is_floating_point()]
    return sorted({str(x.dtype) for x in tensors})


class Exchanged(TorchDispatchMode):
    """Counts the bytes of shards that this process sends, by what is done and in which type.

    Each process sends its part to each of the others, in effect.
    """

    # Name of the operation -> the argument that is one process's part.
    PARTS = {"_allgather_base_": 1, "_reduce_scatter_base_": 0}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = func.name().removeprefix("c10d::").partition(".")[0]
        if operation in self.PARTS:
            part, output, given = args[self.PARTS[operation]], args[0], args[1]
            others = max(output.numel(), given.numel()) // part.numel() - 1
            key = f"{operation.strip('_')} {part.dtype}".replace("torch.", "")
            self.sent[key] += others * part.numel() * part.element_size()
        return func(*args, **(kwargs or {}))


def write(trainer, directory, ranks) -> None:
    """Save the state as a store does, without its commit record."""
    state, tensors = trainer.checkpoint()
    if ranks.is_first:
        directory.mkdir()
        torch.save(state, directory / "state.pt")
    if tensors:
        save(tensors, directory / "shards", ranks)


def gathered(values, trainer, ranks) -> dict:
    """Whole tensors that are cut like the parameters, on the first rank."""
    if trainer.divided is None:
        return dict(values)
    portable = {n: full(trainer.divided.portable(v, n)).clone() for n, v in values.items()}
    return {n: v for part in ranks.gather(portable) for n, v in part.items()}


def gradients(trainer, job, ranks) -> dict:
    """Gradients of one batch at given weights, and the norm that clipping uses."""
    load_weights(trainer.module, load_state(Path(job["weights"])), trainer.divided)
    trainer.module.train()
    if trainer.divided is not None and trainer.divided.is_pipeline:
        # The first time, shapes are found out by another pass.
        trainer.passes.backward(next(trainer.batches(0)), trainer.position)
        trainer.optimizer.zero_grad()
    with Exchanged() as exchanged:
        loss = trainer.passes.backward(next(trainer.batches(0)), trainer.position)
    named = {n: p.grad for n, p in trainer.module.named_parameters() if p.grad is not None}
    count = sum(local(p).numel() for p in trainer.module.parameters())
    every = gathered(named, trainer, ranks)
    if ranks.is_first:
        torch.save({n: g.clone() for n, g in every.items()}, job["output"])
    norm = float(trainer.clipped_norm())
    back = gathered(local_weights(trainer.module, trainer.divided), trainer, ranks)
    given = load_state(Path(job["weights"]))
    same = not back or all(torch.equal(back[n], given[n]) for n in back)
    return {
        "loss": ranks.sum(float(loss))[0],
        "norm": norm,
        "held": count,
        "weights_survive": same,
        "sent": ranks.gather(exchanged.sent),
        "validation": trainer.validation_loss(),
    }


class AtOnce(Executor):
    """Does in this thread what it is given."""

    def __init__(self, *_):
        pass

    def submit(self, do, *arguments):
        done = Future()
        done.set_result(do(*arguments))
        return done


def memory(trainer, ranks) -> dict:
    """Bytes that each rank holds in the second step when it holds most, as the allocator saw it."""
    steps(trainer, 1, ranks)
    state = [v for values in trainer.optimizer.state.values() for v in values.values()]
    held = [*trainer.module.parameters(), *(v for v in state if torch.is_tensor(v))]
    before = sum(local(x).numel() * x.element_size() for x in held)
    gc.collect()
    # The profiler sees the memory of this thread alone: the next samples are gathered in it.
    with (
        patch("millrace.training.ahead.ThreadPoolExecutor", AtOnce),
        torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        steps(trainer, 1, ranks)
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak = max(itertools.accumulate(size for _, size in changes))
    return {"peaks": ranks.gather(before + peak)}


def steps(trainer, count, ranks):
    losses = []
    while len(losses) < count:
        position = trainer.position
        for batch in trainer.batches(position.epoch, start=position.batch):
            trainer.module.train()
            loss = trainer.train_step(batch)
            trainer.step += 1
            losses.append(ranks.sum(float(loss))[0])
            if len(losses) == count:
                break
    return losses


def perform_all(jobs, ranks) -> dict:
    """{name: result of the job}."""
    warnings.filterwarnings("error", message="FSDP2-wrapped module")
    results = {}
    for name, job in jobs.items():
        try:
            results[name] = perform(job, ranks)
        except Exception as error:
            error.add_note(f"in job {name}")
            raise
        if dist.is_initialized():
            dist.barrier()
    return results
