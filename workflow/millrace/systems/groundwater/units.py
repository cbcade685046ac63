"""Units of the fields: in messages, figures, tables and prediction files."""

from collections.abc import Mapping
from typing import Any

UNITS = {"mass_concentration": "mg/L", "pressure": "kPa", "head": "m"}
"""Of the columns that every dataset may have; those of others are given under ``units`` of the dataset."""


def units_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Units by variable, from the attributes ``variables`` and ``units`` of an HDF5 file.

    Files of earlier versions may have none: theirs are those of `UNITS`.
    """
    names = list(attributes["variables"])
    units = list(attributes.get("units", [])) or [UNITS[name] for name in names]
    return dict(zip(names, units, strict=True))
