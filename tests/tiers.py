"""What `make test` leaves to `make test-all`, and that to a nightly run: markers in pyproject.toml."""

import pytest


def slow_for(values, left):
    """Parameters of a test; those for which ``left`` is true run in `make test-all` alone."""
    return _marked(values, left, pytest.mark.slow)


def nightly_for(values, left):
    """Parameters of a test; those for which ``left`` is true run in `make test-nightly` alone."""
    return _marked(values, left, pytest.mark.nightly)


def _marked(values, left, mark):
    several = [one if isinstance(one, tuple) else (one,) for one in values]
    marks = [[mark] if left(one) else [] for one in values]
    return [pytest.param(*one, marks=mine) for one, mine in zip(several, marks, strict=True)]
