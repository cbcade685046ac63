"""Numerical kernels shared by the models: neighbour tables and graph integrals."""
