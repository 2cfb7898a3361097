"""Can planted stencils be counted? A simulation with known answers, of the estimator in :mod:`lsbook.chance`.

A network's layer is a mixture: a share of its kernels are stencils of the dictionary plus white noise, the others are
white noise, as the null rate supposes. (The others of a real layer are not, so its estimate is only as good as its null
model.) The signal-to-noise ratio is the length of the stencil over the root mean square length of the noise. For each
share and ratio many experiments of some networks are simulated; each gives an estimate of the share with a 95 %
interval and a p-value. ``python -m experiments.planted`` writes results/planted.json.

What the numbers mean: ``coverage`` is the part of the experiments whose interval holds the true share, ``detected`` the
part with p < 0.05 (for the share 0 that is the rate of false positives), ``power`` the part of planted kernels that
match, which the estimator takes to be 1. Where it is less, the share is underestimated by that factor, and coverage
fails: :func:`reliable_from` says from which ratio on it does not. ``by_layer_size`` repeats the share 0 for smaller
layers: a share of few kernels is coarse and skewed, and Student's t is not meant for that.
"""

import json
from pathlib import Path

import numpy as np
from scipy import stats

from lsbook.chance import across_networks, matches, planted_rate
from lsbook.files import atomic_path
from lsbook.kernels import atoms

RESULTS = Path(__file__).parents[1] / "results" / "planted.json"
SHARES = (0.0, 0.1, 0.3, 0.6, 0.9)
RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
SIZES = (16, 32, 64, 128)  # kernels of a layer
WANTED = 0.93  # coverage


def null_rate(kernels: int = 1_000_000, seed: int = 1) -> float:
    """Rate of matches of white noise."""
    return float(matches(np.random.default_rng(seed).standard_normal((kernels, 9))).mean())


def planted(rng: np.random.Generator, count: int, ratio: float) -> np.ndarray:
    """Stencils with noise, ``(count, 9)``: all equally frequent, of length 1, with either sign."""
    stencils = atoms()[rng.integers(len(atoms()), size=count)] * rng.choice([-1.0, 1.0], size=(count, 1))
    return stencils + rng.standard_normal((count, 9)) / (3 * ratio)


def experiment(
    share: float, ratio: float, simulations: int, networks: int, kernels: int, null: float, seed: int
) -> dict:
    """Many experiments with one share and one ratio: how the estimates, intervals and p-values turn out."""
    rng = np.random.default_rng(seed)
    known = rng.random((networks, simulations, kernels)) < share
    found = np.empty(known.shape, dtype=bool)
    for is_planted, match in zip(known, found, strict=True):
        match[is_planted] = matches(planted(rng, int(is_planted.sum()), ratio))
        match[~is_planted] = matches(rng.standard_normal((int((~is_planted).sum()), 9)))
    evidence = across_networks(planted_rate(found.mean(axis=2), null))
    covered = (evidence.low <= share) & (share <= evidence.high)
    return {
        "share": share,
        "ratio": ratio,
        "estimate": float(evidence.mean.mean()),
        "coverage": float(covered.mean()),
        "detected": float((evidence.p < 0.05).mean()),
        "power": float(found[known].mean()) if known.any() else None,
    }


def simulate(simulations: int = 1000, networks: int = 5, kernels: int = 256, shares=SHARES, ratios=RATIOS) -> dict:
    """All experiments. Without planted kernels the ratio does not matter, so the share 0 is simulated once."""
    null = null_rate()
    cases = [(s, r) for s in shares for r in ratios if s or r == ratios[-1]]
    rows = [experiment(*c, simulations, networks, kernels, null, seed) for seed, c in enumerate(cases)]
    design = {"simulations": simulations, "networks": networks, "kernels": kernels, "null_rate": null}
    small = [experiment(0.0, ratios[-1], simulations, networks, n, null, len(cases) + i) for i, n in enumerate(SIZES)]
    design["by_layer_size"] = [{"kernels": n, "detected": row["detected"]} for n, row in zip(SIZES, small, strict=True)]
    by_chance = [float(q) / simulations for q in stats.binom.interval(0.95, simulations, 0.05)]
    return design | {"reliable_from": reliable_from(rows), "false_positive_interval": by_chance, "rows": rows}


def reliable_from(rows: list[dict]) -> float | None:
    """The smallest ratio from which on every interval covers the truth often enough; None if there is none."""
    ratios = sorted({row["ratio"] for row in rows})
    good = {r: all(row["coverage"] >= WANTED for row in rows if row["ratio"] == r) for r in ratios}
    return next((r for n, r in enumerate(ratios) if all(good[s] for s in ratios[n:])), None)


def main() -> None:
    with atomic_path(RESULTS) as partial:
        partial.write_text(json.dumps(simulate(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
