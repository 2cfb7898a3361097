"""The API page: up to date, every public name on it, docstrings turned into what Sphinx reads."""

import ast
import importlib
import re

import pytest
from write_api import MODULES, PAGE, constants, page, signature, text_of


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/write_api.py"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_every_public_name_is_on_the_page(path):
    """The names as Python knows them, not as the page's writer reads them off the file."""
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    own |= {name for name in vars(module) if name.isupper() and re.search(rf"^{name}\b", path.read_text(), re.M)}
    part = PAGE.read_text(encoding="utf-8").split(f".. py:module:: {module.__name__}\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\.\. py:(?:function|class|data):: (\w+)", part, re.M))
    assert {name for name in own if not name.startswith("_")} <= listed
    assert listed <= set(vars(module))


def test_sections_become_fields_and_signs_are_escaped():
    text = text_of(
        "|grad u| of ``a|b`` and :func:`f` * 2.\n\nMore.\n\nArgs:\n    x, y: the point,\n        in mm.\n"
        "    z: height.\n\nReturns:\n    A number.\n\nRaises:\n    ValueError: if |x| > 1.\n"
    )
    assert text == (
        "\\|grad u\\| of ``a|b`` and :func:`f` \\* 2.\n\nMore.\n\n:param x, y: the point, in mm.\n:param z: height.\n\n"
        ":returns: A number.\n\n:raises ValueError: if \\|x\\| > 1."
    )


def test_signatures_and_constants():
    function, short, long, pair = ast.parse(
        "def f(self, a: int = 1, *, b) -> str: ...\nN = 3  # of them\nL = [" + "1, " * 40 + "]\nA, B = 1, 2\n"
    ).body
    assert signature(function) == "f(self, a: int=1, *, b) -> str"
    assert signature(function, bound=True) == "f(a: int=1, *, b) -> str"
    lines = ["", "N = 3  # of them", "# Many.", "L = [...]", "A, B = 1, 2"]
    assert constants(short, lines) == {"N": "``3``\n\nof them"}
    long.lineno = long.end_lineno = 4
    assert constants(long, lines) == {"L": "Many."}
    assert set(constants(pair, lines)) == {"A", "B"}
