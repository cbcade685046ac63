"""Steady Darcy flow: an example of a system of Millrace that lives in a package of its own."""
