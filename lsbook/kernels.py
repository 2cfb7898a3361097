"""Which stencil is a kernel? Reads the 3x3 kernels of any network and names each: nearest stencil, moments, operator.

Conventions. A layer cross-correlates, ``out[i, j] = sum_ab k[a, b] u[i + a - 1, j + b - 1]``: no flip, the kernel reads
as it is applied. x points to the right (last axis), y down (rows), h = 1 pixel, or the dilation of the layer. Every
stencil of :func:`dictionary` is scaled so that its operator has the coefficient 1: Sobel's holds 1/8, and ``scale`` is
the factor of that operator. A ReLU network can multiply one channel by c > 0 and divide the next by it, so a scale
has a meaning as a ratio within a kernel only; its sign has one.

An operator is a sum of moments times derivatives: ``u_xy`` has the factor sum k x y. Moments whose monomial has a
cosine below 0.05 with the kernel are left out, the mean of a random kernel in 11 %. The order is that of the lowest
derivative left, 0 for a kernel with a mean; all others fade beside it as h^p, the ``error O(h^p)``.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from .nifti import one_line
from .stencils import BACKWARD, CENTRAL, FORWARD, SECOND, Spacing, along_x, along_y

Source = nn.Module | Mapping[str, Tensor | np.ndarray] | str | os.PathLike

CONFUSABLE = 0.945  # |cosine| from which two stencils are one class; the two Laplacians have 3 / sqrt(10) = 0.949
NEGLIGIBLE = 0.05  # a moment is called zero if the kernel's cosine with its monomial is below this
DEAD = 1e-6  # a kernel shorter than this share of its layer's longest is called zero
KINDS = {2: "matrix of a linear layer", 3: "1-D convolution, or no convolution", 5: "3-D convolution"}


class Layer(NamedTuple):
    """A convolution: weights ``(out, in / groups, 3, 3)``, float64, batch normalization ``folded`` in (its name).

    ``padding`` may be "unknown": bounds are those of zero borders. Unknown groups are 1; no bound is too small by it.
    """

    name: str
    weight: np.ndarray
    groups: int
    padding: str
    folded: str


class Nearest(NamedTuple):
    """For n kernels: number of the nearest stencil (-1 for a zero kernel), signed cosine, factor of the stencil."""

    stencil: np.ndarray
    cosine: np.ndarray
    scale: np.ndarray


def read_file(path: str | os.PathLike) -> dict[str, Tensor | np.ndarray]:
    """All arrays of a safetensors or npz file, by name.

    Raises:
        OSError, ValueError: if there is no such file, or it is none of these.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give weights as .safetensors or .npz")
    Path(path).open("rb").close()  # says why it may not be read, which safetensors does not
    try:
        if Path(path).suffix == ".npz":
            with np.load(path) as file:
                return dict(file)
        return load_file(path)
    except Exception as error:  # whatever a broken archive leads to
        remedy = "give a .safetensors or .npz file; safetensors.torch.save_file writes a state dict"
        raise ValueError(f"{path}: cannot be read as weights ({one_line(error)}); {remedy}") from error


def why_skipped(weight: np.ndarray, module: nn.Module | None) -> str:
    """Why an array is not analysed, or nothing."""
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolution: it up-samples, so its kernel is no stencil on one grid"
    if weight.ndim != 4:
        return KINDS.get(weight.ndim, f"array of {weight.ndim} axes, no convolution")
    if weight.shape[2:] != (3, 3):
        keras = weight.shape[:2] == (3, 3)
        shape = "x".join(map(str, weight.shape[2:]))
        return "(3, 3, in, out) as in Keras: transpose it to (out, in, 3, 3)" if keras else f"{shape} kernels, not 3x3"
    return "" if weight.size else "no kernels in it"


def read_kernels(source: Source) -> tuple[list[Layer], dict[str, str]]:
    """The 3x3 convolutions of a network, and what was skipped: name to reason. Depthwise layers are among them.

    Any floating array ``(out, in, 3, 3)`` of a module, a state dict, or a .safetensors or .npz file counts. Batch
    normalization with running statistics is folded in: each output channel times weight / sqrt(variance + eps), eps =
    1e-5 where only arrays are given. It is recognised by its name (the next number; bn1 or norm1 for conv1; MONAI's
    adn.N) and size; in a module or state dict it must also come later. A file has no order: give the module of a
    network that normalizes first. Groups, borders and transposed convolutions are not recognised in arrays either.

    Raises:
        OSError, ValueError: for a file that cannot be read, weights that are not finite, or none of this shape.
    """
    label = str(source) if isinstance(source, str | os.PathLike) else f"this {type(source).__name__}"
    modules = dict(source.named_modules()) if isinstance(source, nn.Module) else {}
    state = source.state_dict() if modules else source if isinstance(source, Mapping) else read_file(source)
    arrays = {k: v.detach().double().cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()}
    arrays = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
    norms = {k.removesuffix(".running_var"): n for n, k in enumerate(arrays) if k.endswith("running_var")}
    layers, skipped = [], {}
    for position, (key, value) in enumerate(arrays.items()):
        name = key.removesuffix(".weight")
        module = modules.get("" if key == "weight" else name)
        if value.ndim > 1 and (reason := why_skipped(value, module)):
            skipped[name] = reason
        if value.ndim < 2 or name in skipped:
            continue
        weight, folded = value.astype(np.float64), ""
        for norm in sorted(norm_names(name) & norms.keys()):
            late = isinstance(source, str | os.PathLike) or norms[norm] > position
            if not folded and late and len(arrays[f"{norm}.running_var"]) == len(weight):
                eps = getattr(modules.get(norm), "eps", 1e-5)
                factor = arrays.get(f"{norm}.weight", 1.0) / np.sqrt(arrays[f"{norm}.running_var"] + eps)
                weight, folded = weight * np.reshape(factor, (-1, 1, 1, 1)), norm
        if not np.isfinite(weight).all():
            raise ValueError(f"{label}: {name} holds NaN or infinite weights; take a checkpoint from before that")
        groups, padding = getattr(module, "groups", 1), getattr(module, "padding_mode", "unknown")
        layers.append(Layer(name, weight, groups, padding, folded))
    for norm in sorted(norms.keys() - {layer.folded for layer in layers}):
        skipped[norm] = "batch normalization after none of these layers, as far as names tell: not folded"
    if not layers:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5]) or "no convolution"
        raise ValueError(f"{label}: no 3x3 convolution weights ({found}); give arrays of shape (out, in, 3, 3)")
    return layers, skipped


def norm_names(name: str) -> set[str]:
    """Names that batch normalization right after the convolution ``name`` may have."""
    parent, dot, leaf = name.rpartition(".")
    leaves = {str(int(leaf) + 1)} if leaf.isdigit() else {leaf.replace("conv", n) for n in ("bn", "norm", "adn.N")}
    return {parent + dot + other for other in leaves - {leaf}}


@cache
def dictionary() -> dict[str, np.ndarray]:
    """The known stencils ``(3, 3)``, one of each pair of opposite signs, their operators with coefficient 1 at h = 1.

    The eleven of Actor, Fuentes, Riviere 2020 (four Sobel edges are two stencils with two signs), one-sided, central
    and second differences in x and y, second differences along both diagonals (operator (u_xx + u_yy) / 2 +- u_xy, the
    second derivative along the diagonal), and the mixed difference.
    """
    tent, centre = np.array([1.0, 2.0, 1.0]), np.pad([[1.0]], 1)
    pairs = {"backward": BACKWARD, "forward": FORWARD, "central": CENTRAL, "second": SECOND}
    known = {f"{n} {axis}": f(w).numpy() for n, w in pairs.items() for axis, f in (("x", along_x), ("y", along_y))}
    central, laplacian = np.array(CENTRAL), known["second x"] + known["second y"]
    down = np.diag(SECOND) / 2
    return known | {
        "second diagonal down": down,
        "second diagonal up": down[:, ::-1],
        "mixed xy": np.outer(central, central),
        "Sobel x": np.outer(tent / 4, central),
        "Sobel y": np.outer(central, tent / 4),
        "Laplacian, 5 points": laplacian,
        "Laplacian, 9 points": (1 - 9 * centre) / 3,
        "Laplacian, diagonal": down + down[:, ::-1],
        "sharpen": centre - laplacian,
        "mean": np.full((3, 3), 1 / 9),
        "Gaussian": np.outer(tent, tent) / 16,
        "identity": centre,
    }


@cache
def atoms() -> np.ndarray:
    """:func:`dictionary` as unit vectors, ``(20, 9)``."""
    points = np.stack(list(dictionary().values())).reshape(-1, 9)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@cache
def classes() -> tuple[str, ...]:
    """For each stencil its class, named by the first member: stencils that nearly coincide are not told apart."""
    names = list(dictionary())
    labels = connected_components(np.abs(atoms() @ atoms().T) >= CONFUSABLE)[1].tolist()
    return tuple(names[labels.index(c)] + (" or alike" if labels.count(c) > 1 else "") for c in labels)


def unit(kernels: np.ndarray) -> np.ndarray:
    """Kernels ``(n, 3, 3)`` or ``(n, 9)`` as unit vectors ``(n, 9)``; zero kernels (:data:`DEAD`) become 0."""
    points = np.reshape(kernels, (-1, 9))
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, length, out=np.zeros_like(points), where=length > DEAD * length.max(initial=0))


def nearest(kernels: np.ndarray) -> Nearest:
    """The stencil with the largest |cosine| for each of the kernels ``(n, 3, 3)``."""
    cosines = unit(kernels) @ atoms().T
    best = np.abs(cosines).argmax(axis=1)
    cosine = np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
    lengths = np.linalg.norm(np.stack(list(dictionary().values())), axis=(1, 2))
    scale = cosine * np.linalg.norm(kernels, axis=(1, 2)) / lengths[best]
    return Nearest(np.where(cosine == 0, -1, best), cosine, scale)


MONOMIALS = np.array([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [0.5, 0.0, 0.5]])  # x^a / a! at x = -1, 0, 1
# (a, b) of the nine moments, by order; their orders; the derivatives that they go with.
TERMS = sorted(((a, b) for a in range(3) for b in range(3)), key=lambda ab: (sum(ab), ab[1]))
DEGREES, NAMES = [a + b for a, b in TERMS], ["u_" + "x" * a + "y" * b if a + b else "u" for a, b in TERMS]


def moments(kernels: np.ndarray, spacing: Spacing = (1.0, 1.0)) -> np.ndarray:
    """The nine moments ``m[n, a, b] = sum k x^a y^b / (a! b!)``, a, b <= 2, of kernels ``(n, 3, 3)``.

    By Taylor's formula m[a, b] is the coefficient of d^(a+b) u / dx^a dy^b in what the kernel computes (the sum rules
    of PDE-Net: Long, Lu, Ma, Dong 2018). They determine the kernel and all higher ones. ``spacing`` is (hy, hx).
    """
    hy, hx = spacing
    powers = np.arange(3.0)[:, None]
    return np.einsum("nij,bi,aj->nab", kernels, MONOMIALS * hy**powers, MONOMIALS * hx**powers)


class Operator(NamedTuple):
    """A kernel as differential operator: order of the derivative, order of the error (None: exact), the text."""

    order: int | None
    accuracy: int | None
    text: str


def operators(kernels: np.ndarray) -> list[Operator]:
    """What each of the kernels ``(n, 3, 3)`` approximates, terms by order, then size; zero kernels have order None."""
    table = np.stack([moments(kernels)[:, a, b] for a, b in TERMS], axis=1)
    basis = np.stack([np.outer(MONOMIALS[b], MONOMIALS[a]).ravel() for a, b in TERMS])
    large = np.abs(unit(kernels) @ unit(basis).T) > NEGLIGIBLE
    ranks = np.lexsort((-np.round(np.abs(table), 9), np.tile(DEGREES, (len(table), 1))))
    return [operator(*row) for row in zip(table.tolist(), large.tolist(), ranks.tolist(), strict=True)]


def operator(row: list[float], large: list[bool], ranks: list[int]) -> Operator:
    """The operator with the moments ``row``, in the order of :data:`TERMS`: the large ones, as they are ranked."""
    terms = [t for t in ranks if large[t]]
    if not terms:
        return Operator(None, None, "zero kernel")
    order = DEGREES[terms[0]]
    gaps = [DEGREES[t] - order for t in terms if DEGREES[t] > order] + [2] * (order > 0)  # x^3 = x on three points
    text = " ".join([f"{row[t]:+.3g} {NAMES[t]}" for t in terms]).removeprefix("+")
    error = f"error O(h^{min(gaps)})" if gaps else "exact"
    mean = " (it has a mean)" if order == 0 else ""
    return Operator(order, min(gaps, default=None), f"{text}; order {order}{mean}, {error}")
