"""Millrace: from raw scientific data to trained, evaluated surrogate models on any GPU layout."""

__version__ = "0.1.0"
