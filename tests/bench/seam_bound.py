"""How much more any forecast from block means errs at seams than inside of blocks.

    python tests/bench/seam_bound.py results/data/globe/blocks.h5

The best linear forecast of fine cells from the means of all blocks (kriging with block data: Chilès &
Delfiner 2012, Geostatistics, sec. 3.5) has an error that follows from the covariance of the field alone,
here isotropic, of the training anomalies. For a Gaussian field no forecast has a smaller one. Cells at
seams have a larger share of neighbours of which only the mean of another block tells. Half a minute for the
demo, on one core.
"""

import argparse

import h5py
import numpy as np
from scipy.special import eval_legendre

from millrace.systems.downscaling.spectrum import largest_degree, power_spectrum

_TIMES = 24


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("blocks", help="blocks.h5 of a small grid")
    with h5py.File(parser.parse_args().blocks) as file:
        area, centre = (file["geometry"][k][()].astype(float) for k in ("area", "centre"))
        neighbours, (train, _, test) = file["neighbours/0"][()], file["split"][()]
        n_blocks = file["coarse"].shape[1]
        mean = file["fine"][slice(*train, 4), :, 0].mean(axis=0, dtype=float)
        known, unseen = (
            file["fine"][np.linspace(begin, end - 1, _TIMES).astype(int), :, 0] - mean
            for begin, end in (train, test)
        )
    block = np.repeat(np.arange(n_blocks), len(area) // n_blocks)
    at_seam = (block[neighbours] != block[:, None]).any(axis=1)
    share = area / np.bincount(block, area)[block]
    of_cell_NM, of_block_MM, variance = covariances(known, centre, area, share, n_blocks)
    weights_NM = np.linalg.solve(of_block_MM, of_cell_NM.T).T
    expected = variance - (weights_NM * of_cell_NM).sum(axis=1)
    means = np.add.reduceat(unseen * share, np.arange(0, len(area), len(area) // n_blocks), axis=1)
    found = np.square(means @ weights_NM.T - unseen).mean(axis=0)
    print("best linear forecast      RMSE   at seams / inside")
    for name, squares in (("by the covariance", expected), ("on test fields", found)):

        def rmse(cells, squares=squares):
            return np.sqrt(np.average(squares[cells], weights=area[cells]))

        every = np.ones_like(at_seam)
        print(f"{name:20} {rmse(every):9.3f}   {rmse(at_seam) / rmse(~at_seam):.3f}")


def covariances(fields, centre, area, share, n_blocks):
    """Of cells with block means, of block means, and the variance of a cell, from the fields' spectrum."""
    degree = np.arange(largest_degree(len(area)) + 1)
    power = power_spectrum(fields, centre, area, degree[-1]).mean(axis=0)
    cosine = np.linspace(-1, 1, 20001)
    terms = (2 * degree + 1) / (4 * np.pi) * power
    covariance = sum(term * eval_legendre(n, cosine) for n, term in enumerate(terms))
    # What the spectrum does not resolve is taken for independent from cell to cell.
    variance = np.average(np.square(fields).mean(axis=0), weights=area)
    rest = max(0.0, variance - covariance[-1])
    blocks = np.split(np.arange(len(area)), n_blocks)
    of_cell_NM = np.empty((len(area), n_blocks))
    for m, own in enumerate(blocks):
        between = np.interp((centre @ centre[own].T).ravel(), cosine, covariance)
        of_cell_NM[:, m] = between.reshape(len(area), -1) @ share[own]
        of_cell_NM[own, m] += rest * share[own]
    of_block_MM = np.array([share[own] @ of_cell_NM[own] for own in blocks])
    return of_cell_NM, (of_block_MM + of_block_MM.T) / 2, covariance[-1] + rest


if __name__ == "__main__":
    main()
