"""All findings about the kernels of one file of weights: as JSON, and as one HTML page that needs nothing else."""

import html
import json
import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from . import chance, clusters, kernels, spectra
from .checkpoints import load_checkpoint
from .figures import COLORS, image_tag, use_style
from .files import atomic_path
from .networks import build_model

SEEDS = 5  # networks that are initialized anew
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{font:16px/1.5 sans-serif;max-width:60rem;margin:auto;padding:1rem}} .wide{{overflow-x:auto}}
table{{border-collapse:collapse}} th,td{{padding:.2rem .6rem;text-align:left;white-space:nowrap;
border-bottom:1px solid #ccc}}
</style></head><body><h1>Kernels of {title}</h1>{body}</body></html>"""
TEXTS = [
    "Layer by layer: how many kernels match a known stencil (|cosine| at least 0.8225), and how many by chance. A dot "
    "right of all bars: more than these null models explain. The main confounder, the patches of the layer's input, is "
    "not among them, because it takes images; p-values need several networks.",
    "The same as numbers. The bound is that of the layer's norm as an operator.",
    "How much the output can change per change of the input, at most: put together from the layers' bounds as the "
    "network is from its layers, correct and often far too large.",
    "Arrays that were not analysed.",
    "All kernels, signed and scaled to length 1, in the plane of their first two singular vectors; numbers are the "
    "centers of five clusters.",
    "The stencil nearest to each center.",
    "The three kernels of each layer that are nearest to a stencil, and the operators that their moments name.",
]


def significant(values: np.ndarray) -> np.ndarray:
    """Numbers with five significant digits."""
    digits = 10 ** (4 - np.floor(np.log10(np.maximum(np.abs(values), 1e-30))))
    return np.round(values * digits) / digits


def grouping(weights: np.ndarray) -> dict[str, dict | str]:
    """k-means of kernels ``(n, 3, 3)``, raw and as the paper's code normalizes them, with 5 and the best number."""
    result: dict = {}
    for kind, points in {"raw": weights.reshape(-1, 9), "normalized": clusters.normalized(weights)}.items():
        for name, counts in {"five": (5,), "best": range(2, 9)}.items():
            try:
                result[f"{kind}, {name}"] = clusters.cluster(points, counts)._asdict()
            except ValueError as error:
                result[f"{kind}, {name}"] = str(error)
    return result


def findings(layer: kernels.Layer, fresh: list[np.ndarray]) -> dict:
    """All findings about one layer; ``fresh`` are the same layer's kernels in networks only initialized."""
    weights, names = layer.weight.reshape(-1, 3, 3), np.array([*kernels.dictionary(), "none"])
    near, matching, found = kernels.nearest(weights), chance.matches(weights), kernels.operators(weights)
    columns = {"cosine": near.cosine, "scale": near.scale, "mean": weights.mean(axis=(1, 2))}
    columns["moments"] = kernels.moments(weights)
    nulls = chance.null_rates(weights, {"initialization": fresh} if fresh else {})
    return layer._replace(weight=layer.weight.shape)._asdict() | {
        "matches": matching.mean(),
        "by_chance": {name: {"mean": r.mean(), "p95": np.quantile(r, 0.95)} for name, r in nulls.items()},
        "classes": dict(Counter(kernels.classes()[n] for n in near.stencil[matching]).most_common()),
        "mean_zero": np.mean([bool(o.order) for o in found]),
        "spectrum": spectra.spectrum(layer.weight, layer.groups, layer.padding),
        "clusters": grouping(weights),
        "kernels": {"nearest": names[near.stencil], "operator": found}
        | {key: significant(column) for key, column in columns.items()},
    }


def analyse(path: str | os.PathLike) -> dict:
    """All findings about a file of weights (:func:`lsbook.kernels.read_kernels`).

    Of a checkpoint of this package the network is known too: groups and borders, its bound, what it was before it was
    trained.

    Raises:
        OSError, ValueError: if the file cannot be used.
    """
    layers, skipped = kernels.read_kernels(path)
    fresh, bound = [], "not computed: the file holds weights, not the network"
    with suppress(ValueError), torch.random.fork_rng(devices=[]):
        model, _, info = load_checkpoint(path)
        layers, skipped = kernels.read_kernels(model)
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            built = kernels.read_kernels(build_model(info["model"], **info["options"]))[0]
            fresh.append({layer.name: layer.weight.reshape(-1, 3, 3) for layer in built})
        try:
            bound = spectra.network_bound(model)
        except TypeError as error:
            bound = f"not computed: {error}"
    every = np.concatenate([layer.weight.reshape(-1, 3, 3) for layer in layers])
    sample = np.random.default_rng(0).permutation(clusters.normalized(every))[: clusters.SAMPLE]
    return {
        "file": Path(path).name,
        "network_bound": bound,
        "skipped": skipped,
        "stencils": kernels.dictionary(),
        "clusters": grouping(every),
        "plane": dict(zip(("points", "axes"), clusters.plane(sample), strict=True)),
        "layers": [findings(layer, [network[layer.name] for network in fresh]) for layer in layers],
    }


def table(head: list[str], rows: list[list]) -> str:
    """A table that scrolls sideways on a small screen; every cell is escaped."""
    lines = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines += "</tr><tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<div class="wide"><table><tr>{lines}</tr></table></div>'


def share_figure(layers: list[dict]) -> str:
    """Shares of matching kernels of all layers, beside the null models."""
    figure, axes = plt.subplots(figsize=(6.4, 1.8 + 0.25 * len(layers)))
    for shift, (null, color) in enumerate(zip(layers[0]["by_chance"], COLORS.values(), strict=False)):
        low, high = ([layer["by_chance"][null][key] for layer in layers] for key in ("mean", "p95"))
        axes.hlines(np.arange(len(layers)) + 0.15 * (shift - 2), low, high, color=color, lw=3, label=null)
    axes.plot([layer["matches"] for layer in layers], range(len(layers)), "k.", label="this network")
    axes.set_yticks(range(len(layers)), [layer["name"] for layer in layers], parse_math=False)
    axes.set_xlabel("share of kernels that match\nbars: by chance, from the mean to the 95 % point")
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return image_tag(figure, "Share of kernels that match a stencil, and what chance gives, by layer: see the table")


def plane_figure(points: np.ndarray, centers: np.ndarray) -> str:
    """Kernels ``(n, 2)`` in their plane, with the number of each center ``(k, 2)``."""
    figure, axes = plt.subplots(figsize=(4.8, 4.8))
    axes.plot(*points.T, ".", color=COLORS["lse"], markersize=2)
    axes.set(xlabel="along the first singular vector", ylabel="along the second")
    for number, center in enumerate(centers):
        axes.annotate(str(number), center, weight="bold", size=14)
    return image_tag(figure, "Normalized kernels in the plane of their first two singular vectors, and cluster centers")


def page(report: dict) -> str:
    """The report of :func:`analyse` as HTML, with the conventions as the modules state them."""
    use_style()
    layers, five, names = report["layers"], report["clusters"]["normalized, five"], [*report["stencils"], "none"]
    nulls, centers = list(layers[0]["by_chance"]), np.zeros((0, 9)) if isinstance(five, str) else five["centers"]
    shares, best = [], []
    for n in layers:
        shares.append([n["name"], n["weight"], n["matches"], *(n["by_chance"][null]["mean"] for null in nulls)])
        shares[-1] += [", ".join(list(n["classes"])[:3]), n["mean_zero"], n["spectrum"]["bound"], n["folded"]]
        found = n["kernels"]
        for k in np.argsort(-np.abs(found["cosine"]))[:3]:
            row = [n["name"], *divmod(k, n["weight"][1]), *(found[key][k] for key in ("nearest", "cosine", "scale"))]
            best.append([*row, found["operator"][k].text])
    head = ["layer", "weights", "match", *(f"chance: {null}" for null in nulls), "most frequent matches"]
    notes = html.escape("\n\n".join(module.__doc__ for module in (kernels, chance, clusters, spectra)))
    near = zip(*kernels.nearest(centers.reshape(-1, 3, 3)), strict=True)
    figures = [
        share_figure(layers),
        table([*head, "mean zero", "bound of the norm", "batch norm folded"], shares),
        table(["Lipschitz bound of the network"], [[report["network_bound"]]]),
        table(["skipped", "why"], list(report["skipped"].items())),
        plane_figure(report["plane"]["points"], centers @ report["plane"]["axes"].T),
        table(["center", "nearest", "cosine"], [[i, names[n], c] for i, (n, c, _) in enumerate(near)]),
        table(["layer", "out", "in", "nearest", "cosine", "scale", "operator"], best),
    ]
    parts = [f"<p>{html.escape(text)}</p>{figure}" for text, figure in zip(TEXTS, figures, strict=True)]
    notes = re.sub(r"``(.+?)``|:\w+:`(?:[\w.]*\.)?(\w+)`", r"<code>\1\2</code>", notes).split("\n\n")
    parts += ["<h2>How it was done</h2>", *(f"<p>{note}</p>" for note in notes)]
    return PAGE.format(title=html.escape(report["file"]), body="\n".join(parts))


def write_report(path: str | os.PathLike, folder: str | os.PathLike) -> tuple[Path, Path]:
    """Analyse a file and write kernels.json and kernels.html into a folder; see :func:`analyse` for errors."""
    report, outputs = analyse(path), (Path(folder) / "kernels.json", Path(folder) / "kernels.html")
    text = json.dumps(report, default=lambda array: array.tolist(), separators=(",", ":"))
    for output, content in zip(outputs, (text, page(report)), strict=True):
        with atomic_path(output) as partial:
            partial.write_text(content + "\n", encoding="utf-8")
    return outputs
