"""How training scales: records of measured runs, and what may be concluded from them."""
