"""The files of a scaling study: page, tables and figures."""

from collections.abc import Callable
from pathlib import Path

from millrace.files import atomic_write
from millrace.scaling import figures as figures
from millrace.scaling.export import extrap_text, readme_table, write_csv, write_json_file
from millrace.scaling.report import page
from millrace.scaling.results import Analysis, Study

_ALSO = (".pdf", ".png")


def write_report(
    analysis: Analysis,
    html: Path,
    csv: Path,
    json: Path,
    extrap: Path,
    figures_dir: Path,
    badges: Path | None = None,
) -> None:
    """Write all that is to be seen of an analysis.

    Parameters
    ----------
    analysis : Analysis
    html : Path
        One self-contained page.
    csv, json : Path
        One row a study and layout; all of the analysis.
    extrap : Path
        Measured steps as text for Extra-P.
    figures_dir : Path
        Every figure as SVG, PDF and PNG.
    badges : Path, optional
        Table in Markdown for a README.

    Raises
    ------
    millrace.files.OutputError
        No space or no permission; what was written before stays.
    """
    drawings = {study.key: _draw(study, analysis, figures_dir) for study in analysis.studies}
    for kind in ("gpu", "cpu"):
        drawings[kind] = _overall(
            [s for s in analysis.studies if s.device_kind == kind], figures_dir
        )
    _text(html, page(analysis, drawings))
    _text(extrap, extrap_text(analysis))
    if badges is not None:
        _text(badges, readme_table(analysis))
    write_csv(analysis, csv)
    write_json_file(analysis, json)


def _draw(study: Study, analysis: Analysis, folder: Path) -> dict[str, str]:
    """Write the figures of a study; SVG by caption."""
    origin = _origin([study])
    units = "GPUs" if study.device_kind == "gpu" else "CPU processes"
    made = {}
    jobs: dict[str, tuple[Callable[..., None], tuple[str, ...], str]] = {
        "throughput": (
            figures.throughput, (), f"Throughput by number of {units}; dashed: ideal. {origin}",
        ),
        "efficiency": (
            figures.efficiency, (), f"Efficiency on {units} with 95 % intervals"
            + ("; bands: claimed. " if any(one.claim for one in study.layouts) else ". ") + origin,
        ),
        "step": (figures.step_parts, (), f"What a step on {units} is spent on. {origin}"),
        "cost": (
            figures.cost_and_time, (analysis.settings["currency"],),
            f"Cost over time on {units}. {origin}",
        ),
    }  # fmt: skip
    if study.bandwidth:
        jobs["communication"] = (
            figures.communication, (),
            "Bus bandwidth of all-reduces by size of the message. Points: "
            f"{', '.join(sorted({one.bus.label for one in study.bandwidth}))}; lines: modelled.",
        )  # fmt: skip
    for name, (draw, more, caption) in jobs.items():
        path = folder / f"{study.key}_{name}.svg"
        draw(study, *more, path, also=_ALSO)
        made[caption] = path.read_text()
    return made


def _overall(studies: list[Study], folder: Path) -> dict[str, str]:
    """Efficiency of all studies of a kind of device, if there are several."""
    if len(studies) < 2:
        return {}
    kind = studies[0].device_kind
    path = folder / f"{kind}_efficiency.svg"
    figures.overall_efficiency(studies, path, also=_ALSO)
    units = "GPUs" if kind == "gpu" else "CPU processes"
    return {f"Efficiency of all experiments on {units}. {_origin(studies)}": path.read_text()}


def _origin(studies: list[Study]) -> str:
    """Which layouts were measured and which not, for captions."""
    by_label: dict[str, list[str]] = {}
    for study in studies:
        for one in study.layouts:
            by_label.setdefault(one.label, []).append(one.layout)
    return (
        "; ".join(
            f"{label}: {', '.join(dict.fromkeys(names))}" for label, names in by_label.items()
        ).capitalize()
        + "."
    )


def _text(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text)
