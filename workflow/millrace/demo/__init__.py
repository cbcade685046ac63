"""Simulators that write the same raw files a user would bring."""
