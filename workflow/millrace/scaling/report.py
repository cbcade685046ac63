"""The HTML page of a scaling study: one file with everything in it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from millrace.scaling.quantity import LABELS
from millrace.scaling.results import Analysis

_FORMATS = {
    "percent": lambda value: f"{100 * value:.1f} %",
    "factor": lambda value: f"{value:.3f}",
    "ratio": lambda value: f"{value:.2f} ×",
    "seconds": lambda value: seconds(value),
    "number": lambda value: number(value),
    "bytes": lambda value: scaled(value, "B"),
    "bandwidth": lambda value: scaled(value, "B/s"),
    "scientific": lambda value: f"{value:.3g}",
    "batch": lambda value: "any" if value == 0 else number(math.ceil(value)),
    "change": lambda value: f"{100 * value:+.1f} %",
}


def page(analysis: Analysis, drawings: Mapping[str, Mapping[str, str]]) -> str:
    """Render the page.

    Every number is a ``<data>`` element: ``value`` is that of the JSON file, at the path ``data-key``, and
    ``data-label`` says whether it was measured, modelled or extrapolated.

    Parameters
    ----------
    analysis : Analysis
    drawings : mapping
        SVG of the figures by caption, by key of the study, or by kind of device for those over all studies.
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
        analysis=content, show=show, figures=_inline(drawings), labels=LABELS
    )


def number(value: float) -> str:
    """Three digits or, from 1,000 upwards, all before the point."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """A time, in the unit that suits it."""
    if abs(value) < 1e-9:  # below every clock
        return "0 s"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value >= (2 if size >= 60 else 1) * size:
            return f"{number(value / size)} {unit}"
    return f"{number(value * 1e6)} µs"


def scaled(value: float, unit: str) -> str:
    """A number with a decimal prefix."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{number(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}"


def _shown(content: Any, path: str, how: str, row: str, bounds: bool) -> Markup:
    """The element of a quantity or a bare number; what is not known is a dash."""
    found = content
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    if found is None:
        return Markup('<span class="none" title="not known">–</span>')
    if not isinstance(found, Mapping):
        found, key = {"value": found, "label": "", "low": None, "high": None}, path
    else:
        key = f"{path}.value"
    write = _FORMATS[how]
    text = Markup('<data value="{}" data-key="{}" data-label="{}">{}</data>').format(
        repr(found["value"]), key, found["label"], write(found["value"])
    )
    low, high = found["low"], found["high"]
    if bounds and low is not None and high is not None and write(low) != write(high):
        ends = (
            Markup('<data value="{}" data-key="{}.{}" data-label="{}">{}</data>').format(
                repr(found[side]), path, side, found["label"], write(found[side])
            )
            for side in ("low", "high")
        )
        text += Markup(' <small class="interval">{} to {}</small>').format(*ends)
    if row and found["label"] and found["label"] != row:
        # Beside a number of another origin than its row.
        text += Markup(' <small class="label {0}">{0}</small>').format(found["label"])
    return text


def _inline(drawings: Mapping[str, Mapping[str, str]]) -> dict[str, list[tuple[str, Markup]]]:
    """Drawings as elements of the page; names inside them are made unique."""
    figures: dict[str, list[tuple[str, Markup]]] = {}
    for key, group in drawings.items():
        figures[key] = []
        for i, (caption, svg) in enumerate(group.items()):
            prefix = f"{re.sub(r'[^A-Za-z0-9]', '', key)}{i}-"
            body = svg[svg.index("<svg") :]
            body = re.sub(r'\bid="', f'id="{prefix}', body)
            body = re.sub(r"url\(#", f"url(#{prefix}", body)
            body = re.sub(r'href="#', f'href="#{prefix}', body)
            body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
            opening = f'<svg role="img" aria-label="{escape(caption)}" '
            # The drawing fills the width of its place; its size is in the viewBox.
            body = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", body, count=1)
            body = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", body, count=1)
            figures[key].append((caption, Markup(opening + body.removeprefix("<svg"))))
    return figures
