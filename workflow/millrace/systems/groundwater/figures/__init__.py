"""Figures of forecasts; ``variable`` and ``unit`` label their axes, and they are written to ``path``."""
