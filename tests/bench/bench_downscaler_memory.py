"""Memory of a training step of the downscaler on grids of R2B04, R2B05 and R2B06, whole and in pieces.

Counted are the bytes of all tensors that are alive at once, from when they are made until they are freed:
samples, matrices, activations, gradients and moments of the optimiser, as a GPU would hold them. Beside it
stands what planning expects of the same training (`millrace.training.parallel.footprint`).
"""

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import Row, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from millrace.data.split import SplitConfig
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.training.distributed import Ranks
from millrace.training.parallel.workload import needed_bytes
from millrace.training.segment import build_trainer

MB = 2**20
PIECE = 64
LEVELS = 2
"""Blocks of 16 cells: around a piece of R2B04 is not yet the whole globe."""
ALONE = Ranks(0, 1, torch.device("cpu"))


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active and not yet freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def measure(level: int, _: int) -> Iterator[Row]:
    """Whole grids, and pieces of 64 blocks."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        blocks = make_blocks(Path(directory), level)
        for piece in (None, PIECE):
            yield step(blocks, level, piece)


def make_blocks(directory: Path, level: int) -> Path:
    """Six times of a climate, three of them for training."""
    write_climate(ClimateConfig(level=level, steps=6, steps_per_file=6), directory / "raw")
    blocks = directory / "blocks.h5"
    split = SplitConfig(train=0.6, validation=0.2, gap=0)
    extract_blocks(directory / "raw", blocks, BlockConfig(levels=LEVELS), split)
    return blocks


def step(blocks: Path, level: int, piece: int | None) -> Row:
    experiment: Mapping[str, Any] = {
        "data": {} if piece is None else {"piece_blocks": piece},
        "model": {"name": "downscaler", "channels": [24, 48, 96]},
        "train": {"global_batch": 1},
    }
    raw: dict[str, Any] = {"source": "demo", "format": "icon", "variables": ["tas"]}
    raw |= {"demo": {"level": level}, "blocks": {"levels": LEVELS}}
    planned = needed_bytes(experiment, raw, "n1_gpu1")
    trainer, _ = build_trainer(experiment, {"blocks": str(blocks)}, 0, ALONE)
    with Alive() as alive:
        for batch in trainer.batches(0):
            trainer.train_step(batch)
            trainer.step += 1
            if trainer.step == 2:
                break
    geometry = trainer.dataset.geometry()
    whole = "whole" if piece is None else f"{geometry.n_own} of its {geometry.n_blocks} blocks"
    what = f"memory of a downscaler step, R2B{level:02d}, {whole}"
    return Row(what, "MB", [alive.peak / MB], "planned", [planned / MB])


if __name__ == "__main__":
    run({f"downscaler_memory-{level}": partial(measure, level) for level in (4, 5, 6)}, __doc__)
