"""The driver of the mutants: what it changes, that a change takes effect, and what the committed run says."""

import ast
import json
import sys
import types
from pathlib import Path

import pytest

from deep.mutation import MODULES, Mutator, changed, mutants, summary, take_place, variants
from lsbook import stencils

RESULT = Path(__file__).parents[1] / "results" / "mutation.json"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a + b", ["a - b"]),
        ("a ** b", ["a * b"]),
        ("-a", ["a"]),
        ("+a", []),
        ("not a", ["a"]),
        ("0 <= a <= 1", ["0 < a <= 1", "0 <= a < 1"]),
        ("a and b", ["a or b"]),
        ("a if b else c", ["a if not b else c"]),
        ("3", ["4"]),
        ("0.5", ["1.5"]),
        ("True", ["False"]),
        ("d.forward_y", ["d.backward_y"]),
        ("v.wind_x", ["v.wind_y"]),
        ("F.relu(a)", ["a"]),
        ("a.abs()", ["a"]),
        ("'text'", []),
        ("a.view(1, 2)", []),
    ],
)
def test_what_an_expression_becomes(code, expected):
    assert [ast.unparse(new) for new in variants(ast.parse(code, mode="eval").body)] == expected


@pytest.mark.parametrize("module", MODULES)
def test_each_mutant_is_one_change(module):
    source = (Path(__file__).parents[1] / "lsbook" / f"{module}.py").read_text(encoding="utf-8")
    original = ast.unparse(Mutator().visit(ast.parse(source))).splitlines()
    found = mutants(module)
    assert len(found) > 80
    for mutant in found[::10]:
        changed = ast.unparse(Mutator(mutant["number"]).visit(ast.parse(source))).splitlines()
        assert sum(a != b for a, b in zip(original, changed, strict=True)) == 1, mutant


def module(name: str, source: str) -> types.ModuleType:
    new = types.ModuleType(name)
    exec(source, vars(new))
    return new


def test_a_mutant_takes_the_place_of_what_was_imported_from_the_module(monkeypatch):
    source = """
LIMIT = 1.0
def double(a, times=2): return a * times
class Box:
    def __init__(self): self.side = 3
    @property
    def area(self): return self.side ** 2
"""
    old, user = module("old", source), types.ModuleType("user")
    for name in ("LIMIT", "double", "Box"):
        setattr(user, name, getattr(old, name))
    monkeypatch.setitem(sys.modules, "old", old)
    monkeypatch.setitem(sys.modules, "user", user)
    box = user.Box()
    new = module("old", source.replace("1.0", "5.0").replace("times=2", "times=3").replace("** 2", "* 2"))
    take_place(old, new)
    assert (user.LIMIT, old.LIMIT, user.double(4), box.area) == (5.0, 5.0, 12, 6)


def test_a_mutant_is_the_module_with_one_change():
    (mutant,) = [m for m in mutants("stencils") if (m["from"], m["line"]) == ("-2.0", 21)]
    assert changed(mutant).SECOND == (1.0, 2.0, 1.0)
    assert stencils.SECOND == (1.0, -2.0, 1.0)


def test_reasons_are_kept_for_mutants_that_are_still_the_same():
    (mutant,) = [m for m in mutants("stencils") if (m["from"], m["line"]) == ("-2.0", 21)]
    first = summary([mutant | {"outcome": "survived"}, mutant | {"outcome": "timeout"}], {})
    assert (first["mutants"], first["killed"]) == (2, 1) and first["survivors"][0]["why"] == ""
    first["survivors"][0]["why"] = "a reason"
    assert summary([mutant | {"outcome": "survived"}], first)["survivors"][0]["why"] == "a reason"


def test_nine_mutants_of_ten_are_killed_and_each_survivor_is_explained():
    result = json.loads(RESULT.read_text())
    assert result["killed"] >= 0.9 * result["mutants"] > 0
    assert set(result["by_module"]) == set(MODULES)
    assert result["mutants"] - result["killed"] == len(result["survivors"])
    assert [s for s in result["survivors"] if not s["why"]] == []
