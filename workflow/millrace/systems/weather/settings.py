"""The section ``data`` of experiments on weather, without torch; ``model`` is in `aurora.config`."""

from dataclasses import dataclass

from millrace.errors import ConfigError


@dataclass(frozen=True)
class WeatherWindowConfig:
    """What a sample holds; the ``data:`` block of an experiment on weather."""

    variables: tuple[str, ...] = ()
    """Set from the file: names of the channels."""
    input_steps: int = 2
    output_steps: int = 1
    """States that are forecast one from the other."""
    stride: int = 1
    """Steps between the starts of consecutive training windows; scores are over all windows."""

    def __post_init__(self) -> None:
        if min(self.input_steps, self.output_steps, self.stride) < 1:
            raise ConfigError("data: expected input_steps, output_steps and a stride of 1 or more")

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps
