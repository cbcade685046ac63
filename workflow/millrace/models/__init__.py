"""Model architectures, one file each, behind one `ModelSpec`."""
