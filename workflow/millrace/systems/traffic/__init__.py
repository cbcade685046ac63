"""Traffic: what road users do next, as tokens of half a second over a map."""
