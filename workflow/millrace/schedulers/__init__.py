"""Batch schedulers: SLURM, PBS Pro, none."""
