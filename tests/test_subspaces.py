"""Subspaces of kernels: dimensions, inclusions, projections, and what a fair removal takes away."""

import numpy as np
import pytest

from experiments.subspaces import STENCILS, energy, project, random_basis, remove_as_much, subspaces
from lsbook.kernels import atoms, dictionary

SPACES = subspaces()


def inside(small: np.ndarray, large: np.ndarray) -> bool:
    return np.allclose(small @ large.T @ large, small, atol=1e-12)


def test_dimensions_and_nesting():
    assert [len(basis) for basis in SPACES.values()] == [8, 5, 5, 2]
    for basis in SPACES.values():
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)
        np.testing.assert_allclose(basis.sum(axis=1), 0, atol=1e-12)
    assert inside(SPACES["central differences"], SPACES["level set stencils"])
    assert not inside(SPACES["central differences"], SPACES["monomials"])


def test_the_angles_of_the_two_spaces_of_dimension_five():
    cosines = np.linalg.svd(SPACES["monomials"] @ SPACES["level set stencils"].T, compute_uv=False)
    np.testing.assert_allclose(cosines, [1, 1, 3**-0.5, 3**-0.5, 5**-0.5], atol=1e-12)
    known = dictionary()
    for shared in (known["mixed xy"], known["second x"] - known["second y"]):
        row = shared.reshape(1, 9)
        assert inside(row, SPACES["monomials"]) and inside(row, SPACES["level set stencils"])


def test_the_dictionary_spans_everything():
    assert np.linalg.matrix_rank(atoms()) == 9


def test_projection_keeps_stencils_and_is_the_nearest_point():
    rng = np.random.default_rng(0)
    known = np.stack([dictionary()[name] for name in STENCILS])
    np.testing.assert_allclose(project(known, SPACES["level set stencils"]), known, atol=1e-12)
    kernels = rng.standard_normal((50, 3, 3))
    for basis in SPACES.values():
        near = project(kernels, basis)
        np.testing.assert_allclose(project(near, basis), near, atol=1e-12)
        np.testing.assert_allclose(np.vdot(kernels - near, near), 0, atol=1e-10)
    assert 0 < energy(kernels, SPACES["central differences"]) < energy(kernels, SPACES["mean-zero"]) < 1


@pytest.mark.parametrize("name", SPACES)
def test_a_random_removal_takes_as_much(name):
    rng = np.random.default_rng(1)
    kernels = rng.standard_normal((2, 25, 3, 3))
    basis = SPACES[name]
    left, near = (np.reshape(k, (-1, 9)) for k in (remove_as_much(kernels, basis, rng), project(kernels, basis)))
    points = kernels.reshape(-1, 9)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), np.linalg.norm(near, axis=1))
    np.testing.assert_allclose(np.linalg.norm(points - left, axis=1), np.linalg.norm(points - near, axis=1))
    assert not np.allclose(left, near, atol=0.1)


def test_a_zero_kernel_stays_zero():
    assert not remove_as_much(np.zeros((1, 3, 3)), SPACES["mean-zero"], np.random.default_rng(0)).any()


def test_random_subspaces_keep_their_share_on_average():
    rng = np.random.default_rng(2)
    kernels = rng.standard_normal((20, 3, 3))
    shares = [energy(kernels, random_basis(5, rng)) for _ in range(300)]
    assert abs(np.mean(shares) - 5 / 9) < 0.02
