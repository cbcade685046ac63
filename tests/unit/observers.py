"""Observers of trainings that want nothing."""

from unittest.mock import Mock


def silent():
    """An observer that asks for no checkpoint within an epoch, and remembers what it was called with."""
    return Mock(**{"saves_at.return_value": False, "is_late.return_value": False})
