"""Do kernels matter as stencils? The fall in Dice when kernels are replaced by their projection on a subspace.

For each fold's trained network, each layer alone and all together, and each space of
:func:`experiments.subspaces.subspaces`: the Dice of the fold's test scans with projected kernels, with kernels
projected on random subspaces of the same dimension, and with as much taken from each kernel in a random direction. If a
space holds what the network needs, its projection costs less than both. All these spaces lack the mean, of which a
random one keeps a share; so there is one more, the level set stencils *and* the mean, whose random subspaces hold the
mean as well. Weights are not trained again, biases and the statistics of batch normalization stay as they are. Dice at
working size, of every third slice of the liver's range, mean of the scans.

``python -m experiments.causal RUNS --data DIR --out results/causal.json``; rows that are done are kept beside the runs
and not done again.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from lsbook.__main__ import git_commit
from lsbook.ct import SliceDataset
from lsbook.training import scan_dice

from .jobs import FOLDS, Job
from .run import Experiment, finished_runs, preprocessing, read_json, write_json
from .subspaces import MEAN, energy, orthonormal, project, random_basis, remove_as_much, subspaces
from .variants import convolutions, load

MODELS = ("unet",)
EVERY = 3  # slices
DRAWS = {"layer": 3, "all": 8}  # random subspaces, and random removals
WITH_MEAN = "stencils and mean"

Change = Callable[[np.ndarray], np.ndarray]


def changed_dice(model: nn.Module, dice: Callable[[], float], names: list[str], change: Change) -> float:
    """The Dice with the kernels of some layers changed; the weights are put back."""
    layers = [conv for name, conv in convolutions(model).items() if name in names]
    kept = [conv.weight.detach().clone() for conv in layers]
    try:
        with torch.no_grad():
            for conv in layers:
                conv.weight.copy_(torch.from_numpy(change(conv.weight.double().numpy())))
        return dice()
    finally:
        with torch.no_grad():
            for conv, weight in zip(layers, kept, strict=True):
                conv.weight.copy_(weight)


def spaces() -> dict[str, np.ndarray]:
    """The spaces of the test by name: basis ``(dimension, 9)``."""
    known = subspaces()
    return known | {WITH_MEAN: orthonormal(np.concatenate([known["level set stencils"], MEAN]))}


def causal_rows(
    model: nn.Module, dice: Callable[[], float], draws: Mapping[str, int], done: Sequence[tuple[str, str]] = ()
) -> Iterator[dict]:
    """One row for each target (a layer, or ``all``) and space that is not done: Dice of the projection and controls."""
    layers = convolutions(model)
    for target in [*layers, "all"]:
        names = list(layers) if target == "all" else [target]
        weight = np.concatenate([layers[n].weight.detach().double().numpy().reshape(-1, 3, 3) for n in names])
        for space, basis in spaces().items():
            if (target, space) in done:
                continue
            rng = np.random.default_rng(zlib.crc32(f"{target} {space}".encode()))  # the same for all networks

            def with_change(change: Change, names: list[str] = names) -> float:
                return changed_dice(model, dice, names, change)

            count = draws["all" if target == "all" else "layer"]
            hold = MEAN if space == WITH_MEAN else MEAN[:0]
            bases = [random_basis(len(basis), rng, hold) for _ in range(count)]
            yield {
                "target": target,
                "space": space,
                "energy": energy(weight, basis),
                "projection": with_change(lambda w, b=basis: project(w, b)),
                "random subspace": [with_change(lambda w, b=b: project(w, b)) for b in bases],
                "random removal": [
                    with_change(lambda w, b=basis, r=rng: remove_as_much(w, b, r)) for _ in range(count)
                ],
            }


def one_network(experiment: Experiment, job: Job) -> dict:
    """All rows of a finished job; each is kept in the file beside its report as soon as it is done."""
    experiment.check_finished(job)
    path = experiment.out / job.name / "causal.json"
    model, _ = load(path.with_name("best.safetensors"))
    test = SliceDataset([experiment.scans[name] for name in experiment.parts(job).test], preprocessing(job))
    test.index = test.index[::EVERY]

    def dice() -> float:
        return float(np.mean(list(scan_dice(model, test).values())))

    found = read_json(path) if path.is_file() else {"dice": dice(), "rows": []}
    for row in causal_rows(model, dice, DRAWS, [(row["target"], row["space"]) for row in found["rows"]]):
        found["rows"].append(row | {"commit": git_commit()})
        write_json(path, found)
    return found


def main() -> None:
    experiment, out = finished_runs("causal", __doc__)
    result: dict = {"every": EVERY, "draws": DRAWS}
    for model in MODELS:
        jobs = [Job(model, fold) for fold in range(FOLDS)]
        result[model] = [one_network(experiment, job) for job in jobs]
        write_json(out, result)


if __name__ == "__main__":
    main()
