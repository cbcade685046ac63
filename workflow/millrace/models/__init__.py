"""What serves the models of every system: `ModelSpec`, losses and layers."""
