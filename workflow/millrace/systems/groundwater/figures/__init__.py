"""Figures of forecasts of groundwater."""
