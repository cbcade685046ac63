"""Mean weather by day of the year and hour of the day, of the training period alone.

It is the climatology of WeatherBench 2: all years together, smoothed over a window of 61 days whose weights
fall linearly to its ends; 31 December counts for day 366 of years that have none, and years that are not
whole count with the days that they have. Source: `compute_hourly_stat` in `weatherbench2/utils.py` of
github.com/google-research/weatherbench2.

Shape suffixes: T times of the training period, N times that are asked for, C channels (also V), P cells,
I x J cells.
"""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from millrace.systems.weather.dataset import WeatherDataset

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAYS = 366
WINDOW = 61
"""Days of the window."""
MEMORY = 512 << 20
"""Bytes of means that are kept; those of other times are made when they are asked for."""
_READ = 128 << 20
"""Bytes of states that are read at once."""


def window_weights() -> Floats:
    """Weight of each day of the window; the middle one has the largest, the first and the last none."""
    half = WINDOW // 2
    return 1 - np.abs(np.arange(-half, half + 1)) / half


def day_and_hour(time_T: Floats) -> tuple[Ints, Ints, Ints]:
    """Day of the year (from 1), minute of the day, and days of the year, of days since 1970."""
    minutes = np.rint(np.asarray(time_T) * 1440).astype("M8[m]")
    date, year = minutes.astype("M8[D]"), minutes.astype("M8[Y]")
    day = (date - year.astype("M8[D]")).astype(np.int64) + 1
    length = ((year + 1).astype("M8[D]") - year.astype("M8[D]")).astype(np.int64)
    return day, (minutes - date.astype("M8[m]")).astype(np.int64), length


class Climatology:
    """Mean state of the training period at any time.

    ``times`` are all that will be asked for, in days since 1970 and in this order: states of the training
    period are read once for as many of them as fit into ``memory`` bytes. If it does not hold each day of
    the year at each hour that the dataset has, the mean is that over the whole period, as `about` says.
    """

    def __init__(self, dataset: WeatherDataset, times: Floats, memory: int = MEMORY) -> None:
        self._dataset = dataset
        begin, end = map(int, dataset.split_ranges[0])
        self._begin = begin
        self._day_T, self._hour_T, self._length_T = day_and_hour(dataset.time[begin:end])
        days = np.concatenate([self._day_T, np.where(self._last_of_short_year(), DAYS, 0)])
        hours = np.tile(self._hour_T, 2)
        every = np.unique(day_and_hour(dataset.time)[1])
        held = {(d, h) for d, h in zip(days.tolist(), hours.tolist(), strict=True) if d}
        missing = DAYS * len(every) - len(held)
        self.by_day = not missing
        self.about = (
            f"mean of the training period by day of the year and hour, smoothed over {WINDOW} days as in "
            "WeatherBench 2"
            if self.by_day
            else "mean of the whole training period, which does not hold each day of the year at each hour "
            f"({missing} of {DAYS * len(every)} are missing)"
        )
        self._wanted = list(dict.fromkeys(_keys(times)))
        self._known: OrderedDict[tuple[int, int], NDArray[np.float32]] = OrderedDict()
        state = 4 * len(dataset.variables) * int(np.prod(dataset.shape))
        self._room, self._at_once = max(1, memory // state), max(1, _READ // state)

    def at(self, time_N: Floats) -> Floats:
        """Mean states in physical units, [N, C, I, J]."""
        if not self.by_day:
            mean = self._dataset.climatology()
            return np.broadcast_to(mean, (len(time_N), *mean.shape))
        keys = _keys(time_N)
        found = []
        for key in keys:
            if key not in self._known:
                self._make(key)
            found.append(self._known[key])
        return np.array(found, dtype=np.float64)

    def _last_of_short_year(self) -> NDArray[np.bool_]:
        return (self._day_T == 365) & (self._length_T == 365)

    def _make(self, key: tuple[int, int]) -> None:
        """Means of this and of the next times that will be asked for."""
        at = self._wanted.index(key) if key in self._wanted else 0
        ahead = [one for one in self._wanted[at:] if one not in self._known]
        keys = list(dict.fromkeys([key, *ahead]))[: self._room]
        weight_NT = self._weights(np.array(keys))
        used = np.flatnonzero(weight_NT.any(axis=0))
        cells, channels = len(self._dataset.core_nodes[0]), len(self._dataset.variables)
        total_NPV = np.zeros((len(keys), cells, channels))
        for first in range(0, len(used), self._at_once):
            some = used[first : first + self._at_once]
            state_PTV = self._dataset.core_states(0, self._begin + some).double().cpu().numpy()
            total_NPV += np.einsum("nt,ptv->npv", weight_NT[:, some], state_PTV, optimize=True)
        physical = total_NPV * self._dataset.std + self._dataset.mean
        fields = np.moveaxis(physical, -1, 1).reshape(len(keys), channels, *self._dataset.shape)
        self._known.update(zip(keys, fields.astype(np.float32), strict=True))
        while len(self._known) > self._room:
            self._known.popitem(last=False)

    def _weights(self, keys_N2: Ints) -> Floats:
        """Weight of each state of the training period in each mean, [N, T]; they add up to 1."""
        weight = window_weights()

        def of(day_T: Ints) -> Floats:
            apart = (day_T - keys_N2[:, :1] + WINDOW // 2) % DAYS
            return np.where(apart < WINDOW, weight[np.minimum(apart, WINDOW - 1)], 0.0)

        made = of(self._day_T)
        made += of(np.full_like(self._day_T, DAYS)) * self._last_of_short_year()
        made *= self._hour_T == keys_N2[:, 1:]
        return made / made.sum(axis=1, keepdims=True)


def _keys(time_N: Floats) -> list[tuple[int, int]]:
    day, hour, _ = day_and_hour(np.asarray(time_N))
    return list(zip(day.tolist(), hour.tolist(), strict=True))
