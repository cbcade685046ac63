r"""Variable-density groundwater flow and salt transport on a graph of control volumes.

Unknowns are the equivalent freshwater head h (m) and the relative salinity c (0 fresh, 1 sea).
With the Boussinesq approximation (density enters the buoyancy only; Diersch & Kolditz 2002,
doi:10.1016/S0309-1708(02)00063-5) and the density ratio eps = (rho_sea - rho_fresh) / rho_fresh,

.. math::

    q = -K (\nabla h + \varepsilon c\, e_z), \qquad
    S \partial_t h + \nabla\cdot q = Q, \qquad
    \partial_t (w c) + \nabla\cdot (q c - \phi D \nabla c) = Q c_Q,

where w is the water held per volume, which changes by exactly what the flow equation stores. Both
equations are discretised with two-point fluxes, so that the same code serves a 2-D section and a
3-D aquifer. Transport is central where the cell Péclet number is at most 2 and upwind elsewhere
(hybrid scheme, Spalding 1972), which keeps c within the bounds of its data.

Any consistent units of length and time will do; ``m`` and ``d`` below stand for them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import diags_array
from scipy.sparse.linalg import SuperLU, splu

from millrace.systems.groundwater.simulator.mesh import Mesh

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_NO_PIVOTS: dict[str, Any] = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}


@dataclass(frozen=True)
class Medium:
    """What the volumes and faces are made of; arrays [E] follow the edges, [N] the nodes."""

    conductance: Floats
    """[E]: conductivity times the shape factor of the face (m²/d)."""
    diffusion: Floats
    """[E]: porosity times molecular diffusivity times the shape factor (m³/d)."""
    dispersivity: Floats
    """[E]: mechanical dispersion along the edge is this length (m) times the Darcy flux."""
    pore_volume: Floats
    """[N]: water held at h = 0 (m³)."""
    storage: Floats
    """[N]: water taken up per metre of head (m²): specific storage times volume, and specific yield times
    area at a (linearised) water table."""
    density_ratio: float = 0.025
    """eps, 0.025 for sea water."""


@dataclass(frozen=True)
class Forcing:
    """Boundary values and sources of one step, arrays [N]."""

    head: Floats
    """Equivalent freshwater head (m), read at the nodes of fixed head only."""
    concentration: Floats
    """Relative salinity, read at the nodes of fixed concentration only."""
    source: Floats
    """Water that enters (m³/d), >= 0."""
    source_concentration: float = 0.0
    """Relative salinity of that water."""


@dataclass(frozen=True)
class State:
    """Heads (m), relative salinities and water volumes (m³) of all nodes, each [N]."""

    head: Floats
    concentration: Floats
    water: Floats


@dataclass(frozen=True)
class Balance:
    """Volumes (m³) that one step moved; solute in m³ of sea water.

    ``*_in`` is the net inflow over boundaries and from sources, ``*_stored`` the change inside and
    ``*_error`` their difference relative to the sum of the magnitudes of all contributions.
    """

    water_in: float
    water_stored: float
    water_error: float
    solute_in: float
    solute_stored: float
    solute_error: float


class DensityFlow:
    """Solver for one mesh and medium.

    Parameters
    ----------
    mesh, medium
        Geometry and properties.
    fixed_head, fixed_concentration : bool array [N]
        Dirichlet nodes. A node of fixed head must also fix the concentration, because the salinity
        of the water that it lets in would be undefined otherwise.

    Raises
    ------
    ValueError
        If a node fixes the head but not the concentration.
    """

    def __init__(self, mesh: Mesh, medium: Medium, fixed_head: Flags, fixed_concentration: Flags):
        if np.any(fixed_head & ~fixed_concentration):
            raise ValueError("a node of fixed head must fix the concentration as well")
        self.mesh, self.medium = mesh, medium
        self.fixed_head, self.fixed_concentration = fixed_head, fixed_concentration
        n_edges = len(mesh.edges)
        row = np.repeat(np.arange(n_edges), 2)

        def edge_operator(first: float, second: float) -> sparse.csr_array:
            entries = (np.tile([first, second], n_edges), (row, mesh.edges.ravel()))
            return sparse.csr_array(entries, shape=(n_edges, len(mesh.z)))

        self._difference, self._average = edge_operator(1.0, -1.0), edge_operator(0.5, 0.5)
        self._divergence = self._difference.T.tocsr()
        self._buoyancy = medium.density_ratio * (self._difference @ mesh.z)
        self._flow_matrix = self._divergence @ diags_array(medium.conductance) @ self._difference
        self._flow_factors: dict[float, SuperLU] = {}
        # Unknowns of the transport in an order in which factors stay sparse: to find one takes longer than
        # to factorise a matrix in it.
        free = np.flatnonzero(~fixed_concentration)
        pattern = (self._divergence @ self._difference).tocsr()[free][:, free]
        shifted = pattern + diags_array(np.ones(len(free)))
        found = splu(shifted.tocsc(), permc_spec="MMD_AT_PLUS_A", **_NO_PIVOTS)
        self._free = free[np.argsort(found.perm_c)]
        self._difference_free = self._difference[:, self._free].tocsr()
        self._average_free = self._average[:, self._free].tocsr()
        self._divergence_free = self._divergence[self._free]

    def state(self, head: Floats, concentration: Floats) -> State:
        """Return a state whose water volumes agree with ``head``."""
        return State(head, concentration, self.medium.pore_volume + self.medium.storage * head)

    def flux(self, head: Floats, concentration: Floats) -> Floats:
        """Darcy flux [E] (m³/d) from the first to the second node of every edge."""
        drop = self._difference @ head + self._buoyancy * (self._average @ concentration)
        return self.medium.conductance * drop

    def step(self, state: State, forcing: Forcing, dt: float) -> tuple[State, Balance]:
        """Advance by ``dt`` (d): implicit flow with the old density, then implicit transport.

        The transport step uses the fluxes that the flow step balanced, so that water and solute are
        conserved to the accuracy of the linear solver and a uniform salinity stays uniform.
        """
        head = self._solve_flow(state, forcing, dt)
        flux = self.flux(head, state.concentration)
        water = state.water + self.medium.storage * (head - state.head)
        mixing = self._mixing(flux)

        def solute_flux(c: Floats) -> Floats:
            return flux * (self._average @ c) + mixing * (self._difference @ c)

        c = np.where(self.fixed_concentration, forcing.concentration, 0.0)
        right = state.water * state.concentration / dt
        right += forcing.source * forcing.source_concentration
        given = right[self._free] - self._divergence_free @ solute_flux(c)
        # Diagonally dominant by columns, by the upstream values: it needs no pivots.
        operator = self._difference_free.copy()
        on_edges = np.diff(operator.indptr)
        operator.data *= np.repeat(mixing, on_edges)
        operator.data += self._average_free.data * np.repeat(flux, on_edges)
        matrix = diags_array((water / dt)[self._free]) + self._divergence_free @ operator
        c[self._free] = splu(matrix.tocsc(), permc_spec="NATURAL", **_NO_PIVOTS).solve(given)
        new = State(head, c, water)
        outflow = self._divergence @ solute_flux(c)
        return new, self._balance(state, new, forcing, flux, outflow, dt)

    def _mixing(self, flux: Floats) -> Floats:
        """Solute that an edge exchanges per difference of salinity, [E] (m³/d)."""
        speed = np.abs(flux)
        mixing = self.medium.diffusion + self.medium.dispersivity / self.mesh.length * speed
        # |flux| / 2 turns the central mean into the upstream value; it takes over at Péclet > 2.
        return np.maximum(mixing, 0.5 * speed)

    def _solve_flow(self, state: State, forcing: Forcing, dt: float) -> Floats:
        free = ~self.fixed_head
        drive = self.medium.conductance * self._buoyancy * (self._average @ state.concentration)
        right = self.medium.storage * state.head / dt + forcing.source - self._divergence @ drive
        head = np.where(self.fixed_head, forcing.head, 0.0)
        right -= self._flow_matrix @ head
        if dt not in self._flow_factors:
            self._flow_factors.clear()
            matrix = (self._flow_matrix + diags_array(self.medium.storage / dt)).tocsr()
            self._flow_factors[dt] = splu(matrix[free][:, free].tocsc())
        head[free] = self._flow_factors[dt].solve(right[free])
        return head

    def _balance(
        self, old: State, new: State, forcing: Forcing, flux: Floats, outflow: Floats, dt: float
    ) -> Balance:
        def account(free: Flags, stored: Floats, source: Floats, out: Floats) -> list[float]:
            into = dt * np.concatenate([source[free], out[~free]])
            total_in, total_stored = float(into.sum()), float(stored[free].sum())
            scale = max(np.abs(into).sum() + np.abs(stored[free]).sum(), 1e-300)
            return [total_in, total_stored, float(abs(total_in - total_stored) / scale)]

        water = account(
            ~self.fixed_head, new.water - old.water, forcing.source, self._divergence @ flux
        )
        solute = account(
            ~self.fixed_concentration,
            new.water * new.concentration - old.water * old.concentration,
            forcing.source * forcing.source_concentration,
            outflow,
        )
        return Balance(*water, *solute)
