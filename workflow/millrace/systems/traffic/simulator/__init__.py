"""Traffic at intersections, in the files of recorded tracks or of SUMO."""
