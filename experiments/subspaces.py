"""Subspaces of 3x3 kernels that finite differences suggest, and what is taken away from a kernel by leaving one.

All are subspaces of R^9 with the usual inner product, given by an orthonormal basis ``(dimension, 9)``. Central
differences lie in the level set stencils, these among the mean-zero kernels. The monomials are a second space of
dimension 5 among the mean-zero kernels: kernels whose *entries* follow x, y, x^2, xy, y^2, where those of the level set
stencils have such *moments* only. The two share the mixed difference and the difference of the second differences,
u_xx - u_yy; a central difference has a cosine of 1 / sqrt(3) with its monomial, the Laplacian one of 1 / sqrt(5).

The span of the whole dictionary is no such space: it is all of R^9, and to project on it changes nothing.
"""

import numpy as np
from scipy import stats

from lsbook.kernels import MONOMIALS, dictionary

STENCILS = ("central x", "central y", "second x", "second y", "mixed xy")
MEAN = np.full((1, 9), 1 / 3)  # the unit vector that all mean-zero kernels are orthogonal to


def orthonormal(kernels: np.ndarray) -> np.ndarray:
    """An orthonormal basis ``(dimension, 9)`` of the span of kernels ``(n, 3, 3)``."""
    _, size, axes = np.linalg.svd(kernels.reshape(-1, 9), full_matrices=False)
    return axes[size > 1e-10 * size.max()]


def mean_zero(kernels: np.ndarray) -> np.ndarray:
    """Kernels ``(n, 3, 3)`` without their mean."""
    return kernels - kernels.mean(axis=(1, 2), keepdims=True)


def subspaces() -> dict[str, np.ndarray]:
    """The spaces of the causal test by name: basis ``(dimension, 9)``."""
    one, x, xx = MONOMIALS
    monomials = [np.outer(one, x), np.outer(x, one), np.outer(one, xx), np.outer(x, x), np.outer(xx, one)]
    known = dictionary()
    return {
        "mean-zero": orthonormal(mean_zero(np.eye(9).reshape(9, 3, 3))),
        "monomials": orthonormal(mean_zero(np.stack(monomials))),
        "level set stencils": orthonormal(np.stack([known[name] for name in STENCILS])),
        "central differences": orthonormal(np.stack([known[name] for name in STENCILS[:2]])),
    }


def project(weight: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Orthogonal projection of kernels ``(..., 3, 3)``."""
    points = weight.reshape(-1, 9)
    return (points @ basis.T @ basis).reshape(weight.shape)


def energy(weight: np.ndarray, basis: np.ndarray) -> float:
    """Share of the squared length of kernels ``(..., 3, 3)`` that lies in a subspace."""
    return float((project(weight, basis) ** 2).sum() / (weight**2).sum())


def random_basis(dimension: int, rng: np.random.Generator, hold: np.ndarray = MEAN[:0]) -> np.ndarray:
    """A subspace of that dimension, uniformly distributed among those that hold the rows of ``hold``, orthonormal."""
    drawn = stats.ortho_group.rvs(9, random_state=rng)
    return np.linalg.qr(np.concatenate([hold, drawn])[:dimension].T)[0].T


def remove_as_much(weight: np.ndarray, basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take from each kernel as much as its projection does, but in a random direction.

    What is left has the length of the projection and is orthogonal to what was taken, as there; only the direction of
    it is uniformly distributed among those that allow this.
    """
    points = weight.reshape(-1, 9)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    kept = np.linalg.norm(points @ basis.T, axis=1, keepdims=True)
    cosine = np.divide(kept, length, out=np.ones_like(kept), where=length > 0)
    sine = np.sqrt(np.maximum(1 - cosine**2, 0))
    aside = rng.standard_normal(points.shape)
    unit = np.divide(points, length, out=np.zeros_like(points), where=length > 0)
    aside -= (aside * unit).sum(axis=1, keepdims=True) * unit
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return (kept * (cosine * unit + sine * aside)).reshape(weight.shape)
