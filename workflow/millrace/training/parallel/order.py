"""Order of the work in a pipeline, and how long its processes wait for each other."""

from collections.abc import Iterator, Sequence

from millrace.training.parallel.config import ParallelConfig

Work = tuple[str, int, int]
"""Forward or backward pass (F or B), number of the stage among those of the process, micro-batch."""

# Of the time of a forward pass: there are gradients of inputs and of weights.
_BACKWARD = 2.0


def order(config: ParallelConfig, rank: int, chunks: int, parts: int) -> list[Work]:
    """What the process at a position of its pipeline does, as torch's schedules do it.

    With one exception that takes as long: with several stages torch's gpipe goes back through the
    micro-batches in reverse.

    Parameters
    ----------
    config : ParallelConfig
        Resolved.
    rank : int
        Position in the pipeline.
    chunks : int
        Stages that the process has, over all steps of a rollout.
    parts : int
        Micro-batches.
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
    forward = list(_turns(chunks, parts, turn))
    backward = [(chunks - 1 - chunk, part) for chunk, part in forward]
    # Some forward passes ahead; then each backward pass makes room for another one.
    work: list[Work] = [("F", *one) for one in forward[:ahead]]
    for index, one in enumerate(backward):
        work.append(("B", *one))
        work.extend(("F", *next_one) for next_one in forward[ahead + index : ahead + index + 1])
    return work


def waiting(config: ParallelConfig, costs: Sequence[float], sending: float = 0.0) -> list[float]:
    """Share of the time of a step that each process of a pipeline waits.

    Stages of unequal cost wait longer than `ParallelConfig.bubble`: all go at the pace of the slowest.

    Parameters
    ----------
    config : ParallelConfig
        Resolved.
    costs : sequence of float
        Of the stages of the whole pipeline, over all steps of a rollout.
    sending : float
        What it costs to pass on what a micro-batch gives, in the same unit. A process waits for it after
        each pass.
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
                clocks[rank] = ends[kind, stage, part] = begin + cost + sending
                busy[rank] += cost
                work.pop(0)
        assert len(ends) > before, "the schedule waits for itself"
    return [1 - done / max(clocks) for done in busy]


def _turns(chunks: int, parts: int, size: int) -> Iterator[tuple[int, int]]:
    """Stages of a process take turns every ``size`` micro-batches."""
    for begin in range(0, parts, size):
        for chunk in range(chunks):
            for number in range(begin, min(begin + size, parts)):
                yield chunk, number
