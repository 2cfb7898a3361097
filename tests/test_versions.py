"""The driver of the version sets: what it installs, and that it counts a failing test as one."""

import sys

from deep.versions import trial, wanted

TESTS = """
import pytest

def test_one(): pass
def test_two(): assert False
@pytest.mark.skip
def test_three(): pass
@pytest.fixture
def broken(): raise ValueError
def test_four(broken): pass
"""


def test_dependencies_and_those_of_the_tests_are_installed():
    names = {name.split(">=")[0] for name in wanted()}
    assert {"torch", "numpy", "pytest", "hypothesis"} <= names and "jupyter-book" not in names


def test_failures_errors_and_skipped_tests_are_told_apart(tmp_path):
    (tmp_path / "tree" / "tests").mkdir(parents=True)
    (tmp_path / "tree" / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    python = tmp_path / "environment" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    found = trial(tmp_path / "environment", tmp_path / "tree", ["-p", "no:hypothesispytest"])
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["failures"] == ["tests.test_some::test_two", "tests.test_some::test_four"]
