"""The choice of the form of the steps: all agree, and one without numba is found by itself."""

import pytest
import torch

from lsbook import networks, stepping
from lsbook.levelset import LevelSetStep, Speeds
from lsbook.stepping import advance

pytestmark = pytest.mark.usefixtures("one_thread")


def case() -> tuple[torch.Tensor, Speeds]:
    generator = torch.Generator().manual_seed(4)
    u, bend, wind_y, wind_x, push = 2 * torch.rand(5, 2, 1, 9, 11, generator=generator, dtype=torch.float64) - 1
    return u, Speeds(bend.abs(), wind_y, wind_x, push)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.6)])
def test_all_methods_agree(spacing):
    u, v = case()
    results = [advance(u, v, 0.05, 20, spacing, method) for method in stepping.METHODS]
    assert not torch.equal(results[0], u)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-12)


def test_numba_is_used_on_a_cpu_and_missed_nowhere(monkeypatch):
    u, v = case()
    assert stepping.choose_method(u) == "fused"
    assert stepping.choose_method(u.to("meta")) == "stacked"
    monkeypatch.setattr(stepping, "find_spec", lambda name: None)
    assert stepping.choose_method(u) == "stacked"
    steps = []
    monkeypatch.setattr(LevelSetStep, "forward", lambda self, u, v: steps.append(1) or u)
    advance(u, v, 0.05, 7)
    assert len(steps) == 7


def test_a_network_runs_by_either_method():
    image = torch.rand(2, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    fused, stacked = (networks.build_model("lse", steps=30, method=name)(image) for name in ("fused", "stacked"))
    torch.testing.assert_close(fused, stacked, rtol=0, atol=1e-4)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of auto, fused, stacked, not 'cuda'"):
        advance(*case(), 0.1, 1, method="cuda")
    for name in ("lse", "lsn"):
        with pytest.raises(ValueError, match="not 'cuda'"):
            networks.build_model(name, steps=2, method="cuda")(torch.zeros(1, 1, 8, 8))
