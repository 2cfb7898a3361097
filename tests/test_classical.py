"""The classical peers: their tools' conventions on phantoms whose answer is known, tuning, and use as a model."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.segmentation import morphological_chan_vese, morphological_geodesic_active_contour

from experiments.classical import METHODS, Classical, Peer, potential, sample, seed_mask, seeded_part, tune
from lsbook.ct import Preprocessing, SliceDataset, find_scans, prepared_scan, read_scan, split
from lsbook.inference import largest_component, score_scan, segment
from lsbook.levelset import edge_indicator
from lsbook.metrics import dice
from lsbook.training import densest_point

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (64, 64)
INSIDE, OUTSIDE, RADIUS = (0.48, 0.42), (0.88, 0.86), 0.06
EDGES = {"radius": RADIUS, "sigma": 1, "contrast": 0.05, "likeness": 0, "sharpness": 1}
SETTINGS = {
    "threshold": {"radius": RADIUS, "sigma": 1, "below": 0.5, "above": 0.5, "stop": 1},
    "chan-vese": {"radius": RADIUS, "sigma": 1, "likeness": 3, "inside": 1, "smoothing": 1, "stop": 40},
    "morphological-gac": EDGES | {"smoothing": 1, "stop": 40},
    "itk-gac": EDGES | {"curvature": 0.3, "advection": 3, "stop": 400},
}


def truth() -> np.ndarray:
    """A disc of 18 pixels around the seed INSIDE."""
    y, x = np.mgrid[:64, :64] + 0.5
    return np.hypot(y - 64 * INSIDE[0], x - 64 * INSIDE[1]) < 18


@pytest.fixture(scope="module")
def image():
    """That disc, bright and blurred, with a little noise."""
    noise = np.random.default_rng(0).normal(0, 0.03, SHAPE)
    return (ndimage.gaussian_filter(1.0 * truth(), 1) - 0.6 + noise).astype(np.float32)


@pytest.fixture(scope="module")
def bridged(image):
    """The same with a bar of 4 pixels that leads to a second bright region."""
    image = image.copy()
    image[29:33, 40:60], image[20:44, 56:] = 0.4, 0.4
    return image


def run(name: str, image: np.ndarray, center=INSIDE, **changes) -> np.ndarray:
    """The mask of a peer with the settings above, changed."""
    settings = SETTINGS[name] | changes
    return METHODS[name].run(image, seed_mask(SHAPE, center, settings["radius"]), settings, [settings["stop"]])[0]


# -- conventions of the tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_bright_disc_is_found_from_a_seed_inside_and_not_from_one_outside(name, image):
    assert set(SETTINGS[name]) == {"stop", *METHODS[name].space}
    found = run(name, image)
    assert found.dtype == bool and found.shape == SHAPE
    assert dice(truth(), found) > 0.95
    assert dice(truth(), run(name, image, OUTSIDE)) < 0.3


@pytest.mark.parametrize("name", METHODS)
def test_dark_objects_are_found_as_well(name, image):
    assert dice(truth(), run(name, -image)) > 0.95


def area(**changes) -> int:
    """Pixels that SimpleITK's contour encloses on an empty image, where g is 1."""
    return int(run("itk-gac", np.zeros(SHAPE, np.float32), **changes).sum())


def test_propagation_of_itk_expands_and_its_curvature_shrinks():
    seed = int(seed_mask(SHAPE, INSIDE, RADIUS).sum())
    assert area(curvature=0, stop=10) > 1.5 * seed
    assert area(curvature=8, stop=10) < seed  # radius 3.8 below the 8 at which curvature and propagation balance
    assert area(curvature=8, stop=100, radius=0.2) > 1.2 * seed_mask(SHAPE, INSIDE, 0.2).sum()  # radius 12.8, above


def test_advection_of_itk_holds_the_contour_at_an_edge(image):
    weak = {"contrast": 0.2, "curvature": 0}
    assert dice(truth(), run("itk-gac", image, advection=0, **weak)) < 0.9
    assert dice(truth(), run("itk-gac", image, advection=5, **weak)) > 0.95
    assert dice(truth(), run("itk-gac", image, advection=-5, **weak)) < 0.9


def test_balloon_rests_where_the_potential_is_low(image):
    assert dice(truth(), run("morphological-gac", image, contrast=1.0)) < 0.9
    assert run("morphological-gac", image, contrast=1e-4).sum() <= seed_mask(SHAPE, INSIDE, RADIUS).sum()


def test_morphological_peers_are_the_tools_themselves(image):
    seed = seed_mask(SHAPE, INSIDE, RADIUS)
    g = potential(image, seed, SETTINGS["morphological-gac"])
    theirs = morphological_geodesic_active_contour(g, 12, seed, smoothing=1, threshold=0.5, balloon=1)
    np.testing.assert_array_equal(run("morphological-gac", image, stop=12), theirs > 0)
    smooth = ndimage.gaussian_filter(image, 1, mode="nearest", truncate=3)
    like = 1 / (1 + 9 * (smooth - np.median(smooth[seed])) ** 2)
    theirs = morphological_chan_vese(like, 12, seed, smoothing=1, lambda1=1, lambda2=1)
    np.testing.assert_array_equal(run("chan-vese", image, stop=12), theirs > 0)


@pytest.mark.parametrize("name", METHODS)
def test_several_stops_of_one_run_are_those_of_separate_runs(name, bridged):
    seed, stops = seed_mask(SHAPE, INSIDE, RADIUS), METHODS[name].stops[:3]
    together = METHODS[name].run(bridged, seed, SETTINGS[name], stops)
    assert not np.array_equal(together[0], together[2])
    for stop, mask in zip(stops, together, strict=True):
        assert (mask != run(name, bridged, stop=stop)).sum() <= (4 if name == "itk-gac" else 0)


# -- their parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1, 2])
def test_potential_of_edges_alone_is_the_indicator_of_the_book(image, sigma):
    found = potential(image, seed_mask(SHAPE, INSIDE, RADIUS), EDGES | {"sigma": sigma})
    wanted = edge_indicator(torch.from_numpy(image)[None, None], 0.05, sigma)[0, 0].numpy()
    np.testing.assert_allclose(found[1:-1, 1:-1], wanted[1:-1, 1:-1], atol=1e-5)


def test_potential_falls_where_the_intensity_is_not_that_of_the_seed():
    steps = np.repeat([[0.0, 0.25, -0.5]], 60, axis=0).repeat(20, axis=1)
    settings = {"sigma": 0.5, "contrast": 0.05, "likeness": 4, "sharpness": 2}
    found = potential(steps, seed_mask(steps.shape, (0.5, 0.15), RADIUS), settings)
    np.testing.assert_allclose(found[30, [8, 30, 50]], [1, 1 / 2, 1 / 17], rtol=1e-6)  # (4 * 0.25)^4 = 1, 2^4 = 16


def test_seed_in_air_finds_nothing_like_it():
    air = np.full(SHAPE, -1, np.float32)
    assert not run("threshold", air).any()
    assert potential(air, seed_mask(SHAPE, INSIDE, RADIUS), EDGES | {"likeness": 5}).max() < 0.1
    assert run("threshold", air + 0.9, stop=0).all()  # the median itself, where it can be liver


def test_part_that_meets_the_seed_most_is_kept():
    mask = np.zeros((9, 9), bool)
    mask[1:3, 1:8], mask[3, 8], mask[5:8, 1:8] = True, True, True
    seed = np.zeros_like(mask)
    seed[2:6, 4] = True
    seed[2, 5] = True  # two pixels of the upper part, one of the lower
    upper = mask & (np.arange(9) < 4)[:, None]
    np.testing.assert_array_equal(seeded_part(mask, seed), upper)  # its corner pixel with it
    assert not seeded_part(mask & ~seed, seed).any()


def test_opening_cuts_a_bridge(bridged):
    assert dice(truth(), run("threshold", bridged, stop=0)) < 0.9
    assert dice(truth(), run("threshold", bridged, stop=3)) > 0.95


def test_empty_seed_is_refused():
    with pytest.raises(ValueError, match=r"radius 0\.001 holds no pixel of 64 x 64; take a larger"):
        seed_mask(SHAPE, (0.5, 0.5), 0.001)


# -- tuning -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices(cohort):
    return SliceDataset(find_scans(cohort), Preprocessing(40))


def test_sample_takes_every_kth_slice(slices):
    some = sample(slices, len(slices) // 3)
    assert len(some.images) == len(range(0, len(slices), 3))
    np.testing.assert_array_equal(some.images[2], slices[6][0][0])
    np.testing.assert_array_equal(some.livers[2], slices[6][1][0] > 0.5)
    assert some.scans.tolist() == [number for number, _ in slices.index[::3]]
    assert len(sample(slices, 10**6).images) == len(slices)


def test_mean_dice_is_over_scans_not_slices(slices):
    some = sample(slices, len(slices))
    masks = some.livers & (some.scans == 0)[:, None, None]
    assert some.mean_dice(masks) == pytest.approx(1 / len(slices.scans))


class Oracle:
    """A peer that knows the livers: it gives (level + 1) eighths of their pixels, and nothing before stop 2."""

    def __init__(self, slices):
        self.livers = {image.numpy().tobytes(): (liver[0].numpy() > 0.5) for image, liver in slices}
        self.levels = []
        self.peer = Peer(self.run, (1, 2), {"radius": (0.1,), "level": (0, 1, 2, 3, 4, 5, 6, 7)})

    def run(self, image, seed, settings, stops):
        self.levels.append(settings["level"])
        liver = self.livers[image.tobytes()].copy()
        pixels = np.flatnonzero(liver)
        liver.flat[pixels[len(pixels) * (settings["level"] + 1) // 8 :]] = False
        return [liver & (stop > 1) for stop in stops]


def test_tuning_finds_the_best_setting_and_stop_and_repeats_itself(slices):
    oracle = Oracle(slices)
    rungs = ((40, 6), (3, 12))
    found = tune(oracle.peer, slices, (0.5, 0.5), rungs)
    assert found == (({"radius": 0.1, "level": 7, "stop": 2}), 1.0, 80)
    asked = [len(sample(slices, count).images) * keep for keep, count in rungs]
    assert len(oracle.levels) == sum(asked)
    first, last = oracle.levels[: asked[0]], oracle.levels[asked[0] :]
    assert set(first) == set(range(8)) and set(last) == {7}  # drawn from all; the best go on
    again = Oracle(slices)
    assert tune(again.peer, slices, (0.5, 0.5), rungs) == found and again.levels == oracle.levels
    other = Oracle(slices)
    tune(other.peer, slices, (0.5, 0.5), rungs, seed=1)
    assert other.levels != oracle.levels


def test_tuning_looks_at_the_training_slices_only(cohort):
    scans = {scan.name: scan for scan in find_scans(cohort)}
    names = split(list(scans), 0, 4)
    training = SliceDataset([scans[name] for name in names.train], Preprocessing(40))
    oracle = Oracle(training)  # raises KeyError for any other slice
    assert tune(oracle.peer, training, densest_point(training)[:2], ((8, 6),)).dice > 0


# -- as a model -------------------------------------------------------------------------------------------------------


def test_a_peer_is_scored_as_a_network(cohort):
    scan, preprocessing, center = find_scans(cohort)[0], Preprocessing(64), (0.45, 0.3)
    settings = SETTINGS["threshold"]
    model = Classical(METHODS["threshold"], settings, center)
    assert not any(p.requires_grad for p in model.parameters())
    images = torch.from_numpy(prepared_scan(scan, preprocessing)[0].copy())[:, None]
    masks = model(images)
    assert masks.shape == images.shape and masks.dtype == torch.float32 and masks.any()
    seed = seed_mask((64, 64), center, settings["radius"])
    for image, mask in zip(images[:, 0].numpy(), masks[:, 0].numpy(), strict=True):
        np.testing.assert_array_equal(mask, METHODS["threshold"].run(image, seed, settings, [1])[0])
    volume, reference = read_scan(scan)
    found = segment(model, preprocessing, volume)
    assert dice(largest_component(preprocessing.restore(masks, volume) > 0.5), found) > 0.9
    assert score_scan(model, preprocessing, scan)["dice"] == dice(reference.data > 0, found)
