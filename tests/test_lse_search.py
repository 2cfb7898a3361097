"""The search of the LSE's settings: what it scores is the network that it returns, and it gets better."""

import numpy as np
import pytest
import torch

from experiments.classical import sample
from experiments.lse_search import RANGES, best_stop, candidate, tune_lse
from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.levelset import worst_cfl
from lsbook.networks import DT, SAFETY, LevelSetNetwork
from lsbook.training import densest_point, scan_dice

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def slices(cohort):
    return SliceDataset(find_scans(cohort), Preprocessing(40))


def point(**values) -> np.ndarray:
    return np.log([values[name] for name in RANGES])


@pytest.mark.parametrize(("alpha", "beta"), [(0.05, 0.1), (0.5, 4.0), (3.0, 20.0)])
def test_coefficients_have_the_given_ratio_and_just_fit_the_stable_step(alpha, beta):
    found = candidate(point(contrast=0.05, sigma=1, radius=0.1, alpha=alpha, beta=beta), (0.4, 0.3), 60)
    c = found.network().coefficients().detach()
    assert float(worst_cfl(DT, *c)) == pytest.approx(SAFETY, rel=1e-5)
    np.testing.assert_allclose(c / c[2], [alpha, beta, 1], rtol=1e-5)
    assert found.options == {
        "steps": 60,
        "contrast": pytest.approx(0.05),
        "sigma": pytest.approx(1),
        "seed": (0.4, 0.3, pytest.approx(0.1)),
    }


def test_several_discs_stay_as_they_are_and_the_rest_is_searched(slices):
    discs = [(0.4, 0.3, 0.1), (0.6, 0.4, 0.05)]
    found = tune_lse(slices, discs, 40, draws=4, refinements=2, slices=(4, 8))
    assert found.options["seed"] == discs == [tuple(disc) for disc in found.network().seed]
    other = tune_lse(slices, discs[0][:2], 40, draws=4, refinements=2, slices=(4, 8))
    assert other.options["seed"][:2] == discs[0][:2] and other.dice != found.dice


def test_best_stop_is_the_best_network(slices):
    start = candidate(point(contrast=0.1, sigma=1, radius=0.06, alpha=0.3, beta=2), densest_point(slices)[:2], 120)
    found = best_stop(start, sample(slices, len(slices)))
    scores = {}
    for steps in range(20, 121, 20):  # scored by another path, one network for each number of steps
        model = LevelSetNetwork(False, False, **(start.options | {"steps": steps}))
        model.load_state_dict({"raw": torch.tensor(start.raw)})
        scores[steps] = np.mean(list(scan_dice(model, slices).values()))
    assert found.options == start.options | {"steps": max(scores, key=scores.get)}
    assert found.dice == pytest.approx(max(scores.values()), abs=1e-6)
    assert max(scores.values()) > min(scores.values()) + 0.05


def test_search_improves_repeats_itself_and_returns_the_network_that_it_scored(slices):
    center, everything = densest_point(slices)[:2], (len(slices), len(slices))
    settings = {"steps": 100, "draws": 10, "slices": everything}
    drawn = tune_lse(slices, center, refinements=0, **settings)
    found = tune_lse(slices, center, refinements=15, **settings)
    assert found == tune_lse(slices, center, refinements=15, **settings)
    assert found.dice > drawn.dice + 0.01
    assert (drawn.tried, found.tried) == (10 * 5, 25 * 5)
    assert np.mean(list(scan_dice(found.network(), slices).values())) == pytest.approx(found.dice, abs=1e-6)
    values = (*list(found.options.values())[1:3], found.options["seed"][2])
    for value, (low, high) in zip(values, list(RANGES.values())[:3], strict=True):
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
    assert tune_lse(slices, center, refinements=0, seed=1, **settings) != drawn
