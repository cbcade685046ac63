"""A stand-in for ICON's module `comin`: one rank of a run that is cut into several, with halos.

Arrays are those of ICON: (nproma, nblks, 1, 1, 1) in Fortran order, padded at the end, in double precision.
Access to a variable outside of the entry points it was asked for is an error, as it is in ICON.
"""

import types

import numpy as np

NPROMA = 32


class Variable:
    """What `var_get` gives: `numpy.asarray` of it is the memory of the model."""

    def __init__(self, model, name, entry_points):
        self.model, self.name, self.entry_points = model, name, entry_points

    def __array__(self, dtype=None, copy=None):
        assert self.model.at in self.entry_points, (
            f"{self.name} is not to be had at {self.model.at}"
        )
        return self.model.memory[self.name]


class Comin:
    EP_SECONDARY_CONSTRUCTOR, EP_ATM_WRITE_OUTPUT_BEFORE, EP_DESTRUCTOR = 1, 20, 30
    COMIN_FLAG_READ = 2

    def __init__(self, rank, ranks, grid, arguments):
        self.rank, self.at, self.callbacks, self.memory = rank, None, {}, {}
        self.arguments = arguments
        owner = np.arange(len(grid.area_N)) * ranks // len(grid.area_N)
        own = owner == rank
        halo = np.zeros_like(own)
        halo[grid.neighbours_N3[own].ravel()] = True
        halo &= ~own
        # ICON sorts neither owned cells nor the halo by their numbers.
        rng = np.random.default_rng(rank)
        local = np.concatenate([rng.permutation(np.flatnonzero(own)), np.flatnonzero(halo)])
        self.local, self.n_halo = local, int(halo.sum())
        level = (~own[local]).astype(np.int32)
        self.cells = types.SimpleNamespace(
            ncells=len(local),
            glb_index=local + 1,
            decomp_domain=blocked(level, fill=-1),
        )

    def current_get_plugin_info(self):
        return types.SimpleNamespace(args=self.arguments)

    def descrdata_get_domain(self, domain):
        assert domain == 1
        return types.SimpleNamespace(cells=self.cells)

    def parallel_get_host_mpi_rank(self):
        return self.rank

    def register_callback(self, entry_point):
        def register(function):
            self.callbacks[entry_point] = function
            return function

        return register

    def var_get(self, entry_points, name, flag):
        assert self.at == self.EP_SECONDARY_CONSTRUCTOR, "only in the secondary constructor"
        assert flag == self.COMIN_FLAG_READ
        return Variable(self, name[0], entry_points)

    def current_get_datetime(self):
        return self.time

    def call(self, entry_point):
        self.at = entry_point
        self.callbacks[entry_point]()
        self.at = None

    def output(self, time, **fields):
        """One output time of the model; fields are global, [N]."""
        self.time = time
        for name, values in fields.items():
            local = values[self.local].copy()
            local[len(local) - self.n_halo :] = -999.0  # not exchanged yet: nobody may read it
            self.memory[name] = blocked(local, fill=np.nan)[..., None, None, None]
        self.call(self.EP_ATM_WRITE_OUTPUT_BEFORE)


def blocked(values, fill):
    """Local values in blocks of NPROMA, Fortran order, [nproma, nblks]."""
    blocks = -(-len(values) // NPROMA)
    padded = np.full(blocks * NPROMA, fill, dtype=np.result_type(values, type(fill)))
    padded[: len(values)] = values
    return padded.reshape((NPROMA, blocks), order="F")
