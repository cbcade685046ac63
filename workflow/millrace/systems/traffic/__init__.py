"""Traffic: the next motion of agents, as tokens of half a second over a map."""
