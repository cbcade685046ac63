"""Units of the columns that every dataset may have; others are given under ``units`` of the dataset."""

UNITS = {"mass_concentration": "mg/L", "pressure": "kPa", "head": "m"}
