"""Simulators of traffic at intersections, which write the files of recorded tracks or of SUMO."""
