"""Animated vertical section as a GIF."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from millrace.errors import ConfigError
from millrace.figures.style import DIFFERENCE_MAP, FIELD_MAP, style
from millrace.files import atomic_write
from millrace.systems.groundwater.figures.sections import SECTION_SIZE, SectionPanels
from millrace.systems.groundwater.sections import SectionGrid

_DPI = 100


def section_animation(
    s: ArrayLike,
    z: ArrayLike,
    time: ArrayLike,
    truth: ArrayLike,
    prediction: ArrayLike,
    variable: str,
    unit: str,
    path: str | Path,
    fps: float = 5,
) -> None:
    """Write truth, prediction and difference on a vertical section as an endless GIF.

    The colour scales are the same in every frame. Forty frames take 1-2 MB.

    Parameters
    ----------
    s, z
        Distance along the section and elevation in m, [n].
    time
        In d, [F]; shown in the title.
    truth, prediction
        Physical units, [F, n].
    variable, unit
        For the colour bars.
    path
        Ends in ``.gif``.
    fps
        Frames per second.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise ConfigError(f"{path}: an animation ends in .gif; rename it")
    grid = SectionGrid.around(s, z)
    truth_FHW, prediction_FHW = grid.interpolate(truth), grid.interpolate(prediction)
    frames = []
    with style():
        fig = Figure(figsize=SECTION_SIZE, dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(fig)
        panels = SectionPanels.draw(fig, grid, truth_FHW, prediction_FHW, variable, unit)
        for i, day in enumerate(np.asarray(time, dtype=np.float64)):
            panels.update(truth_FHW[i], prediction_FHW[i], f"{day:,.2f} d")
            canvas.draw()
            fig.set_layout_engine("none")  # once is enough: no label changes its size
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    with atomic_write(path) as part:
        _write_gif(frames, part, fps)


def _write_gif(frames: list[Image.Image], path: Path, fps: float) -> None:
    # One palette for all frames: colours do not flicker, and what does not change takes no space.
    shades = (
        colormaps[FIELD_MAP](np.linspace(0, 1, 128)),
        colormaps[DIFFERENCE_MAP](np.linspace(0, 1, 95)),
        colormaps["gray"](np.linspace(0, 1, 33)),
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette((np.concatenate(shades)[:, :3] * 255).round().astype(np.uint8).tobytes())
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(
        path,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
    )
