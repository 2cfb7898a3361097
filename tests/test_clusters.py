"""Clusters and planes of kernels: what is planted is found; scores and planes by independent paths."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group
from sklearn.metrics import adjusted_rand_score

from lsbook.clusters import SAMPLE, cluster, normalized, plane
from lsbook.kernels import dictionary

PLANTED = ("central x", "second y", "mean")


def blobs(sizes=(40, 30, 50), noise=0.05):
    """Kernels ``(n, 9)`` around three stencils of unit length, and the number of the stencil."""
    rng = np.random.default_rng(0)
    stencils = np.stack([dictionary()[name].ravel() for name in PLANTED])
    labels = np.repeat(np.arange(3), sizes)
    points = (stencils / np.linalg.norm(stencils, axis=1, keepdims=True))[labels]
    return points + noise * rng.standard_normal(points.shape), labels


def test_planted_clusters_are_found_and_counted():
    points, labels = blobs()
    found = cluster(points, range(2, 9))
    assert len(found.centers) == 3
    assert adjusted_rand_score(found.labels, labels) == 1
    np.testing.assert_allclose(found.centers[found.labels[0]], points[:40].mean(axis=0), atol=1e-12)


def test_five_is_what_the_paper_takes():
    found = cluster(blobs()[0])
    assert found.centers.shape == (5, 9) and set(found.labels) == set(range(5))


def test_silhouette_by_its_definition():
    points, labels = blobs((6, 5, 4), noise=0.2)
    found = cluster(points, (3,))
    distances, scores = cdist(points, points), []
    for n, own in enumerate(found.labels):
        means = {c: distances[n, found.labels == c].sum() / ((found.labels == c).sum() - (c == own)) for c in range(3)}
        a, b = means.pop(own), min(means.values())
        scores.append((b - a) / max(a, b))
    assert found.silhouette == pytest.approx(np.mean(scores))


def test_a_large_layer_is_clustered_from_a_sample_and_labelled_whole():
    points, labels = blobs((SAMPLE, SAMPLE, SAMPLE))
    found, again = cluster(points, (3,)), cluster(points, (3,))
    assert adjusted_rand_score(found.labels, labels) == 1
    np.testing.assert_array_equal(found.labels, again.labels)


@pytest.mark.parametrize("points", [np.zeros((7, 9)), np.eye(9)[:2], np.repeat(np.eye(9)[:5], 3, axis=0)])
def test_too_few_distinct_kernels_are_refused(points):
    with pytest.raises(ValueError, match="distinct kernels are too few"):
        cluster(points)


def test_normalized_as_the_paper_does():
    """The sign of the centre becomes positive, the length 1; what is shorter than 1e-6 vanishes."""
    kernels = np.zeros((4, 3, 3))
    kernels[0] = [[1, 0, 0], [0, -2, 0], [2, 0, 0]]
    kernels[1, 0, 0] = -3  # nothing at the centre: the sign stays
    kernels[2, 1, 1] = 9e-7
    kernels[3, 1, 1] = -2e-6
    found = normalized(kernels).reshape(4, 3, 3)
    np.testing.assert_allclose(found[0], np.array([[-1, 0, 0], [0, 2, 0], [-2, 0, 0]]) / 3)
    assert found[1, 0, 0] == -1 and not found[2].any() and found[3, 1, 1] == 1


def test_the_plane_is_the_one_that_holds_most():
    """No other plane of 200 random ones holds more of the squared length; the mean is not subtracted."""
    points = blobs()[0] + 1
    coordinates, axes = plane(points)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(coordinates, points @ axes.T)
    held = (coordinates**2).sum()
    for seed in range(200):
        other = ortho_group.rvs(9, random_state=seed)[:2]
        assert ((points @ other.T) ** 2).sum() <= held
    values = np.linalg.eigvalsh(points.T @ points)  # eigenvalues are squared singular values
    assert held == pytest.approx(values[-2:].sum())


def test_the_planes_axes_have_a_fixed_sign():
    points = blobs()[0]
    for flipped in (points, -points, points[::-1]):
        axes = plane(flipped)[1]
        assert (np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1) > 0).all()
        np.testing.assert_allclose(axes, plane(points)[1], atol=1e-9)


def test_a_single_kernel_has_a_plane_too():
    coordinates, axes = plane(dictionary()["mean"].reshape(1, 9))
    assert coordinates.shape == (1, 2) and axes.shape == (2, 9)
    np.testing.assert_allclose(coordinates, [[1 / 3, 0]], atol=1e-12)
