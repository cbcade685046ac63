"""Weather of a small planet, in the files of WeatherBench 2."""
