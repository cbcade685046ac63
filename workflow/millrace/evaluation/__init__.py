"""Metrics, baselines and rollouts."""
