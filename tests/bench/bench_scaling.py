"""Coverage of the intervals of the scaling analysis over 1,000 synthetic studies each."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rows import Row, run

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "scaling"))
from synthetic import LINKS, SIZES, all_reduce, series

from millrace.scaling import communication, fits
from millrace.scaling.factors import compare, measure

TRIALS, GOAL = 1000, 0.93


def fit_coverage(noise: float) -> dict[str, float]:
    random = np.random.default_rng(1)
    p = np.repeat([1.0, 2, 4, 8], 3)
    truth = np.array([0.05, 0.002])
    x = 100 * p / (1 + truth[0] * (p - 1) + truth[1] * p * (p - 1))
    x = x * (1 + noise * random.standard_normal((TRIALS, len(p))))
    _, low, high, _, _ = fits.estimate(fits.USL, p, x)
    held = ((low <= truth) & (truth <= high)).mean(axis=0)
    size, ranks = np.repeat(np.array(SIZES, dtype=float), 3), 4.0
    seconds = all_reduce(size, ranks, "inter") * (
        1 + noise * random.standard_normal((TRIALS, len(size)))
    )
    _, low, high = communication.estimate(size, np.full(len(size), ranks), seconds)
    links = np.array(LINKS["inter"])[:, None]
    held_links = ((low <= links) & (links <= high)).mean(axis=1)
    return dict(zip(("sigma", "kappa", "alpha", "beta"), (*held, *held_links), strict=True))


def factor_coverage(noise: float, run_noise: float) -> dict[str, float]:
    held = dict.fromkeys(("efficiency", "balance", "communication"), 0)
    # 2 ms + 64 x 1 ms on one rank; the slowest of four computes 18 ms x 1.2, then waits 3 ms.
    truth = {"efficiency": 66 / (4 * 24.6), "balance": 1.05 / 1.2, "communication": 21.6 / 24.6}
    for trial in range(TRIALS):
        options = {"seed": trial, "noise": noise / 2, "rank_noise": noise, "run_noise": run_noise}
        base = measure(series(["n1_gpu1"], **options), 400, trial)
        four = series(["n1_gpu4"], slow=[1, 1, 1, 1.2], communication_s=3e-3, **options)
        factors = compare(measure(four, 400, trial), base, "measured")
        for name, value in truth.items():
            quantity = getattr(factors, name)
            held[name] += quantity.low <= value <= quantity.high
    return {name: count / TRIALS for name, count in held.items()}


def coverage(_: int) -> Iterator[Row]:
    """Shares of trials whose interval holds the truth, of all quantities at two levels of noise."""
    shares = [
        share
        for noise in (0.01, 0.02)
        for made in (fit_coverage(noise), factor_coverage(noise, 0), factor_coverage(0.005, noise))
        for share in made.values()
    ]
    what = f"scaling study, worst of {len(shares)} 95 % intervals holds the truth"
    yield Row(what, "%", [100 * min(shares)], goal=100 * GOAL, larger=True)


if __name__ == "__main__":
    run({"scaling": coverage}, __doc__)
