"""Folders of users that take the workflow in as a module: how they begin, and their report."""
