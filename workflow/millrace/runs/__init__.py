"""Management of the stores of checkpoints: ``python -m millrace.runs``."""
