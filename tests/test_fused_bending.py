"""The fused steps with learned curvature against the definition: values, all gradients, and what is kept."""

import pytest
import torch

from lsbook.fused_bending import fused_learned_steps
from lsbook.levelset import Speeds, sliced_step
from lsbook.networks import BAND, LearnedCurvature, build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def case(shape: tuple[int, ...], channels: int = 5, dtype: torch.dtype = torch.float64, scale: float = 3.0):
    """u, speeds of either sign, and a curvature whose kernels are all random."""
    torch.manual_seed(7)
    bend = LearnedCurvature(channels)
    torch.nn.init.normal_(bend.normal, std=0.4)
    torch.nn.init.normal_(bend.divergence, std=0.4)
    u, factor, wind_y, wind_x, push = 2 * torch.rand(5, *shape, dtype=dtype) - 1
    return scale * u, Speeds(factor.abs(), wind_y, wind_x, push), bend.to(dtype)


def defined(u, v, bend, steps, dt=0.1, band=BAND):
    for _ in range(steps):
        u = sliced_step(u, v, dt, bending=bend).clamp(-band, band)
    return u


def fused(u, v, bend, steps, dt=0.1, band=BAND):
    return fused_learned_steps(u, v, bend.normal, bend.divergence, dt, band, steps)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", [(1, 1, 31, 17), (5, 1, 8, 9)])
def test_a_hundred_steps_equal_the_definition(shape, dtype, bound):
    u, v, bend = case(shape, dtype=dtype)
    with torch.no_grad():
        ours, theirs = (form(u, v, bend, 100, dt=0.05) for form in (fused, defined))
    assert (theirs - u).abs().max() > 1
    assert (ours - theirs).abs().max() < bound


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize("band", [BAND, 1.0])
def test_gradients_equal_autograd_through_the_definition(steps, band):
    """With the narrow band most pixels are clipped at some step."""
    u, v, bend = case((2, 1, 9, 12))
    inputs = [field.requires_grad_() for field in (u, *v)] + list(bend.parameters())

    def gradients(form):
        out = form(u, v, bend, steps, band=band)
        weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
        return torch.autograd.grad((weights * out + out**2).sum(), inputs)

    names = ("u", *Speeds._fields, "normal", "divergence")
    for name, ours, theirs in zip(names, gradients(fused), gradients(defined), strict=True):
        assert theirs.norm() > 1e-3, name
        assert (ours - theirs).norm() / theirs.norm() < 1e-10, name


def test_gradcheck():
    u, v, bend = case((1, 1, 4, 5), channels=2, scale=1.0)
    kernels = [p.detach().clone().requires_grad_() for p in bend.parameters()]

    def steps(u, *rest):
        return fused_learned_steps(u, Speeds(*rest[:4]), *rest[4:], 0.05, BAND, 3)

    assert torch.autograd.gradcheck(steps, [field.requires_grad_() for field in (u, *v)] + kernels)


def test_clipped_kappa_has_no_gradient_but_its_front_still_moves():
    u, v, bend = case((1, 1, 6, 6), scale=0.5)
    torch.nn.init.constant_(bend.divergence, 40.0)
    with torch.no_grad():
        torch.testing.assert_close(fused(u, v, bend, 4), defined(u, v, bend, 4))
    ours, theirs = (
        torch.autograd.grad(form(u, v, bend, 4).sum(), list(bend.parameters())) for form in (fused, defined)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch():
    u, v, bend = case((3, 1, 8, 9))
    with torch.no_grad():
        together = fused(u, v, bend, 20)
        assert torch.equal(together[1:2], fused(u[1:2], Speeds(*(field[1:2] for field in v)), bend, 20))


def test_gradients_from_a_0_1_start_in_single_precision():
    u, _, bend = case((1, 1, 40, 40), channels=16, dtype=torch.float32)
    u = torch.zeros_like(u)
    u[:, :, 5:15, 5:15] = 1
    v = Speeds(*(torch.full_like(u, speed) for speed in (0.3, 0.1, -0.1, 0.5)))
    gradients = torch.autograd.grad(fused(u, v, bend, 60).sum(), list(bend.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def operators(tensor: torch.Tensor) -> set[str]:
    """Names of all operators that a tensor was computed with and that have a gradient."""
    nodes, seen = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [below for below, _ in node.next_functions if below is not None]
    return {type(node).__name__ for node in seen}


def test_the_level_set_network_takes_it_on_a_cpu():
    image = torch.rand(2, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    outs = []
    for method in ("auto", "fused", "stacked"):
        torch.manual_seed(0)
        outs.append(build_model("lsn", steps=30, method=method)(image))
    assert torch.equal(outs[0], outs[1])
    assert [any("LearnedSteps" in name for name in operators(out)) for out in outs] == [True, True, False]
    torch.testing.assert_close(outs[2], outs[0], rtol=0, atol=1e-4)


def test_no_steps_change_nothing():
    u, v, bend = case((1, 1, 5, 5))
    assert fused(u, v, bend, 0) is u
