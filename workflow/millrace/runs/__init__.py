"""Management of the stores of checkpoints: ``millrace runs``."""
