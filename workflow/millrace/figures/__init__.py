"""Style of all figures, and those that serve every system."""
