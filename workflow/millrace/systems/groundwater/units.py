"""Units of the columns that every dataset may have; others are given under ``units`` of the dataset."""

UNITS = {"mass_concentration": "mg/L", "pressure": "kPa", "head": "m"}

POSSIBLE = {"mass_concentration": (0.0, 4e5), "mass_concentration_bc": (0.0, 4e5)}
"""What is possible, in these units: concentrations from fresh water to saturated brine."""
