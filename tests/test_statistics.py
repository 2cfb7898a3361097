"""Intervals by what they promise in simulations and by enumeration; Holm and Wilcoxon against brute force."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import (
    MARGIN,
    bootstrap_interval,
    by_patient,
    equivalence,
    holm,
    paired_differences,
    summary,
    wilcoxon_holm,
)


def share(count: int, trials: int, chance: float) -> bool:
    """Whether ``count`` of ``trials`` agrees with a chance, to four standard errors."""
    return abs(count / trials - chance) < 4 * np.sqrt(chance * (1 - chance) / trials)


# -- patients ---------------------------------------------------------------------------------------------------------


def test_scans_of_one_patient_are_averaged_first():
    scores = {"0": 0.5, "7": 0.9, "1": 0.7, "2": 0.8, "8": 0.6}
    found = by_patient(scores, [("7", "8", "9", "10"), ("0", "1")])  # 9 and 10 belong to another fold
    assert list(found) == ["0+1", "7+8", "2"]
    assert found == pytest.approx({"0+1": 0.6, "7+8": 0.75, "2": 0.8})
    assert by_patient(scores) == scores


def test_differences_are_paired_by_patient():
    first, second = {"a": 0.9, "b": 0.8}, {"b": 0.5, "a": 0.7}
    np.testing.assert_allclose(paired_differences(first, second), [0.2, 0.3])
    with pytest.raises(ValueError, match="not the same patients: b, c on one side"):
        paired_differences(first, {"a": 1.0, "c": 1.0})


def test_faults_of_the_scores_are_named():
    for missing in (None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scans 3 have no score"):
            by_patient({"2": 1.0, "3": missing})
    with pytest.raises(ValueError, match="two groups"):
        by_patient({"2": 1.0, "3": 1.0}, [("2", "3"), ("3", "4")])
    for few in ([], [0.9]):
        with pytest.raises(ValueError, match="patients give no interval"):
            summary(few)


# -- intervals --------------------------------------------------------------------------------------------------------


def test_summary_of_numbers_known():
    found = summary([0.7, 0.8, 0.9, 1.0])
    assert (found.patients, found.mean, found.deviation) == pytest.approx((4, 0.85, np.sqrt(0.05 / 3)))
    assert 0.7 <= found.low < found.mean < found.high <= 1.0
    assert list(json.loads(json.dumps(found._asdict()))) == ["patients", "mean", "deviation", "low", "high"]
    assert summary([0.9, 0.9, 0.9])[1:] == pytest.approx((0.9, 0, 0.9, 0.9), abs=1e-15)


def test_interval_agrees_with_the_enumeration_of_all_resamples():
    values = np.array([0.61, 0.7, 0.74, 0.9, 0.95, 0.97])
    n, confidence = len(values), 0.8
    means = values[np.array(list(itertools.product(range(n), repeat=n)))].mean(1)  # all n^n, each as likely
    tail = stats.norm.cdf(stats.t.ppf(0.1, n - 1) * np.sqrt(n / (n - 1)))
    expected = np.quantile(means, [tail, 1 - tail])
    assert bootstrap_interval(values, confidence, resamples=200_000) == pytest.approx(expected, abs=0.003)


def test_interval_is_the_plain_percentile_interval_when_patients_are_many():
    values = np.random.default_rng(0).normal(size=2000)
    options = {"method": "percentile", "n_resamples": 5000, "random_state": 0}
    plain = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert bootstrap_interval(values, resamples=5000) == pytest.approx(tuple(plain), abs=0.1 * (plain.high - plain.low))


def test_interval_repeats_and_moves_with_the_seed_only_a_little():
    values = np.random.default_rng(1).beta(18, 1.2, 27)
    one, again, other = (bootstrap_interval(values, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one == pytest.approx(other, abs=0.05 * (one[1] - one[0]))
    assert bootstrap_interval(values * 2 - 1) == pytest.approx(np.array(one) * 2 - 1)


@pytest.mark.parametrize("confidence", [0.90, 0.95])
@pytest.mark.parametrize("patients", [15, 27])
def test_the_interval_holds_the_mean_as_often_as_it_says(patients, confidence):
    trials, rng = 1000, np.random.default_rng(patients)
    intervals = [bootstrap_interval(rng.normal(size=patients), confidence, 1000, seed) for seed in range(trials)]
    assert share(sum(low <= 0 <= high for low, high in intervals), trials, confidence)


def test_the_interval_of_skewed_scores_is_a_little_too_short():
    trials, rng = 1000, np.random.default_rng(0)
    intervals = [bootstrap_interval(1 - rng.beta(1.2, 18, 27), 0.95, 1000, seed) for seed in range(trials)]
    assert 0.90 < sum(low <= 18 / 19.2 <= high for low, high in intervals) / trials < 0.96


def test_plain_percentiles_of_few_patients_hold_less_than_they_say():
    trials, rng, held, plain = 500, np.random.default_rng(6), 0, 0
    for seed in range(trials):
        x = rng.normal(size=6)
        low, high = bootstrap_interval(x, 0.90, 1000, seed)
        held += low <= 0 <= high
        low, high = np.quantile(x[rng.integers(6, size=(1000, 6))].mean(1), [0.05, 0.95])
        plain += low <= 0 <= high
    assert plain / trials < 0.85 < held / trials < 0.94


def test_the_patient_is_the_unit():
    """Twelve patients of four similar scans: by scan the interval is half as long, and misses too often."""
    trials, rng, held = 300, np.random.default_rng(3), np.zeros(2)
    groups = [[f"{p}.{k}" for k in range(4)] for p in range(12)]
    for seed in range(trials):
        values = rng.normal(size=(12, 1)) + 0.2 * rng.normal(size=(12, 4))
        scores = dict(zip(itertools.chain(*groups), values.ravel(), strict=True))
        for unit, same_patient in enumerate((groups, [])):
            low, high = bootstrap_interval(list(by_patient(scores, same_patient).values()), 0.95, 1000, seed)
            held[unit] += low <= 0 <= high
    assert share(held[0], trials, 0.95) and held[1] / trials < 0.75


# -- equivalence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("center", "spread", "expected"),
    [
        (0.0, 0.01, "confirmed"),
        (-0.012, 0.005, "confirmed"),
        (0.08, 0.01, "refuted"),
        (-0.08, 0.01, "refuted"),
        (0.02, 0.01, "undecided"),
        (-0.02, 0.01, "undecided"),
        (0.0, 0.20, "undecided"),  # reaches beyond both margins
    ],
)
def test_verdict(center, spread, expected):
    verdict, found = equivalence(center + spread * np.linspace(-1, 1, 27))
    assert verdict == expected
    assert found == summary(center + spread * np.linspace(-1, 1, 27), 0.90)
    assert found.low < center < found.high


def test_the_ends_of_the_interval_decide():
    assert MARGIN == 0.02
    differences = np.array([0.012, 0.0, -0.007, 0.004, 0.001])
    for sign in (1, -1):
        low, high = bootstrap_interval(sign * differences, 0.90)
        end = max(high, -low)
        assert equivalence(sign * differences, margin=end)[0] == "undecided"
        assert equivalence(sign * differences, margin=end + 1e-9)[0] == "confirmed"
    low, high = bootstrap_interval(differences, 0.90)
    assert equivalence(differences + 1, margin=1 + low - 1e-9)[0] == "refuted"
    assert equivalence(differences + 1, margin=1 + low + 1e-9)[0] == "undecided"
    assert equivalence(-differences - 1, margin=0.5)[0] == "refuted"


def test_models_that_differ_by_the_margin_are_wrongly_judged_in_one_of_twenty():
    trials, rng = 800, np.random.default_rng(4)
    truth = [-MARGIN, MARGIN] * (trials // 2)
    verdicts = [equivalence(rng.normal(true, 0.02, 27), seed=seed)[0] for seed, true in enumerate(truth)]
    assert share(verdicts.count("confirmed"), trials, 0.05) and share(verdicts.count("refuted"), trials, 0.05)
    verdicts = [equivalence(rng.normal(0, 0.02, 27), seed=seed)[0] for seed in range(100)]
    assert verdicts.count("confirmed") > 95


# -- tests ------------------------------------------------------------------------------------------------------------


def closed_testing(p: np.ndarray) -> list[float]:
    """Holm by its definition: a hypothesis falls with every set that holds it, tested by Bonferroni."""
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    return [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(len(p))]


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.04]), [0.04])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert holm([]).size == 0


@pytest.mark.parametrize("seed", range(5))
def test_holm_agrees_with_closed_testing(seed):
    p = np.random.default_rng(seed).random(6) ** 3
    p[5] = p[0]  # a tie
    np.testing.assert_allclose(holm(p), closed_testing(p), rtol=1e-12)


def exact_wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p over all signs: the share of rank sums at least as far from the middle."""
    ranks = stats.rankdata(np.abs(differences))
    sums = np.array([ranks @ np.array(signs) for signs in itertools.product((0, 1), repeat=len(ranks))])
    middle = ranks.sum() / 2
    return float(np.mean(np.abs(sums - middle) >= abs(ranks @ (differences > 0) - middle) - 1e-9))


def test_wilcoxon_agrees_with_the_enumeration_of_all_signs_and_is_corrected():
    rng = np.random.default_rng(5)
    comparisons = {f"by {shift}": rng.normal(shift, 1, 10) for shift in (0.0, 0.7, 2.0)}
    found = wilcoxon_holm(comparisons)
    assert list(found) == list(comparisons)
    p = [exact_wilcoxon(d) for d in comparisons.values()]
    assert [row.p for row in found.values()] == pytest.approx(p, rel=1e-9)
    assert [row.p_holm for row in found.values()] == pytest.approx(closed_testing(np.array(p)), rel=1e-9)
    for name, row in found.items():
        assert (row.patients, row.difference) == (10, pytest.approx(comparisons[name].mean()))
    assert found["by 2.0"].p == pytest.approx(2 / 2**10)  # all on one side: the least there is for ten patients


def test_models_that_never_differ_are_not_told_apart():
    assert wilcoxon_holm({"same": [0.0] * 5})["same"] == (5, 0.0, 1.0, 1.0)
