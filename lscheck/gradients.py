"""Part II, attention, adjoints and faults: checks of chapters 8 to 10."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .answers import call, close, columns, evaluate, judged, require


def shares(s: float) -> np.ndarray:
    """Ideal weights of the stencils without the kink at s, or zeros if there is none."""
    starts, ideal = np.array([0, -1, -2]), np.array([0.1, 0.6, 0.3])
    clean = ideal * ((s < starts) | (s > starts + 3))
    return clean / max(clean.sum(), 1e-9)


@judged
def check_shares(answer: Any) -> str:
    """Chapter 8: a function of the kink's place s, weights of the forward derivative's stencils 0..3, -1..2, -2..1."""
    for s in (3.5, -2.5, 2.5, 1.5, -0.5, -1.5):
        found, right = evaluate(answer, s, shape=(3,)), shares(s)
        where = f"for a kink at {s} your weights {np.round(found, 3).tolist()} "
        total, mirror, start = found.sum(), np.allclose(right, right[::-1]), int(np.argmax(found * (right == 0)))
        require(abs(total - 1) < 1e-3, where + f"sum to {total:.3g}; on u = x they would not give the slope 1.")
        require(mirror or not close(found, right[::-1]), where + "are in the order -2..1, -1..2, 0..3.")
        backward = close(found, shares(-s)) and 0 in found
        require(not backward, where + "are those of the backward derivative, which looks to the other side.")
        crossed = found[start] > 0.05 and right[start] == 0
        require(not crossed, where + f"trust the stencil {-start}..{3 - start}, which has the kink inside.")
        ratio = where + "do not keep the ratio 1 : 6 : 3 among the stencils without the kink."
        require(np.allclose(found, right, atol=0.05), ratio)
    return "a stencil across the kink is shut out, and the others share by the ideal weights."


def central(u: Tensor) -> Tensor:
    """The central difference with repeated ends, h = 1, of ``(n,)``."""
    padded = torch.cat([u[:1], u, u[-1:]])
    return (padded[2:] - padded[:-2]) / 2


@judged
def check_adjoint(answer: Any) -> str:
    """Chapter 9: a function of tensors ``(n,)``, transpose of the central difference with h = 1 and repeated ends."""
    n = 8
    D, M = columns(central, n), columns(answer, n)
    u, y = torch.rand(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair, other = float((D @ u.numpy()) @ y.numpy()), float(u.numpy() @ (M @ y.numpy()))
    unequal = f"for random u and y <D u, y> = {pair:.3f}, but <u, your y> = {other:.3f}. "
    inner, right = M[2:-2], D.T[2:-2]
    factor = (inner * right).sum() / (right**2).sum()
    linear = close(evaluate(answer, y, shape=(n,)), M @ y.numpy())
    require(linear, "your function is not linear in y, so it is no matrix.")
    itself = "That is D itself: what a pixel has read from its right it hands back to its right."
    require(not close(M, D), unequal + itself)
    times = f"It is {factor:.3g} times the right one." if close(inner, factor * right) else "It is another matrix."
    require(close(inner, right), unequal + times)
    minus = "Minus D is the transpose away from the ends only, since D repeats values there."
    require(not close(M, -D), unequal + minus)
    lost = abs((M - D.T).sum(axis=1)).max()
    require(close(M, D.T), unequal + f"At the ends {lost:.2g} of a value is lost: fold the padding back.")
    return "<D u, y> = <u, D^T y> for all u and y; the kernel is flipped, and the repeated ends are folded back."


AVERAGE = torch.full((1, 1, 3, 3), 1 / 9)
LAPLACE = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])


def padded(image: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """A 3x3 convolution, ``(B, 1, H, W)``, in the image's precision."""
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode=mode), kernel.to(image.dtype))


def rows(image: Tensor) -> Tensor:
    """The number of each row, ``(H, 1)``."""
    return torch.arange(image.shape[-2], dtype=image.dtype)[:, None]


RIGHT = {
    "that returns its input plus 1": lambda image: image + 1,
    "that averages with repeated borders": lambda image: padded(image, AVERAGE, "replicate"),
    "that answers with probabilities": lambda image: torch.sigmoid(3 * padded(image, AVERAGE, "replicate")),
    "whose rows differ by a rounding of 1e-7": lambda image: image + 1e-7 * rows(image) % 2e-7,
}
FAULTY = {
    "that averages with zero padding": lambda image: padded(image, AVERAGE, "constant"),
    "that takes differences with zero padding": lambda image: padded(image, LAPLACE, "constant"),
    "that adds a thousandth per row": lambda image: image + 0.001 * rows(image),
}


@judged
def check_border_test(answer: Any) -> str:
    """Chapter 10: a test of networks, a function that asserts (or returns whether) a constant image gets a constant."""
    shown: list[Tensor] = []
    require(callable(answer), f"a function of a network is asked for, not {type(answer).__name__}.")

    def accepts(network: Any) -> bool:
        def watched(image: Tensor) -> Tensor:
            shown.append(image)
            return network(image)

        try:
            outcome = answer(watched)
        except AssertionError:
            return False
        return outcome is None or bool(outcome)

    for name, network in (RIGHT | FAULTY).items():
        shown.clear()
        accepted = call(accepts, network)
        require(bool(shown), "your test never calls the network.")
        constant = all(float(image.max() - image.min()) == 0 for image in shown)
        zero = constant and not any(image.any() for image in shown)
        hint = (
            " Its image is 0, which zero padding continues well."
            if zero
            else " Look at all pixels, and forgive rounding only."
        )
        require(not (accepted and name in FAULTY), f"your test accepts a network {name}.{hint}")
        hint = " Constant need not mean equal to the input, or zero." if constant else " Its image is no constant."
        require(accepted or name in FAULTY, f"your test rejects a network {name}.{'' if 'rounding' in name else hint}")
    return f"it accepts {len(RIGHT)} networks that cannot know where the border is, and rejects {len(FAULTY)} that do."
