"""Install what the book needs and Colab lacks, and nothing else: run by the first cell of each chapter in Colab.

What Colab has stays as it is: another IPython breaks its sessions, and it supports no other ipywidgets than its own.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def missing(requirements: list[str]) -> list[str]:
    """The requirements of which no version at all is installed."""
    found = []
    for requirement in requirements:
        try:
            version(re.match(r"[\w.-]+", requirement)[0])
        except PackageNotFoundError:
            found.append(requirement)
    return found


if __name__ == "__main__":
    needed = missing(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])
    if needed:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)
