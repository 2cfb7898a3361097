"""The fused steps: their hand-derived adjoint against autograd and against finite differences of the loss."""

import os
import subprocess
import sys

import numba
import pytest
import torch

from lsbook.fused import fused_steps
from lsbook.levelset import LevelSetStep, Speeds, cfl, sliced_step, speeds

pytestmark = pytest.mark.usefixtures("one_thread")

SPACINGS = [(1.0, 1.0), (0.7, 1.6)]


def random_case(shape: tuple[int, ...], spacing: tuple[float, float], gamma: float, seed: int = 3):
    """u, four independent random speeds (transport and balloon of either sign where gamma is 0), and a stable dt."""
    generator = torch.Generator().manual_seed(seed)
    u, bend, wind_y, wind_x, push = 2 * torch.rand(5, *shape, generator=generator, dtype=torch.float64) - 1
    v = Speeds(bend.abs(), wind_y, wind_x, push if gamma == 0 else gamma * push.abs())
    return u, v, 0.15 * min(spacing) ** 2


def gradients(advance, u: torch.Tensor, v: Speeds) -> list[torch.Tensor]:
    """Derivatives of a loss without symmetry with respect to u0 and to the four speeds."""
    inputs = [field.detach().clone().requires_grad_() for field in (u, *v)]
    out = advance(inputs[0], Speeds(*inputs[1:]))
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    return list(torch.autograd.grad((weights * out + out**2).sum(), inputs))


@pytest.mark.parametrize("gamma", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("shape, spacing", [((1, 1, 12, 12), SPACINGS[0]), ((3, 1, 9, 14), SPACINGS[1])])
def test_gradients_equal_autograd_through_the_definition(shape, spacing, gamma):
    u, v, dt = random_case(shape, spacing, gamma)
    step = LevelSetStep(dt, spacing)

    def convolved(u, v):
        for _ in range(20):
            u = step(u, v)
        return u

    expected = gradients(convolved, u, v)
    ours = gradients(lambda u, v: fused_steps(u, v, dt, 20, spacing), u, v)
    for name, a, b in zip(("u0", *Speeds._fields), ours, expected, strict=True):
        assert b.norm() > 1e-3, name
        assert (a - b).norm() / b.norm() < 1e-10, name


@pytest.mark.parametrize("spacing", SPACINGS)
def test_gradcheck(spacing):
    u, v, dt = random_case((2, 1, 4, 5), spacing, 0.0)
    inputs = [field.requires_grad_() for field in (u, *v)]
    assert torch.autograd.gradcheck(lambda u, *v: fused_steps(u, Speeds(*v), dt, 3, spacing), inputs)


def test_gradients_of_speeds_shared_by_a_batch_and_of_the_coefficients():
    """One g for three starts, and three scalars: autograd sums the adjoint's fields over what they were spread to."""
    u, _, _ = random_case((3, 1, 9, 8), (1.0, 1.0), 1.0)
    g = torch.rand(1, 1, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    coefficients = torch.tensor([0.7, 1.5, -0.9], dtype=torch.float64, requires_grad=True)

    def derivatives(advance):
        return torch.autograd.grad((advance(u, speeds(g, *coefficients)) ** 3).sum(), (g, coefficients))

    def sliced(u, v):
        for _ in range(10):
            u = sliced_step(u, v, 0.15)
        return u

    for a, b in zip(derivatives(lambda u, v: fused_steps(u, v, 0.15, 10)), derivatives(sliced), strict=True):
        assert b.abs().min() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_forward_is_the_same_with_and_without_a_gradient_to_keep():
    u, v, dt = random_case((3, 1, 9, 14), (1.0, 1.0), 0.0)
    free = fused_steps(u, v, dt, 30)
    assert not free.requires_grad
    assert torch.equal(free, fused_steps(u.clone().requires_grad_(), v, dt, 30))
    assert torch.equal(free, fused_steps(fused_steps(u, v, dt, 11), v, dt, 19))


def test_no_steps_change_nothing_and_inputs_are_not_written_to():
    u, v, dt = random_case((2, 1, 9, 14), (1.0, 1.0), 0.0)
    assert torch.equal(fused_steps(u, v, dt, 0), u)
    copies = [field.clone() for field in (u, *v)]
    gradients(lambda u, v: fused_steps(u, v, dt, 4), u, v)
    assert not torch.equal(fused_steps(u, v, dt, 4), u)
    assert all(torch.equal(a, b) for a, b in zip(copies, (u, *v), strict=True))


def test_backward_twice_gives_the_same_gradient():
    u, v, dt = random_case((2, 1, 9, 14), (1.0, 1.0), 0.0)
    u.requires_grad_()
    loss = (fused_steps(u, v, dt, 5) ** 2).sum()
    first, second = (torch.autograd.grad(loss, u, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_views_in_other_memory_orders_are_read_correctly():
    u, v, dt = random_case((2, 1, 9, 9), (1.0, 1.0), 0.0)
    turned, *turned_v = [field.transpose(2, 3) for field in (u, *v)]
    copied, *copied_v = [field.transpose(2, 3).contiguous() for field in (u, *v)]
    assert not turned.is_contiguous()
    expected = fused_steps(copied, Speeds(*copied_v), dt, 5)
    assert torch.equal(fused_steps(turned, Speeds(*turned_v), dt, 5), expected)


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch():
    u, v, dt = random_case((3, 1, 9, 14), (1.0, 1.0), 0.0)
    together = fused_steps(u, v, dt, 20)
    alone = fused_steps(u[1:2], Speeds(*(field[1:2] for field in v)), dt, 20)
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("steps", [10, 60])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_gradients_from_a_0_1_start_in_single_precision(steps, alpha):
    """Ahead of the front u falls off by a factor each pixel, down to numbers whose squares are 0 in float32.

    There |grad u| is 0 and its derivative must be small: the coefficients' gradients are compared with float64.
    """

    def derivatives(kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        u = torch.zeros(1, 1, 80, 80, dtype=kind)
        u[:, :, 2:8, 2:8] = 1
        u.requires_grad_()
        coefficients = torch.tensor([alpha, 1.0, 0.5], dtype=kind, requires_grad=True)
        v = speeds(torch.ones_like(u), *coefficients)
        assert cfl(0.2, torch.ones(1, 1, 80, 80), alpha, 1.0, 0.5) < 1
        return torch.autograd.grad(fused_steps(u, v, 0.2, steps).sum(), (u, coefficients))

    (du, dc), (_, exact) = derivatives(torch.float32), derivatives(torch.float64)
    assert du.isfinite().all() and dc.isfinite().all()
    assert du.abs().max() < 1e3
    torch.testing.assert_close(dc.double(), exact, rtol=1e-3, atol=1e-3)


def test_a_start_without_slope_gives_zero_gradients_of_the_speeds():
    u, v, dt = random_case((1, 1, 9, 14), (1.0, 1.0), 1.0)
    du, *dv = gradients(lambda u, v: fused_steps(u, v, dt, 5), torch.ones_like(u), v)
    assert du.isfinite().all() and du.any()
    assert not any(field.any() for field in dv)


def kept_by(u: torch.Tensor, v: Speeds, dt: float, steps: int) -> int:
    """How many states the graph of a run holds on to."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: sizes.append(saved.numel()), lambda nothing: nothing):
        fused_steps(u, v, dt, steps)
    return sum(sizes) // u.numel()


def test_memory_grows_with_the_root_of_the_number_of_steps():
    u, v, dt = random_case((2, 1, 40, 40), (1.0, 1.0), 1.0)
    u.requires_grad_()
    for steps, states in ((1, 1), (25, 5), (50, 7), (100, 10), (400, 20), (800, 28)):
        assert kept_by(u, v, dt, steps) == 4 + states  # and the four speeds
    assert kept_by(u.detach(), v, dt, 100) == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 17])
def test_stretches_of_every_length_join(steps):
    u, v, dt = random_case((2, 1, 7, 9), (1.0, 1.0), 0.0)

    def one_by_one(u, v):
        for _ in range(steps):
            u = fused_steps(u, v, dt, 1)
        return u

    for a, b in zip(
        gradients(lambda u, v: fused_steps(u, v, dt, steps), u, v), gradients(one_by_one, u, v), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_operator_keeps_the_rules_of_torch():
    u, v, dt = random_case((2, 1, 5, 6), (1.0, 1.0), 0.0)
    fields = torch.stack([field[:, 0] for field in v]).requires_grad_()
    torch.library.opcheck(torch.ops.lsbook.steps, (u[:, 0].requires_grad_(), fields, dt, 1.0, 1.0, 5, 2))


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", [(1, 1, 31, 17), (32, 1, 8, 9), (1, 1, 99, 20)])  # the last in two bands of rows
@pytest.mark.parametrize("threads", [1, 2])
def test_a_hundred_steps_equal_the_definition(threads, shape, dtype, bound):
    u, v, _ = random_case(shape, (1.0, 1.0), 1.0)
    u, v, step = u.to(dtype), Speeds(*(field.to(dtype) for field in v)), LevelSetStep(0.1)
    torch.set_num_threads(threads)  # which the loops follow; one_thread sets it back
    ours = fused_steps(u, v, 0.1, 100)
    assert torch.get_num_threads() == threads, "numba and torch share OpenMP's number of threads"
    assert numba.get_num_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)
    torch.set_num_threads(1)
    for _ in range(100):
        u = step(u, v)
    assert (ours - u).abs().max() < bound


def test_the_first_step_of_a_process_leaves_the_number_of_threads_alone():
    """Else what is trained after it adds up in another order, and ends with other bits than if it ran alone."""
    code = "import torch; from lsbook.fused import fused_steps; from lsbook.levelset import Speeds;"
    code += "torch.set_num_threads(1); fused_steps(torch.rand(1, 1, 9, 9), Speeds(*torch.rand(4, 1, 1, 9, 9)), 0.1, 2);"
    code += "print(torch.get_num_threads())"
    surroundings = os.environ | {"NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize("steps", [1, 7, 8, 50])
def test_bands_of_rows_change_no_bit(steps):
    u, v, dt = random_case((1, 1, 101, 23), (1.0, 1.0), 0.0)
    alone = fused_steps(u, v, dt, steps)
    torch.set_num_threads(2)
    assert torch.equal(fused_steps(u, v, dt, steps), alone)
    with_gradient = fused_steps(u.requires_grad_(), v, dt, steps)
    torch.set_num_threads(1)
    assert torch.equal(with_gradient, alone)
