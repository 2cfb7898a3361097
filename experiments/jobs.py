"""What is run: one job for each model, fold and seed, with its recipe, fixed before folds 2 to 4 were tested.

Only the sets ``kernels``, ``solver`` and ``tuning`` came later: what they find is exploratory.

The recipe was found on folds 0 and 1, and their test scans were seen in the course of it. How many epochs a model gets
follows from the time plan (``plan.json``), not from its result. All models share folds, slices, loss, batch and the
choice of the best epoch by the validation scans.
"""

from dataclasses import dataclass, field

FOLDS = 5
LADDER = ("lse", "lse-g", "lsn", "unet", "unet-textbook")
LEVEL_SET = ("lse", "lse-g", "lsn")
CLASSICAL = ("threshold", "chan-vese", "morphological-gac", "itk-gac")
BELOW = {"lsn": "lse-g"}  # starts from the trained weights of the rung below, with its steps and seed
STEPS = 120  # of the LSE-G; the LSE finds its own number (experiments.lse_search)
RADIUS = 0.06  # of the LSE-G's seed disc, as a fraction of the side; the LSE finds its own


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; precision as Lightning Fabric names it."""

    epochs: int
    rate: float = 1e-3
    augmentation: str = "all"
    precision: str = "32-true"
    batch: int = 8


RECIPES = {
    "lse": Recipe(2, augmentation="none"),
    "lse-g": Recipe(12, augmentation="gray"),  # the seed stays where it is, so the liver must
    "lsn": Recipe(2, rate=5e-4, augmentation="gray"),
    "unet": Recipe(40, rate=2e-3, precision="bf16-mixed"),
    "unet-textbook": Recipe(30, rate=2e-3, precision="bf16-mixed"),
    "monai-unet": Recipe(30, rate=2e-3, precision="bf16-mixed"),
}
# Changes of one thing each: options of the model, or of its recipe
VARIANTS: dict[str, dict] = {
    "": {},
    "half-the-steps": {"steps": 0.5},  # as a factor
    "twice-the-steps": {"steps": 2},
    "half-the-radius": {"radius": 0.03},  # of the seed disc
    "twice-the-radius": {"radius": 0.12},
    "many-discs": {"discs": 12},  # the seed covers the mean liver of the training scans
    "many-discs-searched": {"discs": 12, "search_discs": True},  # the other settings are searched with that seed
    "wide": {"search": "wide"},  # wider ranges of the settings (experiments.lse_search)
    "gray": {"search": "gray"},  # also: the balloon asks the gray value (experiments.variants.GrayLSE)
    "gray-first": {"search": "gray-first"},  # the same in the ranges that were searched first
    "longer": {"epochs": 6},  # of the LSN
    "24-epochs": {"epochs": 24},  # of the LSE-G
    "as-lse-g": {"like": "lse-g"},  # steps, disc, epochs and changed slices of the LSE-G: what is left is g
    "plain": {"augmentation": "none"},
    "no-batch-norm": {"batch_norm": False},
    "256": {"size": 256},
    "mean-zero": {"within": "mean-zero"},  # all kernels, from the start
    "stencils": {"within": "level set stencils"},
    "followed": {"follow": True},  # the same training, kernels kept after each epoch
}


@dataclass(frozen=True)
class Job:
    """One training, or tuning, and its test; ``variant`` is a key of VARIANTS."""

    model: str
    fold: int
    seed: int = 0
    variant: str = ""
    change: dict = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "change", VARIANTS[self.variant])

    @property
    def name(self) -> str:
        """Name of the job's folder."""
        return "-".join(filter(None, [self.model, self.variant, f"fold{self.fold}", f"seed{self.seed}"]))

    @property
    def kind(self) -> str:
        """Model and variant: what jobs of several folds and seeds have in common."""
        return f"{self.model} {self.variant}".strip()

    @property
    def below(self) -> "Job | None":
        """The job whose weights this one starts from."""
        below = BELOW.get(self.model)
        return Job(below, self.fold, self.seed) if below else None


def jobs(sets: list[str], folds: int = FOLDS) -> list[Job]:
    """The jobs of some sets, each after the one that it starts from.

    main: the ladder on all folds. classical: the peers on all folds. seeds: two more seeds on fold 0. ablations: one
    change at a time on fold 0. solver: the LSE with settings from wider ranges, and with a balloon that asks gray
    values, on all folds. tuning: other steps, seeds and epochs of single folds, to be judged by validation, the LSE
    trained as the LSE-G is, and the classical peers in wider ranges. fine: the best network at 256 x 256 pixels on all
    folds. kernels: the paper's U-Net with kernels kept in a subspace, or followed through its training, and MONAI's
    U-Net, on all folds.

    Raises:
        ValueError: for an unknown set.
    """
    known = {
        "main": [Job(model, fold) for model in LADDER for fold in range(folds)],
        "classical": [Job(model, fold) for model in CLASSICAL for fold in range(folds)],
        "seeds": [Job(model, 0, seed) for model in LADDER for seed in (1, 2)],
        "ablations": [Job(model, 0, 0, v) for v in ("twice-the-steps", "many-discs") for model in ("lse", "lse-g")]
        + [Job("unet-textbook", 0, 0, v) for v in ("plain", "no-batch-norm")]
        + [Job("lse-g", 0, 0, "plain")],
        "solver": [Job("lse", fold, 0, v) for v in ("wide", "gray", "gray-first") for fold in range(folds)],
        "tuning": [Job("lse-g", 0, 0, v) for v in ("half-the-steps", "half-the-radius", "twice-the-radius")]
        + [Job("lse", 0, 0, "many-discs-searched"), Job("lsn", 1, 0, "longer"), Job("lse-g", 0, 0, "24-epochs")]
        + [Job("lse", fold, 0, "as-lse-g") for fold in range(folds)]
        + [Job("lse-g", fold, 0, "half-the-radius") for fold in range(1, folds)]  # after it had won on fold 0
        + [Job(model, fold, 0, "wide") for model in CLASSICAL for fold in range(folds)],
        "fine": [Job("unet-textbook", fold, 0, "256") for fold in range(folds)],
        "kernels": [Job("unet", fold, 0, v) for v in ("mean-zero", "stencils", "followed") for fold in range(folds)]
        + [Job("monai-unet", fold) for fold in range(folds)],
    }
    unknown = set(sets) - known.keys()
    if unknown:
        raise ValueError(f"no set of jobs is named {', '.join(sorted(unknown))}; choose among {', '.join(known)}")
    wanted: dict[Job, None] = {}
    for job in (job for name in sets for job in known[name]):
        chain = [job]
        while chain[-1].below:
            chain.append(chain[-1].below)
        wanted |= dict.fromkeys(reversed(chain))
    return list(wanted)
