"""A coastal aquifer, in the files of a FEFLOW model."""
