"""Analysis of the runs of a scaling study."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from millrace.errors import DataError
from millrace.layout import Layout
from millrace.scaling.communication import LinkModel, assumed_link, bus_bandwidth, fit_link
from millrace.scaling.factors import Measurement, measure
from millrace.scaling.fits import LAWS, Fit, fit
from millrace.scaling.layout_rows import Context, measured_layout, predicted_layout
from millrace.scaling.prediction import Prediction, StepModel
from millrace.scaling.quantity import MEASURED, Quantity, Refusal, least_certain
from millrace.scaling.recommend import Candidate, Recommendation, pareto, recommend
from millrace.scaling.records import LINKS, MODES, ScalingRun
from millrace.scaling.results import (
    SCHEMA,
    Analysis,
    BandwidthPoint,
    LayoutResult,
    Study,
    by_ranks,
    wait_hours,
)
from millrace.scaling.settings import AnalysisSettings


def analyse(runs: Sequence[ScalingRun], settings: AnalysisSettings) -> Analysis:
    """Analyse all runs.

    Runs belong to one study if the experiment, the kind and name of the device, and the precision are the
    same: results on CPUs and on GPUs are never mixed. Raises `DataError` if there are no runs, a run occurs
    twice, or runs of one study do not train the same problem.
    """
    if not runs:
        raise DataError(
            "scaling: expected at least one run to analyse, got none: measure a layout first"
        )
    grouped: dict[tuple[bool, str, str, str], list[ScalingRun]] = defaultdict(list)
    for run in runs:
        # GPU before CPU, then in alphabetic order.
        key = (run.device.kind != "gpu", run.experiment, run.device.name, run.precision)
        grouped[key].append(run)
    studies = tuple(
        study for _, one in sorted(grouped.items()) for study in _studies(one, settings)
    )
    tested = {one.layout for study in studies for one in study.layouts if one.claim is not None}
    notes = tuple(
        f"The claim of {low:.0%} to {high:.0%} efficiency on {name} is not tested: it is about GPUs, and "
        "no GPU run of that layout was measured."
        for name, (low, high) in settings.claims.items()
        if name not in tested
    )
    return Analysis(SCHEMA, studies, (), notes, settings.model_dump())


def _studies(runs: Sequence[ScalingRun], settings: AnalysisSettings) -> list[Study]:
    """Studies of one experiment on one kind of device, one for each mode."""
    by_mode: dict[str, dict[str, list[ScalingRun]]] = {mode: {} for mode in MODES}
    for run in runs:
        by_mode[run.mode].setdefault(run.layout, []).append(run)
    for mode, layouts in by_mode.items():
        if layouts:
            _check(mode, layouts)
    measured = {
        mode: [measure(group, settings.draws, settings.seed) for group in layouts.values()]
        for mode, layouts in by_mode.items()
    }
    timings = [timing for run in runs for timing in run.bandwidth]
    links: dict[str, LinkModel | Refusal] = {}
    for link in LINKS:
        links[link] = fit_link(timings, link)
        if isinstance(links[link], Refusal) and link in settings.links:
            links[link] = assumed_link(link, **dict(settings.links[link]))
    together = [one for group in measured.values() for one in group]
    model = StepModel(together, links, runs[0].gradient_bytes, settings.seed)
    return [_study(mode, group, model, settings) for mode, group in measured.items() if group]


def _check(mode: str, layouts: dict[str, list[ScalingRun]]) -> None:
    runs = [run for group in layouts.values() for run in group]
    where = f"scaling: {runs[0].experiment} ({mode})"
    for name, group in layouts.items():
        if len({run.repeat for run in group}) < len(group):
            raise DataError(
                f"{where}: {name}: two runs have the same number of repeat: keep one of them"
            )
        if len({run.labels.times for run in group}) > 1:
            raise DataError(
                f"{where}: {name}: runs with different labels of times: keep those of one label"
            )
    equal: dict[str, set[float]] = {
        "number of samples per epoch": {run.samples_per_epoch for run in runs},
        "size of the gradients": {run.gradient_bytes for run in runs},
    }
    if mode == "strong":
        equal["global batch"] = {run.global_batch for run in runs}
    else:
        equal["batch of a rank"] = {r.global_batch / r.parsed_layout.world_size for r in runs}
    for name, values in equal.items():
        if len(values) > 1:
            raise DataError(
                f"{where}: expected the same {name} in all runs, got {sorted(values)}: measure those "
                "that differ again"
            )


def _study(
    mode: str, group: Sequence[Measurement], model: StepModel, settings: AnalysisSettings
) -> Study:
    group = sorted(group, key=lambda one: (one.ranks, one.nodes))
    base, run = group[0], group[0].runs[0]
    context = Context(mode, base, model, settings)
    refusals = [link for link in model.links.values() if isinstance(link, Refusal)]
    results = [measured_layout(one, context) for one in group]
    for name in dict.fromkeys(settings.layouts):
        if name in {one.layout for one in group}:
            continue
        layout = Layout.parse(name)
        batch = base.global_batch / layout.world_size if mode == "strong" else base.rank_batch
        predicted = model.predict(layout, batch)
        if isinstance(predicted, Prediction):
            results.append(predicted_layout(predicted, context))
        else:
            refusals.append(predicted)
    results.sort(key=lambda one: (one.ranks, one.nodes))
    fits = _fits(mode, group)
    refusals += [one for one in fits if isinstance(one, Refusal)]
    recommendation, front = _recommendation(results, context, refusals)
    runs = [run for one in group for run in one.runs]
    name = f"{run.device.kind}-{run.experiment}-{mode}-{run.device.name}"
    precision = "" if run.precision == "float32" else f"-{run.precision}"
    return Study(
        key=re.sub(r"[^A-Za-z0-9]+", "-", name) + precision,
        experiment=run.experiment,
        mode=mode,
        device_kind=run.device.kind,
        device_name=run.device.name,
        backend=", ".join(sorted({run.backend for run in runs} - {"none"})) or "none",
        precision=run.precision,
        global_batch=run.global_batch if mode == "strong" else None,
        rank_batch=base.rank_batch if mode == "weak" else None,
        base=base.layout,
        layouts=tuple(results),
        fits=tuple(one for one in fits if isinstance(one, Fit)),
        links=tuple(link for link in model.links.values() if isinstance(link, LinkModel)),
        bandwidth=tuple(_bandwidth(group)),
        model_deviation=model.deviation(),
        refusals=tuple(refusals),
        notes=tuple(_notes(group, settings)),
        losses_agree=_losses_agree(results, base.layout, settings.loss_tolerance),
        recommendation=recommendation,
        pareto=tuple(front),
        commits=tuple(sorted({run.commit for run in runs if run.commit})),
        hosts=tuple(
            sorted({f"{host.processor}, {host.cores} cores" for run in runs for host in run.hosts})
        ),
        software=run.software,
    )


def _fits(mode: str, group: Sequence[Measurement]) -> list[Fit | Refusal]:
    """Fits to one layout for each number of ranks, that on the fewest nodes, so that links are similar."""
    measured = [one for one in group if one.runs[0].labels.times == MEASURED]
    runs = [(ranks, run) for ranks, one in by_ranks(measured).items() for run in one.runs]
    ranks = [ranks for ranks, _ in runs]
    throughput = [run.global_batch / run.median_step for _, run in runs]
    return [fit(law, ranks, throughput) for law in LAWS[mode]]


def _bandwidth(group: Sequence[Measurement]) -> list[BandwidthPoint]:
    measured: dict[tuple[str, str, int, int], list[tuple[float, str]]] = defaultdict(list)
    for one in group:
        for run in one.runs:
            for timing in run.bandwidth:
                key = (one.layout, timing.link, timing.ranks, timing.bytes)
                measured[key].append((timing.seconds, run.labels.bandwidth))
    points = []
    for key, found in sorted(measured.items()):
        _, _, ranks, size = key
        label = least_certain(*(label for _, label in found))
        seconds = Quantity(float(np.median([seconds for seconds, _ in found])), "s", label)
        bus = Quantity(float(bus_bandwidth(size, seconds.value, ranks)), "B/s", label)
        points.append(BandwidthPoint(*key, seconds, bus))
    return points


def _recommendation(
    results: Sequence[LayoutResult], context: Context, refusals: list[Refusal]
) -> tuple[Recommendation, list[str]]:
    """Recommendation and Pareto front; a refusal is added if costs to the target are not known."""
    candidates = [
        Candidate(
            layout=one.layout,
            label=one.label,
            wait_hours=wait_hours(one, results),
            wait_known=one.queue_hours is not None,
            run_hours=cost.seconds.value / 3600,
            device_hours=cost.device_hours.value,
            money=cost.money.value if cost.money else None,
            efficiency=one.factors.efficiency.value,
            slow_run_hours=(cost.seconds.high or cost.seconds.value) / 3600,
        )
        for one in results
        for cost in [one.target or one.epoch]
    ]
    front = pareto(candidates)
    if results[0].target is not None:
        return recommend(candidates, context.settings.goal, context.settings.currency), front
    reason = f"scaling.epochs does not say how many {context.base.runs[0].experiment} needs"
    if context.mode == "weak":
        reason = (
            "the batch grows with the layout in weak scaling, so that the numbers of epochs to a target "
            "differ"
        )
    refusals.append(Refusal("cost to the target error and a recommendation", reason))
    return Recommendation(None, f"No layout is recommended: {reason}."), front


def _notes(group: Sequence[Measurement], settings: AnalysisSettings) -> list[str]:
    notes, base = [], group[0]
    if base.ranks > 1:
        notes.append(
            f"The base is {base.layout}: a single rank was not measured, so efficiency is relative to "
            f"{base.ranks} ranks."
        )
    notes += [
        f"{one.layout}: {one.repeats} repeats of {one.steps} steps; the method asks for "
        f"{settings.min_repeats} of {settings.min_steps}."
        for one in group
        if one.repeats < settings.min_repeats or one.steps < settings.min_steps
    ]
    if len({one.ranks for one in group}) < len(group):
        notes.append("Fits use, for each number of ranks, the layout on the fewest nodes.")
    return notes


def _losses_agree(results: Sequence[LayoutResult], base: str, tolerance: float) -> bool | None:
    others = [one.loss_deviation for one in results if one.layout != base]
    found = [deviation.value for deviation in others if deviation is not None]
    return max(found) <= tolerance if found else None
