"""Pieces of a grid: blocks that are computed together, and those around them that the network sees.

A network of finite reach gives on some blocks what it gives on the whole grid if it is told all blocks that
it depends on there. Which these are follows from its layers and from who is beside whom.

Shape suffixes: M blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from millrace.systems.downscaling.icon_source import Floats, Ints

CHILDREN = 4

Seen = Callable[[Ints, Sequence[Ints]], Ints]
"""(blocks, neighbours of all levels from the fine cells to the blocks) -> blocks that a network sees."""


def divided(centres_M3: Floats, most: int) -> list[Ints]:
    """Divide blocks into compact pieces of about the same size, at most ``most``; increasing numbers each.

    The blocks are halved along the axis in which they extend farthest, and so on: what comes out depends on
    the centres alone.
    """
    pieces: list[Ints] = []

    def divide(blocks_M: Ints, parts: int) -> None:
        if parts == 1:
            pieces.append(np.sort(blocks_M))
            return
        place = centres_M3[blocks_M]
        axis = int(np.argmax(np.ptp(place, axis=0)))
        order = np.argsort(place[:, axis], kind="stable")
        end = len(order) * (parts // 2) // parts
        divide(blocks_M[order[:end]], parts // 2)
        divide(blocks_M[order[end:]], parts - parts // 2)

    divide(np.arange(len(centres_M3)), -(-len(centres_M3) // most))
    return pieces


def seen_by_unet(blocks_M: Ints, neighbours: Sequence[Ints], depth: int) -> Ints:
    """Blocks on which the output of a `NestedUnet` on some blocks depends, increasing.

    ``depth`` are its layers of a level. It goes through the network from its end: each layer reaches the
    cells beside, on its level.
    """
    top = len(neighbours) - 1
    cells, given = _descendants(blocks_M, top), []
    for level in range(top):
        cells = _spread(cells, neighbours[level], depth)
        given.append(cells)
        cells = np.unique(cells // CHILDREN)
    cells = _spread(cells, neighbours[top], depth)
    for level in reversed(range(top)):
        cells = np.union1d(_descendants(cells, 1), given[level])
        cells = _spread(cells, neighbours[level], depth + (level == 0))
    return np.unique(cells // CHILDREN**top)


def seen_beside(blocks_M: Ints, neighbours: Sequence[Ints]) -> Ints:
    """Blocks, and those beside them, increasing."""
    return _spread(blocks_M, neighbours[-1], 1)


def see(dataset: Any, seen: Seen, takes_features: bool = True) -> None:
    """Tell a dataset, or several as one, which blocks around its pieces a network sees.

    ``takes_features``: see `BlockDataset.surround`.
    """
    for one in getattr(dataset, "datasets", [dataset]):
        one.surround(seen, takes_features)


def _descendants(cells: Ints, levels: int) -> Ints:
    size = CHILDREN**levels
    return (cells[:, None] * size + np.arange(size)).ravel()


def _spread(cells: Ints, neighbours_N3: Ints, steps: int) -> Ints:
    """Cells, and those that so many steps lead to."""
    edge = cells
    for _ in range(steps):
        beside = np.unique(neighbours_N3[edge])
        edge = np.setdiff1d(beside[beside >= 0], cells, assume_unique=True)
        cells = np.union1d(cells, edge)
    return cells
