"""From the runs of a scaling study to what may be said of it."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from millrace.errors import DataError
from millrace.layout import Layout
from millrace.scaling.assembly import Context, measured_layout, predicted_layout
from millrace.scaling.communication import LinkModel, assumed_link, bus_bandwidth, fit_link
from millrace.scaling.factors import Measurement, measure
from millrace.scaling.fits import LAWS, Fit, fit
from millrace.scaling.prediction import Prediction, StepModel
from millrace.scaling.quantity import MEASURED, Quantity, Refusal, weakest
from millrace.scaling.recommend import Candidate, Recommendation, pareto, recommend
from millrace.scaling.records import LINKS, ScalingRun
from millrace.scaling.results import (
    SCHEMA,
    Analysis,
    BandwidthPoint,
    LayoutResult,
    Study,
    wait_hours,
)
from millrace.scaling.settings import Settings

_Key = tuple[str, str, str, str]


def analyse(runs: Sequence[ScalingRun], settings: Settings) -> Analysis:
    """Analyse all runs.

    Runs are studied together if experiment, kind and name of the device and precision are the same: a CPU
    never stands beside a GPU.

    Raises
    ------
    DataError
        No runs, the same run twice, or runs of one study that do not train the same problem.
    """
    if not runs:
        raise DataError(
            "scaling: expected at least one run to analyse, got none: measure a layout first"
        )
    grouped: dict[_Key, list[ScalingRun]] = defaultdict(list)
    for run in runs:
        grouped[(run.device.kind, run.experiment, run.device.name, run.precision)].append(run)
    # "gpu" before "cpu", then in the order of the alphabet.
    keys = sorted(grouped, key=lambda key: (key[0] != "gpu", *key[1:]))
    studies = tuple(study for key in keys for study in _studies(grouped[key], settings))
    return Analysis(SCHEMA, studies, (), tuple(_claim_notes(studies, settings)), asdict(settings))


def _studies(runs: Sequence[ScalingRun], settings: Settings) -> list[Study]:
    """Studies of one experiment on one kind of device: one a mode."""
    by_mode: dict[str, dict[str, list[ScalingRun]]] = {"strong": {}, "weak": {}}
    for run in runs:
        by_mode[run.mode].setdefault(run.layout, []).append(run)
    for mode, layouts in by_mode.items():
        _check(mode, layouts)
    measured = {
        mode: [measure(group, settings.draws, settings.seed) for group in layouts.values()]
        for mode, layouts in by_mode.items()
    }
    transfers = [transfer for run in runs for transfer in run.bandwidth]
    links: dict[str, LinkModel | Refusal] = {}
    for link in LINKS:
        links[link] = fit_link(transfers, link)
        if isinstance(links[link], Refusal) and link in settings.links:
            links[link] = assumed_link(link, **settings.links[link])
    together = [one for group in measured.values() for one in group]
    model = StepModel(together, links, runs[0].gradient_bytes, settings.seed)
    return [_study(mode, group, model, settings) for mode, group in measured.items() if group]


def _check(mode: str, layouts: dict[str, list[ScalingRun]]) -> None:
    runs = [run for group in layouts.values() for run in group]
    if not runs:
        return
    where = f"scaling: {runs[0].experiment} ({mode})"
    for name, group in layouts.items():
        repeats = [run.repeat for run in group]
        if len(set(repeats)) < len(repeats):
            raise DataError(
                f"{where}: {name}: two runs have the same number of repeat: keep one of them"
            )
        if len({run.labels.times for run in group}) > 1:
            raise DataError(
                f"{where}: {name}: runs with different labels of times: keep those of one label"
            )

    def batch(run: ScalingRun) -> float:
        return run.global_batch / (1 if mode == "strong" else run.place.world_size)

    what = "global batch" if mode == "strong" else "batch of a rank"
    for name, values in (
        (what, {batch(run) for run in runs}),
        ("number of samples an epoch", {run.samples_per_epoch for run in runs}),
        ("size of the gradients", {run.gradient_bytes for run in runs}),
    ):
        if len(values) > 1:
            raise DataError(
                f"{where}: expected the same {name} in all runs, got {sorted(values)}: "
                "measure the odd ones again"
            )


def _study(mode: str, group: Sequence[Measurement], model: StepModel, settings: Settings) -> Study:
    group = sorted(group, key=lambda one: (one.ranks, one.nodes))
    base, run = group[0], group[0].runs[0]
    context = Context(mode, base, model, settings)
    refusals: list[Refusal] = [
        r for r in (model.link(Layout(1, 2)), model.link(Layout(2, 1))) if isinstance(r, Refusal)
    ]
    results = [measured_layout(one, context) for one in group]
    known = {one.layout for one in group}
    rank_batch = base.rank_batch
    for name in settings.layouts:
        layout = Layout.parse(name)
        if name in known:
            continue
        batch = base.global_batch / layout.world_size if mode == "strong" else rank_batch
        predicted = model.predict(layout, batch)
        if isinstance(predicted, Prediction):
            results.append(predicted_layout(predicted, batch, context))
        else:
            refusals.append(predicted)
    results.sort(key=lambda one: (one.ranks, one.nodes))
    fits, refused = _fits(mode, group)
    refusals += refused
    recommendation, front = _recommendation(results, context, refusals)
    runs = [run for one in group for run in one.runs]
    return Study(
        key=re.sub(
            r"[^A-Za-z0-9]+", "-", f"{run.device.kind}-{run.experiment}-{mode}-{run.device.name}"
        )
        + ("" if run.precision == "float32" else f"-{run.precision}"),
        experiment=run.experiment,
        mode=mode,
        device_kind=run.device.kind,
        device_name=run.device.name,
        backend=", ".join(sorted({run.backend for run in runs} - {"none"})) or "none",
        precision=run.precision,
        global_batch=run.global_batch if mode == "strong" else None,
        rank_batch=rank_batch if mode == "weak" else None,
        base=base.layout,
        layouts=tuple(results),
        fits=tuple(fits),
        links=tuple(
            link
            for link in (model.link(Layout(1, 2)), model.link(Layout(2, 1)))
            if isinstance(link, LinkModel)
        ),
        bandwidth=tuple(_bandwidth(group)),
        model_deviation=model.deviation(),
        refusals=tuple(refusals),
        notes=tuple(_notes(group, mode, settings)),
        losses_agree=_agree(results, base.layout, settings),
        recommendation=recommendation,
        pareto=tuple(front),
        commits=tuple(sorted({run.commit for run in runs if run.commit})),
        hosts=tuple(
            sorted({f"{host.processor}, {host.cores} cores" for run in runs for host in run.hosts})
        ),
        software=run.software,
    )


def _fits(mode: str, group: Sequence[Measurement]) -> tuple[list[Fit], list[Refusal]]:
    """Fits to one layout for each number of ranks: the one on the fewest nodes, so that links are alike."""
    densest: dict[int, Measurement] = {}
    for one in group:  # in the order of ranks and nodes
        if one.runs[0].labels.times == MEASURED:
            densest.setdefault(one.ranks, one)
    ranks, throughput = [], []
    for one in densest.values():
        for run in one.runs:
            seconds = np.median(run.times.array("total").max(axis=0))
            ranks.append(one.ranks)
            throughput.append(run.global_batch / float(seconds))
    made = [fit(law, ranks, throughput) for law in LAWS[mode]]
    return [f for f in made if isinstance(f, Fit)], [f for f in made if isinstance(f, Refusal)]


def _bandwidth(group: Sequence[Measurement]) -> list[BandwidthPoint]:
    points: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    labels: dict[tuple[str, str, int, int], str] = {}
    for one in group:
        for run in one.runs:
            for transfer in run.bandwidth:
                key = (one.layout, transfer.link, transfer.ranks, transfer.bytes)
                points[key].append(transfer.seconds)
                labels[key] = weakest([run.labels.bandwidth, labels.get(key, MEASURED)])
    made = []
    for key in sorted(points):
        layout, link, ranks, size = key
        seconds = Quantity(float(np.median(points[key])), "s", labels[key])
        bus = Quantity(float(bus_bandwidth(size, seconds.value, ranks)), "B/s", labels[key])
        made.append(BandwidthPoint(layout, link, ranks, size, seconds, bus))
    return made


def _recommendation(
    results: Sequence[LayoutResult], context: Context, refusals: list[Refusal]
) -> tuple[Recommendation, list[str]]:
    candidates = []
    for one in results:
        cost = one.target or one.epoch
        candidates.append(
            Candidate(
                one.layout,
                one.label,
                wait_hours(one, results),
                one.queue_hours is not None,
                cost.seconds.value / 3600,
                cost.device_hours.value,
                None if cost.money is None else cost.money.value,
                one.factors.efficiency.value,
                (cost.seconds.high or cost.seconds.value) / 3600,
            )
        )
    front = pareto(candidates)
    if results[0].target is None:
        if context.mode == "weak":
            reason = (
                "the batch grows with the layout in weak scaling, so that epochs to a target are not the "
                "same"
            )
        else:
            reason = f"scaling.epochs does not say how many {context.base.runs[0].experiment} needs"
        refusals.append(Refusal("cost to the target error and a recommendation", reason))
        return Recommendation(None, f"No layout is recommended: {reason}."), front
    return recommend(candidates, context.settings.goal, context.settings.currency), front


def _notes(group: Sequence[Measurement], mode: str, settings: Settings) -> list[str]:
    notes = []
    base = group[0]
    if base.ranks > 1:
        notes.append(
            f"The base is {base.layout}: a single rank was not measured, so efficiency is relative to "
            f"{base.ranks} ranks."
        )
    for one in group:
        if one.repeats < settings.min_repeats or one.steps < settings.min_steps:
            notes.append(
                f"{one.layout}: {one.repeats} repeats of {one.steps} steps; the method asks for "
                f"{settings.min_repeats} of {settings.min_steps}."
            )
    alike = {one.ranks: 0 for one in group}
    for one in group:
        alike[one.ranks] += 1
    if max(alike.values()) > 1:
        notes.append("Fits use, for each number of ranks, the layout on the fewest nodes.")
    return notes


def _agree(results: Sequence[LayoutResult], base: str, settings: Settings) -> bool | None:
    found = [
        one.loss_deviation.value
        for one in results
        if one.loss_deviation is not None and one.layout != base
    ]
    return None if not found else max(found) <= settings.loss_tolerance


def _claim_notes(studies: Sequence[Study], settings: Settings) -> list[str]:
    notes = []
    for name in settings.claims:
        tested = [
            study
            for study in studies
            for one in study.layouts
            if one.layout == name and one.claim is not None
        ]
        if not tested:
            low, high = settings.claims[name]
            notes.append(
                f"The claim of {low:.0%} to {high:.0%} efficiency on {name} is not tested: it is about "
                "GPUs, and no GPU run of that layout was measured."
            )
    return notes
