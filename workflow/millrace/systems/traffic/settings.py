"""Settings of experiments on scenarios: their sections ``data`` and ``model``, without torch."""

from dataclasses import dataclass

from millrace.errors import ConfigError


@dataclass(frozen=True)
class ScenarioConfig:
    """The ``data:`` section of an experiment on scenarios."""

    buckets: int = 4
    """Groups of scenarios of about the same cost."""
    shuffle_map: bool = False
    """Give each scenario the map of another one: shows what a model gains from the map."""

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ConfigError(f"data.buckets = {self.buckets}: expected 1 or more")


@dataclass(frozen=True)
class SmartConfig:
    """Parameters of SMART; config/README.md says what each does."""

    hidden: int = 128
    """Channels."""
    heads: int = 8
    map_layers: int = 3
    """Layers of the map encoder."""
    layers: int = 6
    """Layers of the decoder."""
    bands: int = 64
    """Learned frequencies of each relative position."""
    map_radius: float = 10.0
    """Between road segments (m)."""
    road_radius: float = 30.0
    """From an agent to road segments (m)."""
    agent_radius: float = 60.0
    """Between agents (m)."""
    map_neighbours: int = 16
    road_neighbours: int = 64
    agent_neighbours: int = 32
    past: int = 6
    """Earlier tokens that an agent attends to."""
    label_smoothing: float = 0.1
    road_weight: float = 1.0
    """Weight of the loss of the next road token."""
    closed_loop: int = 0
    """Train on the model's own rollouts (CAT-K), which take the token that ends nearest to the ground truth
    among this many most probable ones; 0: train on the true tokens."""

    def __post_init__(self) -> None:
        counts = (self.hidden, self.heads, self.map_layers, self.layers, self.bands, self.past)
        if min(*counts, self.map_neighbours, self.road_neighbours, self.agent_neighbours) < 1:
            raise ConfigError("model: expected widths, layers, heads and neighbours of 1 or more")
        if self.hidden % self.heads:
            raise ConfigError(
                f"model.hidden = {self.hidden}: expected a multiple of model.heads = {self.heads}"
            )
        if self.closed_loop < 0:
            raise ConfigError(f"model.closed_loop = {self.closed_loop}: expected 0 or more tokens")
        if not 0 <= self.label_smoothing < 1 or self.road_weight < 0:
            raise ConfigError("model: expected label_smoothing of 0 to 1, road_weight of 0 or more")
