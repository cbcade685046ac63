"""Scores, figures and tables of trained models."""
