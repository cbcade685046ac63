"""Start of the processes of a job: an agent on each node, a rank for each GPU, and their failures."""
