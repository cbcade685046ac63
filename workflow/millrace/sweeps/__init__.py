"""Sweeps: trials of an experiment with other settings, asked for, stopped, ranked, one chosen."""
