"""`millrace plan`: what a configuration asks for, and whether it fits, before anything is submitted."""
