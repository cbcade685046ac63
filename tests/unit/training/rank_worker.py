"""Trains some steps under torchrun and writes what each step did; started by test_ranks.py."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from millrace.training.batches import rank_share
from millrace.training.distributed import process_group
from millrace.training.segment import build_trainer


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    with process_group() as ranks:
        trainer, _ = build_trainer(job["definition"], job["files"], 0, ranks)
        losses, batches = [], []
        epoch = 0
        while trainer.step < job["steps"]:
            for batch in trainer._plan.epoch(epoch):
                loss = trainer._train_step(batch)
                trainer.step += 1
                losses.append(ranks.sum(float(loss))[0])
                share = rank_share(batch, ranks.rank, ranks.world_size)
                shares = ranks.gather([share.group, share.index.tolist(), share.weight.tolist()])
                batches.append(shares)
            epoch += 1
        validation = trainer.validation_loss()
        if ranks.is_first:
            result = {"losses": losses, "batches": batches, "validation": validation}
            Path(sys.argv[2]).write_text(json.dumps(result))
        if dist.is_initialized():
            dist.barrier()


if __name__ == "__main__":
    main()
