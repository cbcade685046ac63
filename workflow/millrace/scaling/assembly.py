"""The row of one layout, measured or predicted."""

from dataclasses import dataclass

import numpy as np

from millrace.layout import Layout
from millrace.scaling.communication import crossover_batch
from millrace.scaling.cost import epoch_cost
from millrace.scaling.factors import (
    Diagnosis,
    Factors,
    Measurement,
    breakdown,
    compare,
    diagnose,
)
from millrace.scaling.prediction import Prediction, StepModel
from millrace.scaling.quantity import MEASURED, MODELLED, Quantity, weakest
from millrace.scaling.results import Claim, LayoutResult
from millrace.scaling.settings import Settings
from millrace.scaling.statistics import interval


@dataclass(frozen=True)
class Context:
    """What the layouts of a study have in common."""

    mode: str
    base: Measurement
    model: StepModel
    settings: Settings


def measured_layout(one: Measurement, context: Context) -> LayoutResult:
    """Row of a layout that was run."""
    runs, label = one.runs, one.runs[0].labels.times
    factors = compare(one, context.base, label)
    step = _positive(float(one.levels[0]), one.draws[:, 0], one.degrees, "s", label)
    if label == MEASURED:
        basis = (
            f"{one.repeats} runs of {one.steps} steps each"
            if one.repeats > 1
            else f"1 run of {one.steps} steps"
        )
    else:
        basis = f"its records say {label}"
    waits = [run.queue_seconds for run in runs if run.queue_seconds is not None]
    memory = [max(run.peak_memory_bytes) for run in runs if run.peak_memory_bytes]
    energy = [
        run.energy_joules / (run.global_batch * len(run.times.total[0]))
        for run in runs
        if run.energy_joules is not None
    ]
    return _row(
        Layout.parse(one.layout),
        one.rank_batch,
        step,
        factors,
        {name: Quantity(seconds, "s", label) for name, seconds in breakdown(one).items()},
        context,
        basis,
        repeats=one.repeats,
        steps=one.steps,
        run_seconds=tuple(float(np.median(run.times.array("total").max(axis=0))) for run in runs),
        diagnosis=diagnose(one, factors),
        memory=Quantity(float(max(memory)), "B", runs[0].labels.peak_memory) if memory else None,
        energy=Quantity(float(np.median(energy)), "J/sample", runs[0].labels.energy)
        if energy
        else None,
        waited=float(np.median(waits)) / 3600 if waits else None,
        claim=_claim(one, factors, context.settings),
        loss_deviation=_loss_deviation(one, context),
    )


def predicted_layout(made: Prediction, rank_batch: float, context: Context) -> LayoutResult:
    """Row of a layout that was computed."""
    base, step = context.base, made.step
    stand_in = Measurement(
        str(made.layout), made.layout.world_size, made.layout.nodes, rank_batch, made.levels,
        made.draws, max(1, base.repeats), 0, {}, 0, 0.0, base.runs,
    )  # fmt: skip
    return _row(
        made.layout,
        rank_batch,
        step,
        compare(stand_in, base, step.label),
        {name: Quantity(seconds, "s", step.label) for name, seconds in made.parts.items()},
        context,
        made.basis,
    )


def _row(
    layout: Layout,
    rank_batch: float,
    step: Quantity,
    factors: Factors,
    parts: dict[str, Quantity],
    context: Context,
    basis: str,
    *,
    repeats: int = 0,
    steps: int = 0,
    run_seconds: tuple[float, ...] = (),
    diagnosis: Diagnosis | None = None,
    memory: Quantity | None = None,
    energy: Quantity | None = None,
    waited: float | None = None,
    claim: Claim | None = None,
    loss_deviation: Quantity | None = None,
) -> LayoutResult:
    settings, run = context.settings, context.base.runs[0]
    batch = rank_batch * layout.world_size
    throughput = step.over(batch, "samples/s")
    epoch = epoch_cost(
        step,
        layout,
        run.samples_per_epoch / batch,
        settings.price(run.device.name, run.device.kind),
        settings.currency,
    )
    epochs = settings.epochs.get(run.experiment) if context.mode == "strong" else None
    mfu, roofline = _roofline(throughput, layout, context)
    return LayoutResult(
        layout=str(layout),
        label=step.label,
        nodes=layout.nodes,
        ranks=layout.world_size,
        rank_batch=rank_batch,
        repeats=repeats,
        steps=steps,
        step=step,
        run_seconds=run_seconds,
        throughput=throughput,
        speed_up=factors.efficiency.times(layout.world_size / context.base.ranks, "1"),
        factors=factors,
        parts=parts,
        diagnosis=diagnosis,
        basis=basis,
        epoch=epoch,
        target=None if epochs is None else epoch.times(epochs),
        all_reduce=_all_reduce(layout, step.label, context),
        crossover=_crossover(layout, step.label, context),
        mfu=mfu,
        roofline=roofline,
        memory=memory,
        energy=energy,
        queue_hours=_queue(layout, waited, settings),
        claim=claim,
        loss_deviation=loss_deviation,
    )


def _positive(value: float, draws: np.ndarray, degrees: int, unit: str, label: str) -> Quantity:
    return Quantity(value, unit, label, *interval(value, draws, degrees))


def _claim(one: Measurement, factors: Factors, settings: Settings) -> Claim | None:
    """Claims are about GPUs: a measurement on CPUs or a prediction says nothing on them."""
    band, efficiency = settings.claims.get(one.layout), factors.efficiency
    if band is None or one.runs[0].device.kind != "gpu" or efficiency.label != MEASURED:
        return None
    low, high = float(band[0]), float(band[1])
    assert efficiency.low is not None
    assert efficiency.high is not None
    if low <= efficiency.low and efficiency.high <= high:
        verdict = "confirmed"
    elif efficiency.high < low or efficiency.low > high:
        verdict = "contradicted"
    else:
        verdict = "open"
    return Claim(low, high, verdict)


def _loss_deviation(one: Measurement, context: Context) -> Quantity | None:
    """Largest relative difference to the base at the same step, over repeats of the same number.

    Only at equal global batch, for only then the layouts train the same problem.
    """
    if context.mode != "strong":
        return None
    base = {run.repeat: np.array(run.losses) for run in context.base.runs if run.losses}
    worst, labels = [], [context.base.runs[0].labels.losses]
    for run in one.runs:
        theirs = base.get(run.repeat)
        if run.losses and theirs is not None:
            steps = min(len(theirs), len(run.losses))
            difference = np.abs(np.array(run.losses[:steps]) - theirs[:steps])
            worst.append(float((difference / np.abs(theirs[:steps]).clip(min=1e-12)).max()))
            labels.append(run.labels.losses)
    return Quantity(max(worst), "1", weakest(labels)) if worst else None


def _all_reduce(layout: Layout, label: str, context: Context) -> Quantity | None:
    seconds = context.model.all_reduce(layout)
    return None if not seconds else Quantity(seconds, "s", weakest([MODELLED, label]))


def _crossover(layout: Layout, label: str, context: Context) -> Quantity | None:
    """Global batch above which the all-reduce can hide behind the backward pass."""
    seconds = context.model.all_reduce(layout)
    if not seconds:
        return None
    batch = crossover_batch(context.model.backward_law(), seconds)
    return (
        None
        if batch is None
        else Quantity(batch * layout.world_size, "samples", weakest([MODELLED, label]))
    )


def _roofline(
    throughput: Quantity, layout: Layout, context: Context
) -> tuple[Quantity | None, Quantity | None]:
    """Share of the peak, and of the roofline (Williams, Waterman & Patterson 2009, CACM 52(4))."""
    run = context.base.runs[0]
    if run.flops_per_sample is None or run.device.peak_flops is None:
        return None, None
    label = weakest([throughput.label, run.labels.flops])
    rate = Quantity(throughput.value, "samples/s", label, throughput.low, throughput.high)
    share = run.flops_per_sample / (layout.world_size * run.device.peak_flops)
    mfu = rate.times(share, "1")
    if run.traffic_per_sample is None or run.device.peak_bytes_per_s is None:
        return mfu, None
    intensity = run.flops_per_sample / run.traffic_per_sample
    ceiling = min(1.0, intensity * run.device.peak_bytes_per_s / run.device.peak_flops)
    return mfu, mfu.times(1 / ceiling, "1")


def _queue(layout: Layout, waited: float | None, settings: Settings) -> Quantity | None:
    given = settings.queue_hours.get(str(layout))
    if given is not None:
        return Quantity(float(given), "h", MODELLED)
    return None if waited is None else Quantity(waited, "h", MEASURED)
