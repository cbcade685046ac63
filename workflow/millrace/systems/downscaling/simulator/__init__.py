"""Temperature on an icosahedral grid, in the files of ICON."""
