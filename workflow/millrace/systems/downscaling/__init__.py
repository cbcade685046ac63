"""Downscaling of ICON fields: block means of a coarse grid to its cells."""
