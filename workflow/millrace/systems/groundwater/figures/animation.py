"""Animated vertical section as a GIF."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from millrace.errors import ConfigError
from millrace.figures.film import Film
from millrace.figures.style import DIFFERENCE_MAP, FIELD_MAP, style
from millrace.files import atomic_write
from millrace.systems.groundwater.figures.sections import SECTION_SIZE, SectionPanels
from millrace.systems.groundwater.sections import SectionGrid

_DPI = 100
_MILLISECONDS = 200  # of a frame


def section_animation(
    s: ArrayLike,
    z: ArrayLike,
    time: ArrayLike,
    truth: ArrayLike,
    prediction: ArrayLike,
    variable: str,
    unit: str,
    path: str | Path,
    ends: ArrayLike | None = None,
    issue: ArrayLike | None = None,
) -> None:
    """Write ground truth, prediction and difference, [F, n], on a vertical section as an endless GIF.

    Distance along the section and elevation of the nodes, [n], are in m, times of the frames, [F], in d;
    for ``ends`` and ``issue``, [F], see `millrace.systems.groundwater.figures.sections.cross_section`.
    The colour scales are the same in every frame. Forty frames take 1-2 MB. Raises `ConfigError` if the
    path does not end in ``.gif``.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise ConfigError(f"{path}: an animation ends in .gif; rename it")
    grid = SectionGrid.around(s, z)
    truth_FHW, prediction_FHW = grid.interpolate(truth), grid.interpolate(prediction)
    frames = []
    with style():
        fig = Figure(figsize=SECTION_SIZE, dpi=_DPI, layout="constrained")
        panels = SectionPanels(fig, grid, truth_FHW, prediction_FHW, variable, unit, ends)
        film = None
        for i, day in enumerate(np.asarray(time, dtype=np.float64)):
            issued = None if issue is None else float(np.asarray(issue)[i])
            panels.show(truth_FHW[i], prediction_FHW[i], day, issued)
            film = film or Film(fig, panels.moving)
            frames.append(film.frame())
    with atomic_write(path) as part:
        _write_gif(frames, part)


def _write_gif(frames: list[Image.Image], path: Path) -> None:
    # One palette for all frames: colours do not flicker, and what does not change takes no space.
    shades = (
        colormaps[FIELD_MAP](np.linspace(0, 1, 128)),
        colormaps[DIFFERENCE_MAP](np.linspace(0, 1, 95)),
        colormaps["gray"](np.linspace(0, 1, 33)),
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette((np.concatenate(shades)[:, :3] * 255).round().astype(np.uint8).tobytes())
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    look = {"duration": _MILLISECONDS, "loop": 0, "optimize": False}
    first.save(path, "GIF", save_all=True, append_images=rest, **look)
