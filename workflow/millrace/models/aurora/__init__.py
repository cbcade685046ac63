"""Aurora, a weather model: configuration, layers, loss, and how it can be divided among processes."""

from millrace.models.aurora.config import AuroraConfig
from millrace.models.aurora.spec import SPEC

__all__ = ["SPEC", "AuroraConfig"]
