"""How results are judged: means with intervals, an equivalence verdict, paired tests.

All was fixed before any run of folds 2 to 4. The unit is the patient: scans of one person are averaged first, since
they are no independent witnesses. An interval speaks about further patients, given the networks as they were trained.
It does not hold how results vary with the seed of a training, nor that patients of one fold share a network.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

MARGIN = 0.02  # Dice; two models that differ by less are called equally accurate (P4)


class Summary(NamedTuple):
    """Mean over patients, standard deviation (of the sample, n - 1), and the interval of the mean."""

    patients: int
    mean: float
    deviation: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A paired test: mean difference, and the p-value before and after Holm's correction."""

    patients: int
    difference: float
    p: float
    p_holm: float


def by_patient(scores: Mapping[str, float | None], same_patient: Iterable[Sequence[str]] = ()) -> dict[str, float]:
    """Mean score of each patient, in the order of the scans.

    Args:
        scores: one for each scan, by the scan's name.
        same_patient: groups of scans of one person; a scan without a score (of another fold) is passed over.

    Returns:
        Scores by the names of the patient's scans, joined by ``+``.

    Raises:
        ValueError: if a score is None or not finite (the distance to an empty mask: leave such scans out for all models
            and say how many), or a scan is in two groups.
    """
    missing = [name for name, score in scores.items() if score is None or not np.isfinite(score)]
    if missing:
        raise ValueError(f"scans {', '.join(missing)} have no score; leave them out for all models and say so")
    groups = [[name for name in scores if name in group] for group in same_patient]
    grouped = [name for group in groups for name in group]
    if len(set(grouped)) < len(grouped):
        raise ValueError("a scan is in two groups of the same patient")
    groups += [[name] for name in scores if name not in grouped]
    groups = sorted(filter(None, groups), key=lambda group: list(scores).index(group[0]))
    return {"+".join(group): float(np.mean([scores[name] for name in group])) for group in groups}


def paired_differences(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
    """First minus second, patient by patient, of two results of :func:`by_patient`; ValueError if the patients differ.

    For scans of the same patients that is the patient's mean of the scans' differences.
    """
    if first.keys() != second.keys():
        raise ValueError(f"not the same patients: {', '.join(sorted(first.keys() ^ second.keys()))} on one side only")
    return np.array([first[name] - second[name] for name in first])


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean by expanded percentiles (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).

    The plain percentile interval is too short for few values, by sqrt((n - 1) / n) and by taking the normal for the t
    distribution, which would make an equivalence too easy to confirm. The expanded one takes the percentiles
    Phi(-+ sqrt(n / (n - 1)) t), t the quantile of the t distribution of n - 1 degrees of freedom. No method repairs
    that a rare failure may be absent from few patients.

    Args:
        values: one number for each patient, two at least.
        confidence: of the interval, two-sided.

    Raises:
        ValueError: if there are fewer than two values.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        raise ValueError(f"{len(x)} patients give no interval; two are the least")
    tail = stats.norm.cdf(np.sqrt(len(x) / (len(x) - 1)) * stats.t.ppf((1 - confidence) / 2, len(x) - 1))
    means = x[np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))].mean(1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def summary(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Summary:
    """Mean, standard deviation and :func:`bootstrap_interval` of one number for each patient."""
    low, high = bootstrap_interval(values, confidence, seed=seed)
    return Summary(len(values), float(np.mean(values)), float(np.std(values, ddof=1)), low, high)


def equivalence(
    differences: Sequence[float], margin: float = MARGIN, confidence: float = 0.90, seed: int = 0
) -> tuple[str, Summary]:
    """Are two models equally accurate, to a margin? Two one-sided tests at 5 % each, read off a 90 % interval.

    Args:
        differences: paired, one for each patient.

    Returns:
        ``confirmed`` if the interval of the mean difference lies inside (-margin, margin), ``refuted`` if it lies
        outside, all of it on one side, else ``undecided``; and the summary with that interval.
    """
    found = summary(differences, confidence, seed)
    if -margin < found.low and found.high < margin:
        return "confirmed", found
    return "refuted" if found.low >= margin or found.high <= -margin else "undecided", found


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number by Holm's step-down method (1979); in the order given.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may be smaller than the one before it, nor
    above 1. Rejecting those below 5 % keeps the chance of any false rejection below 5 %, whatever the dependence.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def wilcoxon_holm(comparisons: Mapping[str, Sequence[float]]) -> dict[str, Comparison]:
    """Two-sided Wilcoxon signed-rank tests of paired differences, corrected over all that were planned.

    Exact for at most 50 patients without ties or zeros. Few patients cannot reach a small p: it is at least 2 / 2^n.

    Args:
        comparisons: by name, the differences of one planned comparison, one for each patient.
    """
    p = [float(stats.wilcoxon(d).pvalue) if np.any(d) else 1.0 for d in comparisons.values()]
    rows = zip(comparisons.items(), p, holm(p), strict=True)
    return {name: Comparison(len(d), float(np.mean(d)), one, float(all_)) for (name, d), one, all_ in rows}
