"""The style shared by all figures, and how they are written."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import ArrayLike

from millrace.errors import ConfigError, first_line
from millrace.files import atomic_write

PAGE_WIDTH = 7.0
"""Width of the text on an A4 page, in inches; figures are drawn at this size, in 9 pt type."""

# Okabe & Ito (2008), "Color universal design": distinct for every common kind of colour blindness.
TRUTH, PREDICTION, PERSISTENCE = "#000000", "#0072B2", "#D55E00"
CATEGORIES = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#0072B2", "#D55E00")
REFERENCE_LINE = "#7F7F7F"
WARNING = "#B00020"
FIELD_MAP, DIFFERENCE_MAP, ERROR_MAP = "viridis", "RdBu_r", "cividis"

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.6,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "millrace",  # equal figures are equal files
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
# No dates in the files, for the same reason.
_METADATA: dict[str, dict[str, Any]]
_METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def attempt(path: Path, *, required: bool = False) -> Iterator[Path]:
    """Let a figure fail alone: what cannot be drawn is a warning with the reason.

    Where a file is ``required``, it holds the reason, else there is none. Yields ``path``. Errors in
    writing, such as a full disk, are raised: they come from elsewhere.
    """
    try:
        yield path
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = first_line(error)
        print(f"WARNING: {path} is not drawn: {reason}", file=sys.stderr, flush=True)
        if required:
            with figure(path, PAGE_WIDTH, 1.0) as fig:
                fig.text(0.5, 0.5, f"Not drawn: {reason}", ha="center", va="center", wrap=True)


@contextmanager
def figure(
    path: str | Path,
    width: float,
    height: float,
    layout: Literal["constrained", "compressed"] = "constrained",
    also: Sequence[str] = (),
) -> Iterator[Figure]:
    """Yield an empty figure in the common style, and write it to ``path`` if no error occurs.

    Parameters
    ----------
    path
        Ends in ``.png``, ``.svg`` or ``.pdf``; missing folders are made.
    width, height
        Size in inches.
    layout
        Layout engine of Matplotlib; ``compressed`` suits panels of a fixed aspect.
    also
        Suffixes of further files to write beside it.

    Raises
    ------
    ConfigError
        The path has another suffix.
    """
    paths = [Path(path), *(Path(path).with_suffix(suffix) for suffix in also)]
    for one in paths:
        if one.suffix not in _METADATA:
            raise ConfigError(f"{one}: a figure ends in {', '.join(_METADATA)}; rename it")
    with style():
        fig = Figure(figsize=(width, height), layout=layout)
        yield fig
        for one in paths:
            with atomic_write(one) as partial:
                # A compressed layout leaves unused space as margins, which are cropped.
                fig.savefig(
                    partial,
                    format=one.suffix[1:],
                    dpi=150,
                    bbox_inches="tight" if layout == "compressed" else None,
                    pad_inches=0.06,
                    metadata=_METADATA[one.suffix],
                )


def style() -> AbstractContextManager[None]:
    """Context in which artists have the common style."""
    return rc_context(_STYLE)


class Thousands(ScalarFormatter):
    """Tick labels with separators from 10,000 upwards, and never with an offset."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Labels of all ticks of an axis."""
        if max((abs(value) for value in values), default=0) < 10_000:
            return list(super().format_ticks(list(values)))
        return [self.fix_minus(f"{value:,.0f}") for value in values]


def axis_label(variable: str, unit: str) -> str:
    """Label such as ``Mass concentration (mg/L)`` from the name of a column and its unit.

    A symbol, such as u or tas, stays as it is: in capitals it is another one.
    """
    name = variable.replace("_", " ").strip()
    if len(name.split(" ")[0]) > 3:
        name = name[:1].upper() + name[1:]
    return name if unit in ("", "-", "1") else f"{name} ({unit})"


def log_if_wide(axes: Any, values: ArrayLike) -> None:
    """Make the y axis logarithmic if it shows values that differ by a factor of 3 or more."""
    shown = np.asarray(values, dtype=float)
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if shown.size and shown.max() >= 3 * shown.min():
        axes.set_yscale("log")
        log_ticks(axes.yaxis, shown.min(), shown.max())


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Set ticks of a logarithmic axis at round numbers; a wider range has fewer of them."""
    exponents = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [m * 10.0**e for e in exponents for m in steps]
    if high / low > 100:
        ticks = [10.0**e for e in exponents]
    shown = [tick for tick in ticks if 0.7 * low <= tick <= 1.4 * high]
    axis.set_major_locator(ticker.FixedLocator(shown))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
