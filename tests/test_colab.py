"""The first cell of each notebook: fetches the package in Colab, does nothing elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import colab
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "book").glob("*.ipynb"))


def first_cell(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))["cells"][1]


FIRST = "".join(first_cell(NOTEBOOKS[0])["source"])


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What is run, in an empty folder; nothing is."""
    run = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: run.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_has_the_cell_after_its_title(path):
    cell = first_cell(path)
    assert "".join(cell["source"]) == FIRST, f"copy the first code cell of {NOTEBOOKS[0].name} below the title"
    assert cell["metadata"] == {"tags": ["remove-cell"]}


def test_the_cell_does_nothing_elsewhere(commands):
    before = list(sys.path)
    exec(FIRST, {})
    assert commands == [] and sys.path == before


def test_the_cell_fetches_the_package_once_in_colab(commands, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(FIRST, {})
    clone, install = commands
    book = tmp_path / "level-set-networks"
    assert clone[:2] == ["git", "clone"] and clone[-1] == str(book)
    assert install == [sys.executable, str(book / "tools" / "colab.py")]
    assert sys.path[0] == str(book)
    book.mkdir()
    exec(FIRST, {})
    assert commands[2:] == [install]


def test_only_what_is_not_there_is_installed():
    assert colab.missing(["numpy>=99", "no-such-thing>=1,<2", "pytest"]) == ["no-such-thing>=1,<2"]
