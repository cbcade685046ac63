"""A model on several processes: copies, shards, stages of a pipeline, parts of layers, in any mix.

All of it is applied from outside: a model says how it can be divided (`millrace.models.spec.Division`), a
`ParallelConfig` how it shall be, and `Divided` does it.
"""
