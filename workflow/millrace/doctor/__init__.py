"""Checks of a cluster, or of this machine, before work is sent there: ``millrace doctor``."""
