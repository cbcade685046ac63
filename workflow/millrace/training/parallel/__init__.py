"""A model on several processes: replicas, shards, pipeline stages, parts of layers, in any combination.

All of it is applied from outside: a model says how it can be divided (`millrace.models.spec.Division`), a
`ParallelConfig` how it shall be divided, and `DividedModel` does it.
"""
