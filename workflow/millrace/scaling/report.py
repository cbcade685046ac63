"""The report of a scaling study: an HTML page with everything in it, tables and figures."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from millrace.files import atomic_write, write_json
from millrace.scaling import figures
from millrace.scaling.export import extrap_text, readme_table, write_csv
from millrace.scaling.quantity import format_number, format_scaled, format_seconds
from millrace.scaling.results import Analysis, Study

_FURTHER_SUFFIXES = (".pdf", ".png")
_FORMATS: dict[str, Callable[[float], str]] = {
    "percent": lambda value: f"{100 * value:.1f} %",
    "factor": lambda value: f"{value:.3f}",
    "ratio": lambda value: f"{value:.2f} ×",
    "seconds": format_seconds,
    "number": format_number,
    "bytes": lambda value: format_scaled(value, "B"),
    "bandwidth": lambda value: format_scaled(value, "B/s"),
    "scientific": lambda value: f"{value:.3g}",
    "batch": lambda value: "any" if value == 0 else format_number(math.ceil(value)),
    "change": lambda value: f"{100 * value:+.1f} %",
}


def write_report(
    analysis: Analysis,
    html: Path,
    csv: Path,
    json: Path,
    extrap: Path,
    figures: Path,
    badges: Path,
) -> None:
    """Write page, tables and figures of an analysis.

    ``html`` is one self-contained page; ``csv`` a table with one row for each study and layout; ``json``
    all of the analysis; ``extrap`` measured step times as text for Extra-P; ``badges`` a table in Markdown
    for a README. The directory ``figures`` gets each figure as SVG, PDF and PNG. Raises `OutputError`
    if there is no space or no permission; files that were written before stay.
    """
    drawings = {study.key: _draw(study, figures) for study in analysis.studies}
    for kind in ("gpu", "cpu"):
        studies = [study for study in analysis.studies if study.device_kind == kind]
        drawings[kind] = _draw_overall(studies, figures)
    for path, text in (
        (html, page(analysis, drawings)),
        (extrap, extrap_text(analysis)),
        (badges, readme_table(analysis)),
    ):
        with atomic_write(path) as partial:
            partial.write_text(text)
    write_csv(analysis, csv)
    write_json(json, analysis.as_json())


def page(analysis: Analysis, drawings: Mapping[str, Mapping[str, str]]) -> str:
    """Render the page.

    Every number is a ``<data>`` element: ``value`` is that of the JSON file, at the path ``data-key``, and
    ``data-label`` says whether it was measured, modelled or extrapolated. ``drawings`` are the SVG of the
    figures by caption, for each key of a study, and for each kind of device for the figures over all
    studies.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = analysis.as_json()

    def show(path: str, how: str, row: str = "", bounds: bool = True) -> Markup:
        return _shown(content, path, how, row, bounds)

    return environment.get_template("report.html.j2").render(
        analysis=content, show=show, figures=_inline(drawings)
    )


def _shown(content: Any, path: str, how: str, row: str, bounds: bool) -> Markup:
    """Return the element of a quantity or a plain number; a dash stands for an unknown one."""
    found = content
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    if found is None:
        return Markup('<span class="none" title="not known">–</span>')
    key, write = f"{path}.value", _FORMATS[how]
    if not isinstance(found, Mapping):
        found, key = {"value": found, "label": "", "low": None, "high": None}, path

    def element(side: str, key: str) -> Markup:
        return Markup('<data value="{}" data-key="{}" data-label="{}">{}</data>').format(
            repr(found[side]), key, found["label"], write(found[side])
        )

    text = element("value", key)
    low, high = found["low"], found["high"]
    if bounds and low is not None and high is not None and write(low) != write(high):
        ends = (element(side, f"{path}.{side}") for side in ("low", "high"))
        text += Markup(' <small class="interval">{} to {}</small>').format(*ends)
    if row and found["label"] and found["label"] != row:
        # The number is of another origin than its row.
        text += Markup(' <small class="label {0}">{0}</small>').format(found["label"])
    return text


def _inline(drawings: Mapping[str, Mapping[str, str]]) -> dict[str, list[tuple[str, Markup]]]:
    """Return the drawings as elements of the page; the ids inside them are made unique."""
    inlined: dict[str, list[tuple[str, Markup]]] = {}
    for key, group in drawings.items():
        inlined[key] = []
        for i, (caption, svg) in enumerate(group.items()):
            prefix = f"{re.sub(r'[^A-Za-z0-9]', '', key)}{i}-"
            body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg[svg.index("<svg") :])
            body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
            # The drawing fills the width of its place; its size is in the viewBox.
            for size in ("height", "width"):
                body = re.sub(rf'<svg ([^>]*?){size}="[^"]*"', r"<svg \1", body, count=1)
            opening = f'<svg role="img" aria-label="{escape(caption)}" '
            inlined[key].append((caption, Markup(opening + body.removeprefix("<svg"))))
    return inlined


def _draw(study: Study, folder: Path) -> dict[str, str]:
    """Write the figures of a study, and return their SVG by caption."""
    origin, units = _origin([study]), study.units
    claimed = "; bands: claimed" if any(one.claim for one in study.layouts) else ""
    throughput = f"Throughput by number of {units}; dashed: ideal. {origin}"
    efficiency = f"Efficiency on {units} with 95 % intervals{claimed}. {origin}"
    parts = {
        "throughput": (figures.throughput, throughput),
        "efficiency": (figures.efficiency, efficiency),
        "step": (figures.step_parts, f"What a step on {units} is spent on. {origin}"),
        "cost": (figures.cost_and_time, f"Cost over time on {units}. {origin}"),
    }
    if study.bandwidth:
        labels = ", ".join(sorted({one.bus.label for one in study.bandwidth}))
        points = f"Points: {labels}; lines: modelled."
        caption = f"Bus bandwidth of all-reduces by size of the message. {points}"
        parts["communication"] = (figures.communication, caption)
    drawn = {}
    for name, (draw, caption) in parts.items():
        path = folder / f"{study.key}_{name}.svg"
        draw(study, path, also=_FURTHER_SUFFIXES)
        drawn[caption] = path.read_text()
    return drawn


def _draw_overall(studies: list[Study], folder: Path) -> dict[str, str]:
    """Write the efficiency of all studies on one kind of device, if there are several."""
    if len(studies) < 2:
        return {}
    path = folder / f"{studies[0].device_kind}_efficiency.svg"
    figures.overall_efficiency(studies, path, also=_FURTHER_SUFFIXES)
    caption = f"Efficiency of all experiments on {studies[0].units}. {_origin(studies)}"
    return {caption: path.read_text()}


def _origin(studies: list[Study]) -> str:
    """List the layouts by label, for captions."""
    by_label: dict[str, dict[str, None]] = {}
    for study in studies:
        for one in study.layouts:
            by_label.setdefault(one.label, {})[one.layout] = None
    text = "; ".join(f"{label}: {', '.join(names)}" for label, names in by_label.items())
    return f"{text.capitalize()}."
