"""Weather: states of the atmosphere, forecast step by step."""
