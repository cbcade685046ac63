"""The systems, as far as planning and reporting go: file names, checks and tables; nothing heavy.

A system is a field with its raw data, its samples and its models. What is planned and reported looks here;
how samples are opened is in `millrace.data.views`, how models are built in `millrace.models.registry`,
and how they are scored in `millrace.evaluate`, all under the same names.
"""

from collections.abc import Mapping
from typing import Any

from millrace.systems import downscaling, groundwater, motion, weather
from millrace.systems.base import RawFormat, SampleKind, Table

__all__ = ["FORMATS", "KINDS", "KIND_OF_MODEL", "RawFormat", "SampleKind", "Table", "raw_format"]

_SYSTEMS = (groundwater, downscaling, weather, motion)

FORMATS: dict[str, RawFormat] = {one.name: one for system in _SYSTEMS for one in system.FORMATS}
"""By the key ``format`` of a dataset; the first is the default."""

KINDS: dict[str, SampleKind] = {one.name: one for system in _SYSTEMS for one in system.KINDS}
"""By name, that of `millrace.data.views.VIEWS`."""

KIND_OF_MODEL: dict[str, str] = {
    model: kind for system in _SYSTEMS for model, kind in system.MODELS.items()
}
"""Samples that a model takes, `ModelSpec.view`."""


def raw_format(dataset: Mapping[str, Any]) -> RawFormat:
    """Format of a dataset's raw files, by its block in the configuration."""
    return FORMATS[dataset.get("format", next(iter(FORMATS)))]
