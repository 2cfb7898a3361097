"""Networks that only the experiment needs: a solver that asks gray values, kernels kept in a subspace or followed."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lsbook.files import atomic_path
from lsbook.levelset import Speeds, gaussian_blur
from lsbook.networks import LevelSetNetwork, build_model

from .classical import DARKEST
from .subspaces import subspaces


class GrayLSE(LevelSetNetwork):
    """The LSE with a balloon that asks the gray value: gamma (2 L - 1) in place of gamma g.

    L = 1 / (1 + (likeness (I - m))^2) of the smoothed image; m is its median in the seed, :data:`DARKEST` at least. The
    front grows where the image is like the seed and shrinks where it is not; edges act by curvature and transport as
    before. The classical peers use the same likeness. |2 L - 1| <= 1, so the CFL bound holds as it stands.

    Args:
        likeness: 1 / likeness is the difference in I at which the front rests.
        options: those of :class:`lsbook.networks.LevelSetNetwork`.
    """

    def __init__(self, likeness: float, **options):
        super().__init__(False, False, **options)
        self.likeness = likeness

    def speeds(self, image: Tensor) -> Speeds:
        smooth = gaussian_blur(image, self.sigma)
        inside = self.start(image)[0, 0] > 0
        middle = smooth[:, 0, inside].median(dim=1).values.clamp(min=DARKEST)
        like = 1 / (1 + (self.likeness * (smooth - middle.view(-1, 1, 1, 1))) ** 2)
        return super().speeds(image)._replace(push=self.coefficients()[2] * (2 * like - 1))


class Within(nn.Module):
    """Keeps 3x3 kernels in a subspace: what is trained is free, what is applied is its orthogonal projection.

    At the start the kernels are lengthened by sqrt(9 / dimension), so that projections are as long as free kernels are.
    """

    def __init__(self, basis: Tensor):
        super().__init__()
        self.dimension = len(basis)
        self.register_buffer("projector", basis.T @ basis)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return (weight.flatten(2).to(self.projector) @ self.projector).to(weight).view_as(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * (9 / self.dimension) ** 0.5


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The 3x3 convolutions of a network by name."""
    named = model.named_modules()
    return {name: m for name, m in named if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}


def build(name: str, within: str = "", **options) -> nn.Module:
    """As :func:`lsbook.networks.build_model`, with more choices; an option ``likeness`` makes a :class:`GrayLSE`.

    Args:
        name: also ``monai-unet``: MONAI's U-Net as it comes (instance normalization, PReLU, strided and transposed
            convolutions, residual units), five levels of 8 to 128 channels as in the textbook U-Net.
        within: a key of :func:`experiments.subspaces.subspaces` for all 3x3 kernels.
    """
    if name == "monai-unet":
        from monai.networks.nets import UNet  # here: it takes seconds

        net = UNet(2, 1, 1, channels=(8, 16, 32, 64, 128), strides=(2, 2, 2, 2), num_res_units=2)
        model: nn.Module = nn.Sequential(net, nn.Sigmoid())
    else:
        model = GrayLSE(**options) if "likeness" in options else build_model(name, **options)
    for conv in convolutions(model).values() if within else ():
        parametrize.register_parametrization(conv, "weight", Within(torch.from_numpy(subspaces()[within])))
    return model


def load(path: Path) -> tuple[nn.Module, dict]:
    """A network trained with :func:`build`, from its ``best.safetensors``, kernels as they are applied; its info."""
    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["lsbook"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = build(info["model"], **info["options"])
    model.load_state_dict(state)
    for conv in convolutions(model).values():
        if parametrize.is_parametrized(conv):
            parametrize.remove_parametrizations(conv, "weight")
    return model.eval(), info


class Follow:
    """Keeps the 3x3 kernels after each epoch: a callback of Lightning Fabric, ``folder/NNN.safetensors``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_epoch_end(self, model: nn.Module, epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{epoch:03d}.safetensors") as partial:
            save_file({f"{n}.weight": c.weight.detach().contiguous() for n, c in convolutions(model).items()}, partial)
