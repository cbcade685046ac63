"""Clusters as data: what nodes they have, what a job gets there, and how it is asked for."""
