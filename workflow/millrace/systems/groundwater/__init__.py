"""Variable-density groundwater: forecasts in time on patches of a mesh or on vertical sections."""
