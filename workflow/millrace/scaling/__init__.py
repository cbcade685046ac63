"""How training scales: records of measured runs, their analysis and the report."""
