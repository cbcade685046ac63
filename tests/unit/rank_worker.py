"""Trains some steps and tells what each did, on one rank or several (`train_on_ranks`)."""

from millrace.checking.case import advance
from millrace.training.batches import rank_shares
from millrace.training.config import ExecutionConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.segment import build_trainer


def train(job, ranks) -> dict:
    """Losses, gradient norms and shares of each batch; after ``steps`` steps the validation loss and the
    keys of the forecasts that a checkpoint keeps.

    The norms are needed: clipping and Adam hide gradients that are wrong by a factor.
    """
    execution = ExecutionConfig.parse(job.get("execution", {}), "train")
    parallel = ParallelConfig.parse(job.get("parallel", {}), "parallel")
    trainer, _ = build_trainer(job["definition"], job["files"], 0, ranks, execution, parallel)
    losses, norms, batches = [], [], []
    for batch, loss in advance(trainer, job["steps"]):
        losses.append(ranks.sum(float(loss))[0])
        norms.append(float(trainer.gradient_norm))
        mine = rank_shares(batch, ranks.rank, ranks.world_size)
        batches.append(ranks.gather([[s.group, s.index.tolist(), s.weight.tolist()] for s in mine]))
    replay = trainer.checkpoint()[0].get("replay", [])
    return {
        "losses": losses,
        "norms": norms,
        "batches": batches,
        "replayed": [key for state in replay for key in state["key"]],
        "validation": trainer.validation_loss(),
    }
