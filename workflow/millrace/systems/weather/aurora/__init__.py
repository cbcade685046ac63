"""Aurora, a weather model: configuration, layers, loss, and how it can be divided among processes.

Nothing is imported here: planning reads the configuration without torch.
"""
