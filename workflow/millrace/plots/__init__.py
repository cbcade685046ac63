"""Figures of the evaluation. Every function takes NumPy arrays and writes one file.

The suffix of the path decides the format: ``.png`` (150 dpi), ``.svg`` or ``.pdf``; animations are
``.gif``. A figure that fails leaves no file behind.
"""

from millrace.plots.animation import section_animation
from millrace.plots.comparison import (
    ensemble_by_lead,
    error_by_lead,
    error_over_time,
    most_variable,
    scatter,
    time_series,
)
from millrace.plots.downscaling import by_region, reliability, spectra
from millrace.plots.maps import error_map, patch_map
from millrace.plots.motion import (
    Traffic,
    error_by_horizon,
    event_rates,
    rollout_animation,
    rollout_maps,
    token_usage,
    vocabulary_plates,
)
from millrace.plots.sections import cross_section
from millrace.plots.sphere import Panel, sphere_maps
from millrace.plots.training import skill_summary, training_curves
from millrace.plots.weather import (
    loss_share,
    scorecard,
    weather_by_lead,
    weather_maps,
    zonal_spectra,
)

__all__ = [
    "Panel",
    "Traffic",
    "by_region",
    "cross_section",
    "ensemble_by_lead",
    "error_by_horizon",
    "error_by_lead",
    "error_map",
    "error_over_time",
    "event_rates",
    "loss_share",
    "most_variable",
    "patch_map",
    "reliability",
    "rollout_animation",
    "rollout_maps",
    "scatter",
    "scorecard",
    "section_animation",
    "skill_summary",
    "spectra",
    "sphere_maps",
    "time_series",
    "token_usage",
    "training_curves",
    "vocabulary_plates",
    "weather_by_lead",
    "weather_maps",
    "zonal_spectra",
]
