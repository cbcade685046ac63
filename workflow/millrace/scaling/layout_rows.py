"""The results of one layout, measured or predicted."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from millrace.layout import Layout
from millrace.scaling.communication import crossover_batch
from millrace.scaling.factors import Factors, Measurement, breakdown, compare, diagnose
from millrace.scaling.prediction import Prediction, StepModel
from millrace.scaling.quantity import MEASURED, MODELLED, Quantity, least_certain
from millrace.scaling.results import Claim, LayoutResult, epoch_cost
from millrace.scaling.settings import AnalysisSettings
from millrace.scaling.statistics import interval


@dataclass(frozen=True)
class Context:
    """What the layouts of a study have in common."""

    mode: str
    base: Measurement
    model: StepModel
    settings: AnalysisSettings


def measured_layout(measurement: Measurement, context: Context) -> LayoutResult:
    """Return the results of a layout that was run."""
    runs, labels = measurement.runs, measurement.runs[0].labels
    factors = compare(measurement, context.base, labels.times)
    seconds = float(measurement.levels[0])
    ends = interval(seconds, measurement.draws[:, 0], measurement.degrees)
    count, steps = measurement.repeats, measurement.steps
    basis = f"{count} runs of {steps} steps each" if count > 1 else f"1 run of {steps} steps"
    if labels.times != MEASURED:
        basis = f"its records say {labels.times}"
    waits = [run.queue_seconds for run in runs if run.queue_seconds is not None]
    memory = [max(run.peak_memory_bytes) for run in runs if run.peak_memory_bytes]
    energy = [
        run.energy_joules / (run.global_batch * len(run.times.total[0]))
        for run in runs
        if run.energy_joules is not None
    ]
    return _results(
        Layout.parse(measurement.layout),
        measurement.rank_batch,
        Quantity(seconds, "s", labels.times, *ends),
        factors,
        breakdown(measurement),
        context,
        basis,
        waited=Quantity(float(np.median(waits)) / 3600, "h", MEASURED) if waits else None,
        repeats=count,
        steps=steps,
        run_seconds=tuple(run.median_step for run in runs),
        diagnosis=diagnose(measurement, factors),
        memory=Quantity(float(max(memory)), "B", labels.peak_memory) if memory else None,
        energy=Quantity(float(np.median(energy)), "J/sample", labels.energy) if energy else None,
        claim=_claim(measurement, factors.efficiency, context.settings),
        loss_deviation=_loss_deviation(measurement, context),
    )


def predicted_layout(prediction: Prediction, context: Context) -> LayoutResult:
    """Return the results of a layout that was not run."""
    # Intervals of its factors have no more degrees of freedom than the base.
    levels = replace(prediction, degrees=context.base.degrees)
    factors = compare(levels, context.base, prediction.step.label)
    return _results(
        prediction.layout,
        prediction.rank_batch,
        prediction.step,
        factors,
        prediction.parts,
        context,
        prediction.basis,
    )


def _results(
    layout: Layout,
    rank_batch: float,
    step: Quantity,
    factors: Factors,
    parts: dict[str, float],
    context: Context,
    basis: str,
    waited: Quantity | None = None,
    **of_measured: Any,
) -> LayoutResult:
    """Complete the results of a layout; ``of_measured`` are fields of measured layouts only."""
    settings, run = context.settings, context.base.runs[0]
    batch = rank_batch * layout.world_size
    throughput = step.over(batch, "samples/s")
    price = settings.price(run.device.name, run.device.kind)
    epoch = epoch_cost(step, layout, run.samples_per_epoch / batch, price, settings.currency)
    epochs = settings.epochs.get(run.experiment) if context.mode == "strong" else None
    mfu, roofline = _roofline(throughput, layout, context)
    all_reduce, crossover = _all_reduce(layout, least_certain(MODELLED, step.label), context.model)
    if (hours := settings.queue_hours.get(str(layout))) is not None:
        waited = Quantity(float(hours), "h", MODELLED)
    return LayoutResult(
        layout=str(layout),
        label=step.label,
        nodes=layout.nodes,
        ranks=layout.world_size,
        rank_batch=rank_batch,
        step=step,
        throughput=throughput,
        speed_up=factors.efficiency.times(layout.world_size / context.base.ranks, "1"),
        factors=factors,
        parts={name: Quantity(seconds, "s", step.label) for name, seconds in parts.items()},
        basis=basis,
        epoch=epoch,
        target=None if epochs is None else epoch.times(epochs),
        all_reduce=all_reduce,
        crossover=crossover,
        mfu=mfu,
        roofline=roofline,
        queue_hours=waited,
        **of_measured,
    )


def _claim(
    measurement: Measurement, efficiency: Quantity, settings: AnalysisSettings
) -> Claim | None:
    """Claims are about GPUs: neither measurements on CPUs nor predictions test them."""
    band, device = settings.claims.get(measurement.layout), measurement.runs[0].device
    if band is None or device.kind != "gpu" or efficiency.label != MEASURED:
        return None
    low, high = float(band[0]), float(band[1])
    assert efficiency.low is not None
    assert efficiency.high is not None
    verdict = "open"
    if low <= efficiency.low and efficiency.high <= high:
        verdict = "confirmed"
    elif efficiency.high < low or efficiency.low > high:
        verdict = "contradicted"
    return Claim(low, high, verdict)


def _loss_deviation(measurement: Measurement, context: Context) -> Quantity | None:
    """Largest relative difference from the base at the same step, over repeats of the same number.

    It is compared in strong scaling only: with different global batches, layouts train different problems.
    """
    if context.mode != "strong":
        return None
    base = {run.repeat: np.array(run.losses) for run in context.base.runs if run.losses}
    deviations, labels = [], [context.base.runs[0].labels.losses]
    for run in measurement.runs:
        if run.losses and run.repeat in base:
            steps = min(len(base[run.repeat]), len(run.losses))
            expected = base[run.repeat][:steps]
            difference = np.abs(np.array(run.losses[:steps]) - expected)
            deviations.append(float((difference / np.abs(expected).clip(min=1e-12)).max()))
            labels.append(run.labels.losses)
    return Quantity(max(deviations), "1", least_certain(*labels)) if deviations else None


def _all_reduce(
    layout: Layout, label: str, model: StepModel
) -> tuple[Quantity | None, Quantity | None]:
    """Time of the all-reduce, and the global batch from which the backward pass can hide it."""
    seconds = model.all_reduce(layout)
    if not seconds:
        return None, None
    all_reduce = Quantity(seconds, "s", label)
    batch = crossover_batch(model.backward_law(), seconds)
    if batch is None:
        return all_reduce, None
    return all_reduce, Quantity(batch * layout.world_size, "samples", label)


def _roofline(
    throughput: Quantity, layout: Layout, context: Context
) -> tuple[Quantity | None, Quantity | None]:
    """Share of the peak, and of the roofline (Williams, Waterman & Patterson 2009, CACM 52(4))."""
    run = context.base.runs[0]
    if run.flops_per_sample is None or run.device.peak_flops is None:
        return None, None
    rate = replace(throughput, label=least_certain(throughput.label, run.labels.flops))
    mfu = rate.times(run.flops_per_sample / (layout.world_size * run.device.peak_flops), "1")
    if run.traffic_per_sample is None or run.device.peak_bytes_per_s is None:
        return mfu, None
    intensity = run.flops_per_sample / run.traffic_per_sample
    ceiling = min(1.0, intensity * run.device.peak_bytes_per_s / run.device.peak_flops)
    return mfu, mfu.times(1 / ceiling, "1")
