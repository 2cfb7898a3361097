"""Are learned kernels stencils more often than chance explains? All folds of each network, layer by layer: P6 and P7.

The rule, written down before the networks of all folds were looked at. The statistic is that of :mod:`lsbook.chance`,
the share of kernels that match a known stencil; the unit is the trained network. For a layer and a null model the
excess is that share less the mean share of the null model. A layer holds stencils *more often* than chance if its
mean excess over the folds is positive for every null model, *less often* if it is negative for every one, each with
p < 0.05; else the test does not tell. For "every one" the largest p counts (an intersection-union test); these are
corrected over the layers of a network (Benjamini, Hochberg 1995). Layers of fewer than 64 kernels are shown, not
tested: Student's t is not reliable for them (``results/planted.json``).

P6 (one can test a trained network for stencils by comparing kernels with known ones) is confirmed if the test decides
for at least half of the tested layers of the paper's U-Net, and refuted if it decides for none. P7 (certain patterns
form at certain layers, and there the kernels depart from the known ones) is confirmed if layers differ in the same way
in all folds (Friedman's test over the layers' shares, p < 0.05) and at least one layer holds stencils less often than
chance; refuted if layers do not differ; else undecided.

``python -m experiments.evidence RUNS --data DIR --out results/kernels.json``
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from lsbook.__main__ import versions
from lsbook.chance import across_networks, matches, null_rates, patch_components
from lsbook.ct import SliceDataset
from lsbook.kernels import Layer, classes, nearest, operators, read_kernels
from lsbook.networks import LevelSetNetwork
from lsbook.spectra import spectrum, stability

from .jobs import FOLDS, Job
from .run import Experiment, finished_runs, preprocessing, read_json, write_json
from .subspaces import energy, subspaces
from .variants import build, load

MODELS = ("unet", "unet-textbook", "lse-g", "lsn", "monai-unet", "unet followed")
SEEDS = 5  # networks only initialized
OTHER_STARTS = (1, 2)  # seeds of the paper's U-Net on fold 0: the folds' networks all start from seed 0
TESTED = 64  # kernels that a layer must have
SLICES = 24  # of the training scans, for the patches that layers see
LEVEL = 0.05
STRETCHES = (1.0, 2.0, 4.0)  # of dt, for the stability of level set networks


def points(layer: Layer) -> np.ndarray:
    """The layer's kernels ``(n, 3, 3)``."""
    return layer.weight.reshape(-1, 3, 3)


def one_network(model: nn.Module, fresh: Sequence[nn.Module], images: Tensor) -> dict[str, dict]:
    """What is found in each layer of one trained network.

    Args:
        fresh: the same network, only initialized, with several seeds.
        images: slices ``(B, 1, H, W)`` that its layers' patches are taken from.
    """
    started = [{layer.name: points(layer) for layer in read_kernels(other)[0]} for other in fresh]
    patches, found = patch_components(model, images), {}
    for layer in read_kernels(model)[0]:
        kernels = points(layer)
        others = {"initialization": [network[layer.name] for network in started]}
        if layer.name in patches:
            others["components of the input"] = [patches[layer.name]]
        best, near = matches(kernels), nearest(kernels)
        amplified = spectrum(layer.weight, layer.groups, layer.padding)
        found[layer.name] = {
            "kernels": len(kernels),
            "rate": float(best.mean()),
            "null": {name: float(rates.mean()) for name, rates in null_rates(kernels, others).items()},
            "cosine": float(np.median(np.abs(near.cosine))),
            "classes": dict(Counter(classes()[n] for n in near.stencil[best]).most_common()),
            "orders": dict(Counter(str(o.order) for o in operators(kernels))),
            "energy": {name: energy(kernels, basis) for name, basis in subspaces().items()},
            "norm": amplified["bound"],
            "checkerboard": amplified["checkerboard"],
            "constant": amplified["constant"],
        }
    return found


def judge(networks: Sequence[dict[str, dict]]) -> dict:
    """The rule above for one kind of network: excess of each layer over each null model, and the verdict by layer."""
    layers = list(networks[0])
    tested = [name for name in layers if networks[0][name]["kernels"] >= TESTED]
    nulls = set.intersection(*(set(networks[0][name]["null"]) for name in tested))
    excess = {
        null: across_networks(
            np.array([[n[name]["rate"] - n[name]["null"][null] for name in tested] for n in networks])
        )
        for null in sorted(nulls)
    }
    p = np.max([e.p for e in excess.values()], axis=0)
    signs = np.array([np.sign(e.mean) for e in excess.values()])
    agreed = (signs == signs[0]).all(axis=0) & (signs[0] != 0)
    corrected = stats.false_discovery_control(np.where(agreed, p, 1.0))
    decided = np.where(corrected < LEVEL, np.where(signs[0] > 0, "more", "less"), "not told")
    rates = np.array([[n[name]["rate"] for name in tested] for n in networks])
    differ = float(stats.friedmanchisquare(*rates.T).pvalue) if len(tested) > 2 else 1.0
    return {
        "tested": tested,
        "excess": {null: {key: value.tolist() for key, value in e._asdict().items()} for null, e in excess.items()},
        "p": corrected.tolist(),
        "decision": decided.tolist(),
        "layers_differ_p": differ,
    }


def verdicts(judged: dict) -> dict[str, str]:
    """P6 and P7 for one kind of network."""
    decisions = Counter(judged["decision"])
    share = 1 - decisions["not told"] / len(judged["decision"])
    p6 = "confirmed" if share >= 0.5 else "refuted" if share == 0 else "undecided"
    differ = judged["layers_differ_p"] < LEVEL
    p7 = "refuted" if not differ else "confirmed" if decisions["less"] else "undecided"
    return {"P6": p6, "P7": p7}


def stability_of(model: LevelSetNetwork, image: Tensor) -> list[dict]:
    """CFL number, spectral radius and size of u along a trajectory, for dt and multiples of it."""
    return [{"stretch": s} | stability(model, image, every=model.steps // 6, stretch=s) for s in STRETCHES]


def followed(folder: Path, start: nn.Module) -> list[dict]:
    """Before the training and after each epoch: match rate and energies of each layer, kernels of the first layer."""
    rows = []
    for source in [start, *sorted(folder.glob("*.safetensors"))]:
        layers = read_kernels(source)[0]
        rate = {layer.name: round(float(matches(points(layer)).mean()), 4) for layer in layers}
        shares = {n: {la.name: round(energy(points(la), b), 4) for la in layers} for n, b in subspaces().items()}
        rows.append({"rate": rate, "energy": shares, "first": points(layers[0]).round(3).tolist()})
    return rows


def fresh_network(info: dict, seed: int) -> nn.Module:
    """The network of a checkpoint's info before any training."""
    torch.manual_seed(seed)
    return build(info["model"], **info["options"])


def images_of(experiment: Experiment, job: Job, test: bool = False) -> Tensor:
    """Some slices ``(SLICES, 1, H, W)`` of the job's training or test scans."""
    names = experiment.parts(job).test if test else experiment.parts(job).train
    dataset = SliceDataset([experiment.scans[name] for name in names], preprocessing(job))
    chosen = np.linspace(0, len(dataset) - 1, SLICES).astype(int).tolist()
    return torch.stack([dataset[n][0] for n in chosen])


def one_job(experiment: Experiment, job: Job) -> dict:
    """What is found in the network of a finished job, from the file beside its report if it is there."""
    path = experiment.out / job.name / "evidence.json"
    if not path.is_file():
        experiment.check_finished(job)
        model, info = load(path.with_name("best.safetensors"))
        if job.change.get("follow"):
            found: dict = {"followed": followed(path.parent / "epochs", fresh_network(info, job.seed))}
        else:
            fresh = [fresh_network(info, seed) for seed in range(SEEDS)]
            found = {"layers": one_network(model, fresh, images_of(experiment, job))}
        found["by"] = versions()
        if isinstance(model, LevelSetNetwork):
            middle = images_of(experiment, job, test=True)[SLICES // 2][None]
            found["stability"] = stability_of(model, middle)
        write_json(path, found)
    return read_json(path)


def main() -> None:
    experiment, out = finished_runs("evidence", __doc__)
    result: dict = {key: {} for key in ("by", "networks", "judged", "verdicts", "stability", "followed")}
    for name in MODELS:
        model, _, variant = name.partition(" ")
        found = [one_job(experiment, Job(model, fold, 0, variant)) for fold in range(FOLDS)]
        for key in ("by", "stability", "followed"):
            if key in found[0]:
                result[key][name] = [one[key] for one in found]
        if "layers" in found[0]:
            result["networks"][name] = [one["layers"] for one in found]
            result["judged"][name] = judge(result["networks"][name])
            result["verdicts"][name] = verdicts(result["judged"][name])
        write_json(out, result)
    result["other starts"] = [one_job(experiment, Job("unet", 0, seed))["layers"] for seed in OTHER_STARTS]
    write_json(out, result)


if __name__ == "__main__":
    main()
