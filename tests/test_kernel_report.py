"""The command `kernels`: JSON with all findings, one page that needs nothing else, and its time."""

import html.parser
import json
import re
from collections import Counter

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lsbook import kernels, spectra
from lsbook.__main__ import main
from lsbook.checkpoints import load_checkpoint, save_checkpoint
from lsbook.kernel_report import SEEDS, analyse, findings, grouping, page, significant, table
from lsbook.networks import build_model
from lsbook.unet import UNet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def without_display():
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def checkpoint(path, name, **options):
    torch.manual_seed(0)
    preprocessing = {"size": 32, "low": -40.0, "high": 160.0}
    save_checkpoint(
        path, build_model(name, **options), {"model": name, "options": options, "preprocessing": preprocessing}
    )
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file, what the command wrote as data, and as text of the page."""
    folder = tmp_path_factory.mktemp("report")
    path = checkpoint(folder / "unet.safetensors", "unet-textbook", filters=4, depth=3, batch_norm=True)
    with matplotlib.rc_context({"backend": "agg"}):
        assert main(["kernels", str(path), "--out", str(folder / "out")]) == 0
    return (
        path,
        json.loads((folder / "out" / "kernels.json").read_text()),
        (folder / "out" / "kernels.html").read_text(),
    )


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_every_kernel_is_in_the_report(written):
    path, report, _ = written
    model = load_checkpoint(path)[0]
    layers, skipped = kernels.read_kernels(model)
    assert report["file"] == "unet.safetensors" and report["skipped"] == skipped
    assert [layer["name"] for layer in report["layers"]] == [layer.name for layer in layers]
    for theirs, layer in zip(report["layers"], layers, strict=True):
        flat = layer.weight.reshape(-1, 3, 3)
        assert theirs["weight"] == list(layer.weight.shape) and theirs["folded"] == layer.folded != ""
        table, near = theirs["kernels"], kernels.nearest(flat)
        assert all(len(column) == len(flat) for column in table.values())
        assert table["nearest"] == [list(kernels.dictionary())[n] for n in near.stencil]
        np.testing.assert_allclose(table["cosine"], near.cosine, rtol=1e-4)
        np.testing.assert_allclose(table["scale"], near.scale, rtol=1e-4)
        np.testing.assert_allclose(table["mean"], flat.mean(axis=(1, 2)), rtol=1e-4)
        np.testing.assert_allclose(table["moments"], kernels.moments(flat), rtol=1e-4)
        assert table["operator"] == [list(operator) for operator in kernels.operators(flat)]


def test_shares_and_classes_follow_from_the_kernels(written):
    """Recomputed from the table of the kernels alone."""
    family = dict(zip(kernels.dictionary(), kernels.classes(), strict=True))
    for layer in written[1]["layers"]:
        cosine, orders = np.abs(layer["kernels"]["cosine"]), [o[0] for o in layer["kernels"]["operator"]]
        assert layer["matches"] == pytest.approx((cosine >= 0.8225).mean())
        close = [family[n] for n, c in zip(layer["kernels"]["nearest"], cosine, strict=True) if c >= 0.8225]
        assert layer["classes"] == Counter(close)
        assert layer["mean_zero"] == pytest.approx(np.mean([order > 0 for order in orders]))


def test_null_models_clusters_and_bounds_are_in_the_report(written):
    path, report, _ = written
    names = {"Gaussian", "entries permuted", "dictionary rotated", "same covariance", "initialization"}
    for layer in report["layers"]:
        assert layer["by_chance"].keys() == names
        assert all(0 <= null["mean"] <= 1 and 0 <= null["p95"] <= 1 for null in layer["by_chance"].values())
        assert layer["spectrum"]["bound"] >= layer["spectrum"]["max"] > 0
        if layer["name"] == "down.0.first.0":
            assert layer["clusters"]["normalized, five"] == "4 distinct kernels are too few for so many clusters"
        else:
            assert {len(layer["clusters"][f"{kind}, five"]["centers"]) for kind in ("raw", "normalized")} == {5}
    assert len(report["clusters"]["normalized, five"]["labels"]) == sum(
        len(layer["kernels"]["mean"]) for layer in report["layers"]
    )
    assert report["network_bound"] == pytest.approx(spectra.network_bound(load_checkpoint(path)[0]))


def test_the_network_is_initialized_anew_with_other_seeds_and_torchs_generator_is_left_alone(tmp_path):
    """Fresh networks match as often as the fresh one in the file does, not exactly as often, and differ."""
    path = checkpoint(tmp_path / "a.safetensors", "lsn", steps=1)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    report = analyse(path)
    assert torch.rand(1) == expected
    layers = {layer["name"]: layer for layer in report["layers"]}
    null = layers["edge_net.merge.0.0"]["by_chance"]["initialization"]
    assert null["mean"] < null["p95"] and null["mean"] == pytest.approx(
        layers["edge_net.merge.0.0"]["matches"], abs=0.02
    )
    assert report["network_bound"].startswith("not computed: no Lipschitz bound is known for LevelSetNetwork")
    assert SEEDS > 1


def test_weights_alone_are_analysed_as_far_as_they_go(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding_mode="replicate"), nn.Conv2d(6, 2, 3))
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{k: v.numpy() for k, v in net.state_dict().items()})
    reports = [analyse(tmp_path / name) for name in ("a.safetensors", "a.npz")]
    for report in reports:
        assert report["network_bound"] == "not computed: the file holds weights, not the network"
        assert "initialization" not in report["layers"][0]["by_chance"]
        assert report["layers"][0]["padding"] == "unknown"
    assert reports[0]["layers"][1]["matches"] == reports[1]["layers"][1]["matches"]


def test_five_significant_digits():
    values = np.array([0.0, 123456.7, -1.234567e-8, 0.999999, 1e-300, -5.0])
    np.testing.assert_allclose(significant(values), [0, 123460, -1.2346e-8, 1.0, 0, -5], rtol=1e-12)


def test_the_best_number_of_clusters_has_the_largest_silhouette_of_all_that_were_tried():
    """Three planted clusters, of which five make a worse partition, raw and normalized."""
    rng = np.random.default_rng(0)
    stencils = np.stack([kernels.dictionary()[name] for name in ("mean", "second x", "second y")])
    weights = np.repeat(stencils / np.linalg.norm(stencils, axis=(1, 2), keepdims=True), 40, axis=0)
    found = grouping(weights + 0.02 * rng.standard_normal(weights.shape))
    for kind in ("raw", "normalized"):
        assert len(found[f"{kind}, best"]["centers"]) == 3
        assert len(found[f"{kind}, five"]["centers"]) == 5
        assert found[f"{kind}, best"]["silhouette"] > found[f"{kind}, five"]["silhouette"]


def test_a_zero_kernel_is_neither_a_match_nor_counted_as_mean_zero():
    weights = np.zeros((4, 1, 3, 3))
    weights[0, 0], weights[1, 0] = kernels.dictionary()["central x"], kernels.dictionary()["mean"]
    found = findings(kernels.Layer("a", weights, 1, "zeros", ""), [])
    assert (found["matches"], found["mean_zero"]) == (0.5, 0.25)


# -- the page ---------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes, and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else_and_reads_on_a_phone(written):
    text = written[2]
    reader = Reader(text)
    assert text.startswith("<!DOCTYPE html>") and ("html", {"lang": "en"}) in reader.tags
    assert any(a.get("name") == "viewport" and "width=device-width" in a["content"] for _, a in reader.tags)
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not attributes.get("src", "data:").startswith("http") and "href" not in attributes
    assert not re.search(r"@import|url\(|https?://", text)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 2
    assert all(len(image["alt"]) > 40 and image["src"].startswith("data:image/png;base64,") for image in images)
    assert all("max-width:100%" in image["style"] for image in images)
    tables = sum(tag == "table" for tag, _ in reader.tags)
    assert tables == sum(attributes.get("class") == "wide" for _, attributes in reader.tags) and "overflow-x" in text
    assert len(text) < 200_000


def test_the_page_says_what_was_found_and_what_it_means(written):
    _, report, text = written
    seen = " ".join(" ".join(Reader(text).text).split())
    for layer in report["layers"]:
        assert layer["name"] in seen and layer["folded"] in seen
    best = max(range(len(layer["kernels"]["mean"])), key=lambda n: abs(layer["kernels"]["cosine"][n]))
    assert layer["kernels"]["operator"][best][2] in seen
    assert "readout" in seen and "1x1 kernels, not 3x3" in seen
    for phrase in (
        "no flip",
        "a scale has a meaning as a ratio within a kernel only",
        "5 % of random directions",
        "The independent unit is the trained network",
        "The main confounder, the patches of the layer's input, is not among them",
        "put together from the layers' bounds as the network is from its layers",
        "the mean of a random kernel in 11 %",
        "That bounds the layer on every image with zero borders or none",
    ):
        assert phrase in seen, phrase
    assert ":func:" not in seen and ":data:" not in seen and "`" not in seen
    assert "<code>error O(h^p)</code>" in text and "<code>dictionary</code>" in text
    assert "product of the layers" not in seen  # wrong for skips


def test_names_are_escaped(tmp_path):
    """A layer's name comes from the file: it must not become part of the page, nor of a formula in a figure."""
    evil = "<script>alert(1)</script>$\\frac$&amp"
    np.savez(tmp_path / "a&b.npz", **{"c": np.random.default_rng(0).standard_normal((2, 2, 3, 3))})
    report = analyse(tmp_path / "a&b.npz")
    report["layers"][0]["name"], report["skipped"] = evil, {evil: "<b>"}
    text = page(report)
    assert "<script" not in text and "<b>" not in text
    assert "".join(Reader(text).text).count(evil) >= 4
    assert "a&amp;b.npz" in text


def test_cells_are_escaped_and_rounded():
    text = table(["<x>"], [[1.23456, "a<b", None, 7]])
    assert "&lt;x&gt;" in text and "a&lt;b" in text and "1.23<" in text and ">7<" in text and "1.2345" not in text


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_it_wrote(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", c=np.random.default_rng(0).standard_normal((1, 1, 3, 3)))
    assert main(["kernels", str(tmp_path / "a.npz"), "--out", str(tmp_path / "new" / "out")]) == 0
    printed = capsys.readouterr().out.split("\n")
    assert printed == [str(tmp_path / "new" / "out" / f"kernels.{kind}") for kind in ("json", "html")] + [""]
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == ["kernels.html", "kernels.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"", "a.npz: cannot be read as weights"),
        ("a.safetensors", b"x" * 99, "a.safetensors: cannot be read as weights"),
        ("a.pt", b"\x80\x02}q\x00.", "safetensors.torch.save_file writes a state dict"),
        ("a.safetensors", None, "a.safetensors: no such file"),
    ],
)
def test_a_bad_file_gives_one_line(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["kernels", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_nan_is_refused_by_name(tmp_path, capsys):
    model = UNet(filters=2, depth=2)
    model.down[1].second[0].weight.data[0, 0, 0, 0] = torch.nan
    info = {
        "model": "unet",
        "options": {"filters": 2, "depth": 2},
        "preprocessing": {"size": 32, "low": 0.0, "high": 1.0},
    }
    save_checkpoint(tmp_path / "a.safetensors", model, info)
    assert main(["kernels", str(tmp_path / "a.safetensors"), "--out", str(tmp_path)]) == 2
    assert "a.safetensors: down.1.second.0 holds NaN" in capsys.readouterr().err


def test_a_network_of_two_million_weights_is_read_whole(tmp_path):
    """How long its report takes is measured, not asserted: benchmarks."""
    path = checkpoint(tmp_path / "big.safetensors", "unet-textbook", filters=32, depth=4, batch_norm=True)
    assert sum(layer.weight.size for layer in kernels.read_kernels(path)[0]) > 1.9e6
