"""Order of the work in a pipeline, and how long its processes are idle."""

from collections.abc import Sequence

from millrace.training.parallel.config import ParallelConfig

Work = tuple[str, int, int]
"""Forward or backward pass (F or B), number of the stage among those of the process, micro-batch."""

# Time of a backward pass in units of a forward pass: there are gradients of inputs and of weights.
_BACKWARD = 2.0


def order(config: ParallelConfig, rank: int, chunks: int, parts: int) -> list[Work]:
    """Work of the process at position ``rank`` of its pipeline, in the order of torch's schedules.

    There is one exception that takes the same time: with several stages in a process, torch's gpipe goes
    back through the micro-batches in reverse. ``config`` is resolved for the model and the layout; the
    process has ``chunks`` stages, over all steps of a rollout, and there are ``parts`` micro-batches.
    """
    ranks, total, turn = config.pipeline, chunks * parts, parts
    if ranks == 1:
        ahead = 1
    elif config.schedule == "gpipe":
        ahead = total
    elif chunks == 1:
        ahead = min(parts, ranks - rank)
    else:
        turn = parts // max(1, parts // ranks)
        ahead = min((chunks - 1) * turn + 2 * (ranks - 1 - rank) + 1, total)
    # The stages of a process take turns every ``turn`` micro-batches.
    forward = [
        (chunk, part)
        for begin in range(0, parts, turn)
        for chunk in range(chunks)
        for part in range(begin, min(begin + turn, parts))
    ]
    backward = [(chunks - 1 - chunk, part) for chunk, part in forward]
    # Some forward passes ahead; then each backward pass makes room for another one.
    work: list[Work] = [("F", *one) for one in forward[:ahead]]
    for index, one in enumerate(backward):
        work.append(("B", *one))
        work.extend(("F", *next_one) for next_one in forward[ahead + index : ahead + index + 1])
    return work


def bubbles(config: ParallelConfig, costs: Sequence[float]) -> list[float]:
    """Pipeline bubble of each process: the part of a step in which it is idle, between 0 and 1.

    With stages of unequal cost it is larger than `ParallelConfig.bubble`, because the slowest stage sets
    the pace of all. ``costs`` are the times of a forward pass through each stage of the pipeline, over all
    steps of a rollout, in any unit.
    """
    ranks, parts, last = config.pipeline, config.micro_batches or 1, len(costs) - 1
    if ranks == 1:
        return [0.0]
    left = [order(config, rank, len(costs) // ranks, parts) for rank in range(ranks)]
    clocks, busy = [0.0] * ranks, [0.0] * ranks
    ends: dict[Work, float] = {}

    def needed(kind: str, stage: int, part: int) -> Work | None:
        if kind == "F":
            return ("F", stage - 1, part) if stage else None
        return ("B", stage + 1, part) if stage < last else ("F", stage, part)

    while any(left):
        before = len(ends)
        for rank, work in enumerate(left):
            while work:
                kind, chunk, part = work[0]
                stage = chunk * ranks + rank
                first = needed(kind, stage, part)
                if first is not None and first not in ends:
                    break
                cost = costs[stage] * (1.0 if kind == "F" else _BACKWARD)
                begin = max(clocks[rank], ends[first] if first else 0.0)
                clocks[rank] = ends[kind, stage, part] = begin + cost
                busy[rank] += cost
                work.pop(0)
        assert len(ends) > before, "the schedule waits for itself"
    return [1 - done / max(clocks) for done in busy]
