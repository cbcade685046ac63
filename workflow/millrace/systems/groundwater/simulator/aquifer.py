"""A coastal aquifer in the CSV layout of the FEFLOW exports that the groundwater models learn from.

Tide, recharge and inland head drive a salt wedge through a heterogeneous layered aquifer; see
:mod:`millrace.systems.groundwater.simulator.density_flow` for the physics. The seasons are compressed to
some weeks so that the simulated months hold several of them. The top slice is the mean water table, whose
movement is linearised (specific yield as storage); offshore it is the sea bed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from millrace.files import atomic_directory
from millrace.systems.base import Progress
from millrace.systems.groundwater.settings import AquiferConfig
from millrace.systems.groundwater.simulator.density_flow import (
    Balance,
    DensityFlow,
    Forcing,
    Medium,
    State,
)
from millrace.systems.groundwater.simulator.mesh import (
    Mesh,
    lloyd_points,
    prism_mesh,
    triangle_graph,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SEA_SALINITY = 35_000.0
"""Mass concentration of sea water (mg/L)."""
FRESH_SALINITY = 50.0
"""Mass concentration of recharge and inland groundwater (mg/L)."""
KPA_PER_METRE = 9.8046
"""Weight of a metre of fresh water (kPa)."""

OUTPUT_INTERVAL = 0.476
"""Mean time between outputs (d)."""
SUBSTEPS = 4
"""Solver steps per mean output interval."""
TIME_STEP = OUTPUT_INTERVAL / SUBSTEPS

ONSHORE, OFFSHORE, ALONGSHORE = 420.0, 110.0, 480.0
"""Extent of the domain (m) from the shoreline inland, out to sea, and along the coast."""
SHORE_AMPLITUDE = 35.0
"""How far (m) the bays and headlands of the shoreline depart from a straight line."""
ORIGIN = np.array([334_600.0, 6_249_800.0])
"""UTM easting and northing (m) of the local origin."""
COAST_AZIMUTH = np.deg2rad(28.0)
"""Angle between the inland direction and the east."""

POROSITY = 0.03
"""Effective porosity (limestone), which makes the wedge move within a season."""
SPECIFIC_YIELD = 0.03
"""Water that the water table releases per metre and area."""
WATER_TABLE_RANGE = 1.0
"""How far (m) the water table can fall below h = 0 before the top volumes run dry."""
SPECIFIC_STORAGE = 2e-5
"""Specific storage (1/m)."""
ANISOTROPY = 0.1
"""Vertical over horizontal conductivity."""
DIFFUSIVITY = 1e-4
"""Molecular diffusivity (m²/d)."""
LATERAL_DISPERSIVITY, VERTICAL_DISPERSIVITY = 8.0, 0.3
"""Dispersivities (m) along lateral and vertical edges."""
DENSITY_RATIO = 0.025
"""Density of sea water over that of fresh water, less 1."""

MEAN_RECHARGE = 0.006
"""Seasonal recharge (m/d) in the mean of a season; storms come on top."""
STORM_GAP, STORM_DEPTH, STORM_RECESSION = 6.0, 0.024, 1.5
"""Mean time between storms (d), mean recharge of one (m), and its decay time (d)."""
INLAND_HEAD, INLAND_AMPLITUDE = 0.60, 0.40
"""Mean and seasonal amplitude (m) of the head at the inland edge."""
INTRUSION_TIME, INTRUSION_STEP = 120.0, 0.25
"""Duration and step (d) of the mean weather that lets the salt wedge form before the spin-up."""
LOG_K_STD, CORRELATION_LENGTH, LAYER_CORRELATION = 0.6, 90.0, 0.6
"""Log conductivity: standard deviation, lateral length (m), correlation of adjacent layers."""

FIELD_COLUMNS = "node,ts,time (d),X,Y,Z,slice,mass_concentration,pressure,head"
FORCING_COLUMNS = "node,mass_concentration_bc,head_bc,recharge_forcing,sea_level_forcing"

TIDES = (  # amplitude (m), period (d), phase (rad): M2, S2, N2, K1, O1
    (0.42, 0.517525, 0.3),
    (0.16, 0.5, 1.9),
    (0.08, 0.527431, 4.1),
    (0.14, 0.997270, 2.7),
    (0.09, 1.075806, 5.2),
)


@dataclass(frozen=True)
class Aquifer:
    """The discretised domain; arrays [N] follow the nodes, slice by slice from the top."""

    xyz: Floats
    """[N, 3]: projected coordinates (m)."""
    mesh: Mesh
    medium: Medium
    sea: NDArray[np.bool_]
    """[N]: whether the node touches the sea."""
    inland: NDArray[np.bool_]
    """[N]: whether the node touches the inland edge."""
    infiltration: Floats
    """[N]: local over mean recharge rate, 0 outside the onshore water table."""
    surface_area: Floats
    """[N]: onshore water-table area (m²) of the node, else 0."""

    @classmethod
    def build(cls, config: AquiferConfig) -> "Aquifer":
        """Lay out the domain of ``config``."""
        rng = np.random.default_rng(config.seed)
        plan, triangles, distance = _planform(config.nodes_per_slice, rng)
        alongshore = plan[:, 1]
        top = np.where(distance < 0, 0.04 * distance, 0.6 * distance / ONSHORE)
        base = -config.thickness - 0.01 * (ONSHORE - distance)
        elevation = top + np.linspace(0.0, 1.0, config.slices)[:, None] * (base - top)
        mesh = prism_mesh(plan, triangles, elevation)

        in_top_slice = np.repeat(np.arange(config.slices) == 0, len(plan))
        distance = np.tile(distance, config.slices)
        sea = (distance < -OFFSHORE + 1e-6) | (in_top_slice & (distance < 1e-6))
        inland = distance > ONSHORE - 1e-6
        surface = in_top_slice & ~sea & ~inland
        area = np.tile(triangle_graph(plan, triangles)[2], config.slices)
        surface_area = np.where(surface, area, 0.0)
        land_cover = 1 + 0.5 * np.sin(np.tile(alongshore, config.slices) / 90.0)
        cos, sin = np.cos(COAST_AZIMUTH), np.sin(COAST_AZIMUTH)
        projected = plan @ np.array([[cos, sin], [-sin, cos]]) + ORIGIN
        return cls(
            xyz=np.column_stack([np.tile(projected, (config.slices, 1)), mesh.z]),
            mesh=mesh,
            medium=_medium(config, mesh, plan, surface_area, rng),
            sea=sea,
            inland=inland,
            infiltration=np.where(surface, land_cover, 0.0),
            surface_area=surface_area,
        )


@dataclass(frozen=True)
class Weather:
    """Sea level (m), mean recharge rate (m/d) and head (m) at the inland edge at one time."""

    sea_level: float
    recharge: float
    inland_head: float


@dataclass(frozen=True)
class Climate:
    """What drives the aquifer at a time (d); ``storms`` [M, 2] are (day, depth in m)."""

    season: float
    storms: Floats

    @classmethod
    def draw(cls, config: AquiferConfig) -> "Climate":
        """Draw the storms of the whole simulation; more steps only append to them."""
        rng = np.random.default_rng([config.seed, 1])
        end = (config.steps + 1) * OUTPUT_INTERVAL
        storms = [(-config.spin_up, 0.0)]
        while storms[-1][0] < end:
            # More even than a Poisson process, so that months of any seed see similar weather.
            gap, depth = rng.gamma(4.0, [STORM_GAP / 4.0, STORM_DEPTH / 4.0])
            storms.append((storms[-1][0] + gap, depth))
        return cls(config.season, np.array(storms))

    def sea_level(self, time: float) -> float:
        """Sea level (m): a spring-neap cycle of mixed tides."""
        return sum(a * np.cos(2 * np.pi * time / period + phase) for a, period, phase in TIDES)

    def weather(self, time: float) -> Weather:
        """Return the weather; the inland head follows the recharge by an eighth of a season."""
        age = time - self.storms[:, 0]
        recession = np.exp(-np.maximum(age, 0.0) / STORM_RECESSION) / STORM_RECESSION
        storms = float(np.sum(self.storms[:, 1] * recession, where=age >= 0))
        phase = 2 * np.pi * time / self.season
        return Weather(
            sea_level=self.sea_level(time),
            recharge=MEAN_RECHARGE * (1 + 0.95 * np.sin(phase)) + storms,
            inland_head=INLAND_HEAD + INLAND_AMPLITUDE * np.sin(phase - np.pi / 4),
        )


@dataclass(frozen=True)
class Snapshot:
    """An output time (d), the weather and the state then, and the last solver step's balance."""

    time: float
    weather: Weather
    state: State
    balance: Balance


def write_aquifer(config: AquiferConfig, directory: Path, progress: Progress | None = None) -> None:
    """Simulate the aquifer and write ``all/NNNN.csv`` and ``forcings_corrected_all/NNNN.csv``.

    The same ``config`` writes the same bytes. The directory, new or empty, appears only when it is
    complete. ``progress`` is called with (output times written, all). Raises `DataError` if the directory
    holds something already.
    """
    with atomic_directory(Path(directory)) as partial:
        aquifer = Aquifer.build(config)
        slices = np.repeat(np.arange(1, config.slices + 1), config.nodes_per_slice)
        place = [
            f"{x:.3f},{y:.3f},{z:.4f},{s}" for (x, y, z), s in zip(aquifer.xyz, slices, strict=True)
        ]
        for index, now in enumerate(simulate(config, aquifer)):
            name = f"{index:04d}.csv"
            _write_csv(partial / "all" / name, _field_rows(aquifer, place, now, index))
            forcing = _forcing_rows(aquifer, now.weather)
            _write_csv(partial / "forcings_corrected_all" / name, forcing)
            if progress is not None:
                progress(index + 1, config.steps)


def simulate(config: AquiferConfig, aquifer: Aquifer) -> Iterator[Snapshot]:
    """Yield the ``config.steps`` output times after intrusion of the salt wedge and spin-up."""
    climate = Climate.draw(config)
    fixed = aquifer.sea | aquifer.inland
    solver = DensityFlow(aquifer.mesh, aquifer.medium, fixed, fixed)
    mean = _forcing(aquifer, Weather(0.0, MEAN_RECHARGE + STORM_DEPTH / STORM_GAP, INLAND_HEAD))
    state = solver.state(mean.head, mean.concentration)
    for _ in range(round(INTRUSION_TIME / INTRUSION_STEP)):
        state, _ = solver.step(state, mean, INTRUSION_STEP)
    step = -round(config.spin_up / TIME_STEP)
    for output in _output_steps(config.steps, climate):
        while step < output:
            step += 1
            weather = climate.weather(step * TIME_STEP)
            state, balance = solver.step(state, _forcing(aquifer, weather), TIME_STEP)
        yield Snapshot(output * TIME_STEP, weather, state, balance)


def _forcing(aquifer: Aquifer, weather: Weather) -> Forcing:
    sea_head = weather.sea_level + DENSITY_RATIO * (weather.sea_level - aquifer.mesh.z)
    return Forcing(
        head=np.where(aquifer.sea, sea_head, weather.inland_head),
        concentration=np.where(aquifer.sea, 1.0, FRESH_SALINITY / SEA_SALINITY),
        source=weather.recharge * aquifer.infiltration * aquifer.surface_area,
        source_concentration=FRESH_SALINITY / SEA_SALINITY,
    )


def _output_steps(count: int, climate: Climate) -> list[int]:
    """Of two adjacent solver steps per mean interval the one with the higher sea level."""
    pairs = [(step, step + 1) for step in range(SUBSTEPS, SUBSTEPS * (count + 1), SUBSTEPS)]
    return [max(pair, key=lambda step: climate.sea_level(step * TIME_STEP)) for pair in pairs]


def _planform(n_nodes: int, rng: np.random.Generator) -> tuple[Floats, Ints, Floats]:
    """Triangulate the planform: local points [P, 2], triangles [M, 3], distance to the shore [P]."""
    points = lloyd_points((ONSHORE + OFFSHORE, ALONGSHORE), n_nodes, rng) - [OFFSHORE, 0.0]
    distance = points[:, 0].copy()
    # Bays and headlands fade out towards the straight inland edge.
    bend = SHORE_AMPLITUDE * (ONSHORE - distance) / (ONSHORE + OFFSHORE)
    points[:, 0] += bend * np.sin(2 * np.pi * points[:, 1] / ALONGSHORE)
    triangles = Delaunay(points).simplices.astype(np.int64)
    # The convex hull closes the bays of the seaward edge with slivers that are no part of it.
    in_domain = np.any(distance[triangles] > -OFFSHORE, axis=1)
    return points, triangles[in_domain], distance


def _medium(
    config: AquiferConfig, mesh: Mesh, plan: Floats, surface_area: Floats, rng: np.random.Generator
) -> Medium:
    """Conductivity: a log-normal field, smooth within a layer and correlated between layers."""
    log_k = np.empty((config.slices, len(plan)))
    previous = _smooth_field(plan, rng)
    for layer in log_k:
        fresh = _smooth_field(plan, rng)
        previous = LAYER_CORRELATION * previous + np.sqrt(1 - LAYER_CORRELATION**2) * fresh
        layer[:] = previous
    k = config.conductivity * np.exp(LOG_K_STD * log_k.ravel())
    first, second = k[mesh.edges].T
    on_edge = 2 * first * second / (first + second) * np.where(mesh.vertical, ANISOTROPY, 1.0)
    return Medium(
        conductance=on_edge * mesh.shape_factor,
        diffusion=POROSITY * DIFFUSIVITY * mesh.shape_factor,
        dispersivity=np.where(mesh.vertical, VERTICAL_DISPERSIVITY, LATERAL_DISPERSIVITY),
        # The zone through which the water table moves is wet at h = 0 and exchanges its salt.
        pore_volume=POROSITY * mesh.volume + SPECIFIC_YIELD * WATER_TABLE_RANGE * surface_area,
        storage=SPECIFIC_STORAGE * mesh.volume + SPECIFIC_YIELD * surface_area,
        density_ratio=DENSITY_RATIO,
    )


def _smooth_field(points: Floats, rng: np.random.Generator, waves: int = 64) -> Floats:
    """Gaussian random field of unit variance at ``points`` [P, 2], from random Fourier features."""
    wave_vector = rng.standard_normal((2, waves)) / CORRELATION_LENGTH
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.sqrt(2 / waves) * np.cos(points @ wave_vector + phase).sum(axis=1)


def _write_csv(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def _field_rows(aquifer: Aquifer, place: Sequence[str], now: Snapshot, index: int) -> Iterator[str]:
    """Rows of a file of fields, header first."""
    yield FIELD_COLUMNS
    head, salt = now.state.head, SEA_SALINITY * now.state.concentration
    pressure = KPA_PER_METRE * (head - aquifer.mesh.z)
    for node, (p, c, k, h) in enumerate(zip(place, salt, pressure, head, strict=True), 1):
        yield f"{node},{index},{now.time:.4f},{p},{c:.4f},{k:.6f},{h:.6f}"


def _forcing_rows(aquifer: Aquifer, weather: Weather) -> Iterator[str]:
    """Rows of a forcing file, header first; an empty cell: the node has no such boundary condition."""
    yield FORCING_COLUMNS
    heads = _forcing(aquifer, weather).head
    for node, (sea, inland, factor) in enumerate(
        zip(aquifer.sea, aquifer.inland, aquifer.infiltration, strict=True)
    ):
        salt = f"{SEA_SALINITY if sea else FRESH_SALINITY:.1f}" if sea or inland else ""
        head = f"{heads[node]:.6f}" if sea or inland else ""
        recharge = f"{weather.recharge * factor:.8f}" if factor else ""
        level = f"{weather.sea_level:.6f}" if sea else ""
        yield f"{node + 1},{salt},{head},{recharge},{level}"
