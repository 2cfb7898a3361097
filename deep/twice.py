"""Runs each chapter twice, in fresh kernels, and compares what it shows: ``python -m deep.twice [NAME ...]``.

That its assertions hold is checked by running it at all. Compared is the text of every output, printed or returned.
Numbers with a unit of time behind them, or "times" or "x", are left out, since they differ; so are addresses of
objects and names of widgets. Pictures are compared too, by their bytes, and counted apart: some show times.

The result goes to ``results/twice.json``; chapters that are not named keep theirs.
"""

import json
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from lsbook.__main__ import git_commit, versions
from lsbook.files import atomic_path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "twice.json"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": "book"}}).execute()
nbformat.write(notebook, sys.argv[2])
"""
NUMBER = r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?"
TIME = re.compile(rf"{NUMBER}\s*(?:ns|us|µs|ms|s|min|h|seconds?|minutes?|it/s|fps|times|x)\b|\b\d\d:\d\d(?::\d\d)?\b")
PICTURE = re.compile(r"data:image/[\w+]+;base64,[\w+/=]+")
NAME = re.compile(r"0x[0-9a-f]{6,}|[0-9a-f]{32}")  # of an object in memory, or of a widget


def cells(notebook: Path) -> list[dict]:
    """The code cells of a notebook after it was run in a fresh kernel."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / notebook.name
        subprocess.run([sys.executable, "-c", RUN, notebook, result], cwd=ROOT, check=True)
        return [cell for cell in json.loads(result.read_text())["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict) -> list[str]:
    """All that a cell shows as text or HTML. Streams come in pieces; progress bars are on the other one."""
    found = ["".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")]
    for output in cell["outputs"]:
        found += ["".join(value) for kind, value in sorted(output.get("data", {}).items()) if kind.startswith("text/")]
    return found


def texts(cell: dict) -> list[str]:
    """What a cell shows, without pictures, times and names."""
    return [NAME.sub("", TIME.sub("", PICTURE.sub("", text))) for text in shown(cell)]


def pictures(cell: dict) -> list[str]:
    """The pictures that a cell shows; the book's figures are in HTML."""
    return [picture for text in shown(cell) for picture in PICTURE.findall(text)]


def difference(one: list[str], other: list[str]) -> str:
    """Where two lists of texts differ first, or nothing."""
    if len(one) != len(other):
        return f"{len(one)} outputs / {len(other)} outputs"
    for a, b in zip(one, other, strict=True):
        if a != b:
            at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"{a[max(at - 30, 0) : at + 30]!r} / {b[max(at - 30, 0) : at + 30]!r}"
    return ""


def compare(notebook: Path) -> dict:
    """Cells and texts of a chapter; texts that differ between two runs, by cell; how many pictures do."""
    one, other = cells(notebook), cells(notebook)
    differ = [difference(texts(a), texts(b)) for a, b in zip(one, other, strict=True)]
    pairs = [(p, q) for a, b in zip(one, other, strict=True) for p, q in zip(pictures(a), pictures(b), strict=True)]
    return {
        "cells": len(one),
        "texts": sum(bool(text) for cell in one for text in texts(cell)),
        "texts_that_differ": {str(number): text for number, text in enumerate(differ) if text},
        "pictures": len(pairs),
        "pictures_that_differ": sum(p != q for p, q in pairs),
    }


def main(names: list[str]) -> int:
    """Compare the chapters of these names, or all; 1 if a text differs."""
    notebooks = {path.stem: path for path in sorted((ROOT / "book").glob("*.ipynb"))}
    chapters = json.loads(RESULTS.read_text())["chapters"] if RESULTS.is_file() else {}
    for name in names or notebooks:
        chapters[name] = compare(notebooks[name]) | {"commit": git_commit()}
        print(name, json.dumps(chapters[name]), flush=True)
    about = {key: value for key, value in versions().items() if key != "commit"}  # that is each chapter's own
    report = {"date": date.today().isoformat(), **about, "chapters": {n: chapters[n] for n in sorted(chapters)}}
    with atomic_path(RESULTS) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(chapters[name]["texts_that_differ"] for name in names or notebooks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
