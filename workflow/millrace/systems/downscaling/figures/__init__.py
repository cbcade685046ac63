"""Figures of downscaled fields."""
