"""Contracts of models and samples, for plug-ins as for the built-in systems: ``millrace check``.

A contract is what the engine, the evaluation and the workflow rely on, such as that a run that was
stopped goes on bit by bit. It is tried on a small dataset and a small model, which the system itself names
as its ``example``.
"""
