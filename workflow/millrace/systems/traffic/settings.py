"""Blocks of the configuration that belong to traffic, without torch."""

import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import Count, Seed, Settings, Share, option
from millrace.systems.settings import DatasetSettings, Parts

_GOLDEN = 0.6180339887
Rate = Annotated[float, Field(ge=0, le=10_000, json_schema_extra={"unit": "1/min"})]
Vocabulary = Annotated[int, Field(ge=1, le=32_767)]
"""Tokens are numbers of 16 bits."""


class TrafficConfig(Settings):
    """Cars, cyclists and pedestrians at intersections with traffic lights.

    Intelligent drivers, lane changes, waiting queues. Each town is another intersection with three or four
    arms.
    """

    towns: Count = 6
    """Intersections, one recording each."""
    scenes: Count = 40
    """Scenarios of each; more to train on."""
    cars_per_minute: Rate = 4.5
    """Arrivals at each arm."""
    cyclists_per_minute: Rate = 1.0
    """The same of cyclists."""
    pedestrians_per_minute: Rate = 2.0
    """Of the whole town, besides those who cross at the lights."""
    seed: Seed = 0
    """Of towns and traffic: other towns of the same kind."""


class SumoConfig(Settings):
    """Random networks of `netgenerate`, and traffic of `sumo` in steps of 0.1 s.

    With traffic lights, bicycle lanes, pavements and crossings (EIDM, lanes in parts of 0.8 m,
    pedestrians in stripes). Needs the packages of `envs/sumo.lock`.
    """

    towns: Count = 4
    """Networks, each with two or more intersections with traffic lights."""
    scenes: Count = 18
    """Scenarios around each intersection, one after the other; more to train on."""
    vehicles_per_minute: Rate = 3.0
    """Cars, vans, trucks and buses that depart at each end of the network; above some 4 queues grew in
    trials."""
    cyclists_per_minute: Rate = 1.0
    """The same of cyclists."""
    pedestrians_per_minute: Rate = 2.0
    """Departures on each road that ends outside."""
    seed: Seed = 0
    """Of towns and traffic: other towns of the same kind."""


class TokenConfig(Settings):
    """Vocabularies, which are built from the training scenarios alone, and what of a scenario is kept.

    Which split a scenario belongs to follows from its name, so that more scenarios never move others; see
    `splits` for others. Where names end with `_` and a number, scenarios follow on each other: neighbours
    share agents, and go into the same split in blocks.
    """

    motion: Vocabulary = 2048
    """Largest number of motion tokens of each class of agents; fewer if these represent all that was
    observed."""
    road: Vocabulary = 1024
    """Largest number of road tokens."""
    tolerance: float = option(0.05, gt=0, unit="m")
    """What is nearer than this is one token: radius of a disk of k-disks. Larger for fewer tokens."""
    margin: float = option(80.0, gt=0, unit="m")
    """The map reaches this far beyond what was observed up to the current step; larger for faster
    traffic."""
    max_agents: Count = 64
    """Agents of a scenario, those nearest to its middle."""
    train: Share = 0.7
    """Share of the scenarios for training, chosen by their names."""
    validation: Share = 0.15
    """Share for validation; the test split takes the rest."""
    block: Count = option(5, unit="scenarios")
    """Scenarios of a recording that follow on each other, such as `town00_005` to `town00_009`, and stay in
    one split; one is left out where the next block is in another split. Intervals of test scores are drawn
    from blocks. 1 if all scenarios are independent of each other."""
    seed: Seed = 0
    """Of the split and of the picking of tokens."""
    splits: Literal["by_name", "official"] = "by_name"
    """`by_name`: shares of the scenarios, by their names; `official`: as Waymo, Argoverse 2 and INTERACTION
    say by their folders, or `splits.csv` beside tracks. Test sets without futures are left out; official
    validation is then divided into validation and test."""

    def model_post_init(self, _: Any) -> None:
        """Check that something is left to test."""
        if self.train + self.validation >= 1:
            raise ValueError("expected train and validation that leave a test split")

    def block_of(self, name: str) -> tuple[str, int]:
        """Recording and number of the block that a scenario belongs to."""
        recording, line, number = name.rpartition("_")
        if self.block == 1 or not (line and number.isascii() and number.isdecimal()):
            return name, 0
        return recording, int(number) // self.block

    def split(self, name: str) -> int | None:
        """Split of a scenario, an index into `millrace.data.split.SPLITS`; None: it is left out."""
        return self.placed(name, (self.train, self.train + self.validation))

    def placed(self, name: str, edges: Sequence[float], first: int = 0) -> int | None:
        """Which of the parts between shares a scenario falls into, from ``first``; None: between blocks."""
        recording, block = self.block_of(name)
        part = self._part(recording, block, edges)
        is_last = recording != name and (int(name.rpartition("_")[2]) + 1) % self.block == 0
        follows = is_last and self._part(recording, block + 1, edges) != part
        return None if follows else first + part

    def _part(self, recording: str, block: int, edges: Sequence[float]) -> int:
        # Steps of the golden ratio spread the blocks of each recording evenly over the splits.
        start = zlib.crc32(f"{self.seed}/{recording}".encode()) / 2**32
        share = (start + block * _GOLDEN) % 1
        return sum(share >= edge for edge in edges)

    def written(self) -> dict[str, Any]:
        """Plain values; a key of a later version only where it is not as before, for the digest's sake."""
        values = self.model_dump()
        return (
            values if self.splits != "by_name" else {k: values[k] for k in values if k != "splits"}
        )


class TrafficDataset(DatasetSettings):
    """Recorded traffic, as tracks and maps or in the files of a public data set."""

    tokens: TokenConfig = TokenConfig()
    """Vocabularies, and what of a scenario is kept."""
    parts: Parts = None
    """Jobs that extract the samples; what they make does not depend on their number. null: one for every
    16 GiB of raw files."""


class ScenarioConfig(Settings):
    """Samples of traffic: a scenario, of which 1.1 s are given and the next 8 s are wanted."""

    buckets: Count = 4
    """Groups of scenarios of about the same size; a batch is of one group, and padded to its largest. More
    for many scenarios of very different sizes."""
    shuffle_map: bool = False
    """Give each scenario the map of another one, to see what the map is worth."""


class SmartConfig(Settings):
    """SMART: predicts the next half second of every agent as one token out of the vocabulary."""

    hidden: Count = 128
    """Channels; 64, 128, 256, 512 make 2, 7, 27 and 104 million parameters with full vocabularies."""
    heads: Count = 8
    """Heads of each attention; a divisor of `hidden`."""
    map_layers: Count = 3
    """Layers of the map's encoder."""
    layers: Count = 6
    """Layers of the decoder: own past, map, other agents."""
    bands: Count = 64
    """Learned frequencies of each relation between two places."""
    map_radius: float = option(10.0, gt=0, unit="m")
    """Road segments attend to each other within this distance."""
    road_radius: float = option(30.0, gt=0, unit="m")
    """Agents attend to road segments within this distance."""
    agent_radius: float = option(60.0, gt=0, unit="m")
    """Agents attend to each other within this distance."""
    map_neighbours: Count = 16
    """Nearest road segments of a road segment; fewer for speed."""
    road_neighbours: Count = 64
    """Nearest road segments of an agent."""
    agent_neighbours: Count = 32
    """Nearest other agents of an agent."""
    past: Count = option(6, unit="tokens")
    """Earlier tokens that an agent attends to."""
    label_smoothing: float = option(0.1, ge=0, lt=1)
    """Share of the target that is spread over all tokens."""
    road_weight: float = option(1.0, ge=0)
    """Weight of the loss of the next road token."""
    closed_loop: int = option(0, ge=0, le=32_767, unit="tokens")
    """Train on the model's own rollouts, which take the token that ends nearest to the ground truth among
    this many most probable ones (CAT-K); 0: train on the true tokens. 32 in a second stage, with
    `train.init_from` and a small `learning_rate`."""

    def model_post_init(self, _: Any) -> None:
        """Check that heads divide the channels."""
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden}: expected a multiple of heads = {self.heads}")
