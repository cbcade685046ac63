"""Start of the processes of a job: one agent a node, a rank for each GPU, and what goes wrong with them."""
