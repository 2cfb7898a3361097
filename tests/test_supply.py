"""What comes from outside is not run, not unpacked to disk and not shown unescaped; downloads fail cleanly."""

import ast
import hashlib
import http.server
import io
import os
import pickle
import re
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib import pyplot as plt
from test_project import ROOT, SOURCES, WORKFLOWS, locked, source_of
from test_sample import files_below, lits117_arrays, mrc_bytes

from lsbook import sample
from lsbook.checkpoints import load_checkpoint
from lsbook.ct import Preprocessing, SliceDataset, find_scans
from lsbook.figures import show, slider
from lsbook.files import cache_folder
from lsbook.kernel_report import write_report
from lsbook.training import train

EVIL = "<img src=x onerror=alert(1)>"

# -- what is read never runs ------------------------------------------------------------------------------------------


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The calls in a file, each with the name as it is written: ``torch.load``."""
    nodes = [node for node in ast.walk(ast.parse(source_of(path), str(path))) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in nodes]


def unsafe(path: Path) -> list[str]:
    """Calls that could run what a file holds, or write where an archive says."""
    found = []
    for name, node in calls(path):
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{name} without weights_only")
        if re.search(r"(^|\.)(pickle|joblib|dill|shelve|marshal)\.loads?$|^(eval|exec|yaml\.load|os\.system)$", name):
            found.append(name)
        if re.search(r"\.extract(all)?$|unpack_archive$", name):
            found.append(name)
        if options.get("allow_pickle") == "True" or options.get("shell") == "True":
            found.append(f"{name} with {options}")
    return found


def test_unsafe_calls_are_recognised(tmp_path):
    lines = ["torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(f)", "pickle.loads(b)", "eval(s)"]
    lines += ["np.load(p, allow_pickle=True)", "run(c, shell=True)", "archive.extractall(p)", "tar.extract(m)"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert len(unsafe(tmp_path / "a.py")) == len(lines)
    (tmp_path / "b.py").write_text("torch.load(p, weights_only=True)\nnp.load(p)\ntar.extractfile(m)\nmodel.eval()")
    assert unsafe(tmp_path / "b.py") == []


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent.name != "tests"], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_no_file_is_read_in_a_way_that_runs_it(path):
    assert unsafe(path) == []


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A pickle that leaves ``sprung`` when it is loaded, and that file's path."""
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    pickle.loads(content)
    assert (tmp_path / "sprung").exists(), "the trap itself works"
    (tmp_path / "sprung").unlink()
    return content, tmp_path / "sprung"


def test_a_state_of_a_training_that_is_a_trap_is_refused_and_does_not_spring(trap, cohort, tmp_path):
    (tmp_path / "run").mkdir()
    torch.save(Trap(trap[1]), tmp_path / "run" / "last.pt")
    working, scans = Preprocessing(32), find_scans(cohort)
    sets = SliceDataset(scans[:1], working), SliceDataset(scans[1:2], working)
    with pytest.raises(ValueError, match=r"last\.pt: cannot be read"):
        train("unet", {}, *sets, working, tmp_path / "run", epochs=1)
    assert not trap[1].exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz", "weights.pt"])
def test_weights_that_are_a_trap_are_refused_and_do_not_spring(trap, tmp_path, name):
    content, sprung = trap
    if name.endswith("npz"):
        np.savez(tmp_path / name, weight=np.array([Trap(sprung)], dtype=object))
    else:
        (tmp_path / name).write_bytes(content)
    for read in (load_checkpoint, lambda path: write_report(path, tmp_path / "report")):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    assert not sprung.exists() and not (tmp_path / "report").exists()


def test_slices_that_are_a_trap_are_refused_and_do_not_spring(trap, cohort, monkeypatch, tmp_path):
    """Somebody who can write to the cache could put an array of objects there."""
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "cache"))
    scans, working = find_scans(cohort)[:1], Preprocessing(32)
    SliceDataset(scans, working)
    for path in cache_folder("slices").iterdir():
        np.save(path, np.array([Trap(trap[1])], dtype=object))
    with pytest.raises(ValueError):
        SliceDataset(scans, working)
    assert not trap[1].exists()


# -- downloads --------------------------------------------------------------------------------------------------------


class Index(http.server.BaseHTTPRequestHandler):
    """A package index on this machine with one file, served whole, cut short, changed, or never."""

    mode, content, name = "whole", b"", ""
    asked = 0

    def do_GET(self):
        if not self.path.endswith(".whl"):
            page = f'<a href="/files/{self.name}">{self.name}</a>'.encode()
            return self.answer("text/html", page, len(page))
        type(self).asked += 1
        if self.mode == "never":
            return self.server.over.wait(60)
        body = {"changed": self.content[:-1] + b"x", "cut": self.content[: len(self.content) // 2]}
        return self.answer("application/octet-stream", body.get(self.mode, self.content), len(self.content))

    def answer(self, kind, body, length):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index in the place of the real one, with a small package for the sample lits117; pip itself is the real one.

    Links in the archive lead out of it, as absolute names and by way of the parent folder.
    """
    facts = sample.SAMPLES["lits117"]
    stem, folder = f"{facts.package.replace('-', '_')}-{facts.version}", tmp_path / "package"
    folder.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, array in zip(facts.members, lits117_arrays(), strict=True):
            archive.writestr(member, mrc_bytes(array, folder))
        archive.writestr("../outside.txt", "out")
        archive.writestr(str(tmp_path / "absolute.txt"), "out")
        about = f"Metadata-Version: 2.1\nName: {facts.package}\nVersion: {facts.version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", about)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    served = {"content": buffer.getvalue(), "name": f"{stem}-py3-none-any.whl", "mode": "whole", "asked": 0}
    handler = type("Served", (Index,), served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.over = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    monkeypatch.setitem(sample.SAMPLES, "lits117", replace(facts, sha256=sha256))
    for name in [name for name in os.environ if name.upper().startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("LSBOOK_CACHE", str(tmp_path / "cache"))
    yield handler
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("mode", ["changed", "cut", "never"])
def test_a_download_that_fails_is_told_in_a_line_leaves_nothing_and_can_be_had_again(
    index, tmp_path, monkeypatch, mode
):
    index.mode = mode
    with monkeypatch.context() as patch:
        patch.setattr(sample, "DOWNLOAD_SECONDS", 5 if mode == "never" else 60)
        with pytest.raises(sample.SampleUnavailable, match=r"^sample lits117: [^\n]*python -m lsbook sample") as caught:
            sample.fetch("lits117")
    assert index.asked >= 1, "the fault must be that of the file"
    expected = {"changed": r"hash|HASH", "cut": r"pip could not download", "never": r"longer than 5 s"}[mode]
    assert re.search(expected, str(caught.value)), caught.value
    assert files_below(tmp_path / "cache") == []
    index.mode = "whole"
    assert len(files_below(sample.fetch("lits117"))) == 3
    assert not list(tmp_path.rglob("outside.txt")) and not (tmp_path / "absolute.txt").exists()


# -- what is shown ----------------------------------------------------------------------------------------------------


@pytest.fixture
def figure():
    yield plt.figure(figsize=(1, 1))
    plt.close("all")


def test_captions_and_text_alternatives_hold_no_markup(figure):
    shown = show(figure, f'"{EVIL}', EVIL).data
    assert shown.count("<img") == 1 and "onerror=alert(1)>" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown


def test_a_slider_takes_its_label_as_text_and_holds_no_markup_of_its_pictures(monkeypatch):
    still = []
    monkeypatch.setattr("lsbook.figures.display", still.append)
    box = slider(lambda _: (plt.figure(figsize=(1, 1)), f'"{EVIL}'), 2, EVIL)
    stack, handle = box.children
    assert handle.description_allow_html is False, "else the browser would read the label as HTML"
    for text in [still[0].data, *(child.value for child in stack.children)]:
        assert text.count("<img") == 1 and EVIL not in text
    plt.close("all")


def test_the_report_of_a_file_with_markup_in_its_name_holds_none(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / f"{EVIL}.npz", **{EVIL: rng.normal(size=(6, 2, 3, 3)), f"{EVIL}2": np.zeros((2, 2, 5, 5))})
    _, page = write_report(tmp_path / f"{EVIL}.npz", tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert EVIL not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") >= 3
    assert "<script" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_progress_is_shown_as_text(path):
    """tqdm's notebook bar is a widget whose label is HTML."""
    tree = ast.parse(source_of(path), str(path))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not modules & {"tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"}


# -- what is installed ------------------------------------------------------------------------------------------------


def test_every_action_is_named_by_its_commit():
    """A tag can be moved to other code; the version beside it is for the reader."""
    for path in WORKFLOWS:
        used = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
        steps = [s for job in yaml.safe_load(path.read_text())["jobs"].values() for s in job["steps"] if "uses" in s]
        assert len(used) == len(steps) > 0
        for line in used:
            assert re.fullmatch(r"(- )?uses: actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), (
                f"{path.name}: {line}"
            )


def test_hashes_are_those_of_the_lock():
    """Every pin of constraints.txt but PyTorch, whose builds share a version, with a hash of each of its files."""
    text = (ROOT / "hashes.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    rest = re.sub(r"^#.*\n|^([\w.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)\n", "", text, flags=re.MULTILINE)
    assert rest == ""
    pins = {name: version for name, version in locked().items() if name != "torch"}
    assert {re.sub(r"[-_.]+", "-", name).lower(): version for name, version, _ in entries} == pins
