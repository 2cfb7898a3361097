"""Do the tests notice when one thing in the step is wrong? ``python -m deep.mutation``.

One operator, number, comparison, condition, direction or function of ``lsbook.stencils`` and ``lsbook.levelset`` is
changed at a time; the tests of these modules then run until the first fails, the quick ones first. A mutant that no
test notices has survived. The tests are collected once; each mutant then gets a process of its own, a fork in which the
changed functions take the places of the right ones. On a cut, what is known stays in ``--log``. Texts, annotations and
docstrings are not changed.
"""

import argparse
import ast
import copy
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import torch

from lsbook.__main__ import versions
from lsbook.files import atomic_path

ROOT = Path(__file__).parents[1]
MODULES = ("stencils", "levelset")
TESTS = ("tests/test_stencils.py", "tests/test_levelset.py", "tests/test_reference.py")
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OPERATORS |= {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.And: ast.Or, ast.Or: ast.And}
PAIRS = [("forward_y", "backward_y"), ("forward_x", "backward_x"), ("central_y", "central_x"), ("wind_y", "wind_x")]
PAIRS += [("second_y", "second_x"), ("bend", "push"), ("any", "all"), ("maximum", "minimum"), ("max", "min")]
NAMES = dict(PAIRS) | {b: a for a, b in PAIRS}
DROPPED = {"relu", "abs", "sqrt", "root"}  # functions of one argument that are left out


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What a node can be changed to."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
        new.op = OPERATORS[type(node.op)]()
        yield new
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield new.operand
    elif isinstance(node, ast.Compare):
        for n, operator in enumerate(node.ops):
            if type(operator) in OPERATORS:
                new = copy.deepcopy(node)
                new.ops[n] = OPERATORS[type(operator)]()
                yield new
    elif isinstance(node, ast.If | ast.IfExp):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        yield new
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        new.attr = NAMES[node.attr]
        yield new
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = node.args or ([node.func.value] if isinstance(node.func, ast.Attribute) else [])
        if name in DROPPED and len(of) == 1:
            yield copy.deepcopy(of[0])


class Mutator(ast.NodeTransformer):
    """Counts all changes of a module, and makes the one that is wanted."""

    def __init__(self, wanted: int = -1):
        self.wanted, self.found = wanted, []

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and node.value is None):
            return node
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        for new in variants(node):
            shown = [ast.unparse(n.test if isinstance(n, ast.If) else n) for n in (node, new)]
            self.found.append({"line": node.lineno, "from": shown[0], "to": shown[1]})
            if len(self.found) - 1 == self.wanted:
                return ast.copy_location(new, node)
        return self.generic_visit(node)


def source(module: str) -> Path:
    return ROOT / "lsbook" / f"{module}.py"


def mutants(module: str) -> list[dict]:
    """All changes of a module: line, what stands there, what it becomes."""
    mutator = Mutator()
    mutator.visit(ast.parse(source(module).read_text(encoding="utf-8")))
    return [{"module": module, "number": number} | change for number, change in enumerate(mutator.found)]


def changed(mutant: dict) -> types.ModuleType:
    """A mutant as a module that nothing else imports."""
    path, name = source(mutant["module"]), f"lsbook.{mutant['module']}"
    tree = Mutator(mutant["number"]).visit(ast.parse(path.read_text(encoding="utf-8")))
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    loader.get_code = lambda _: compile(ast.fix_missing_locations(tree), str(path), "exec")
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def swap(old: object, new: object) -> None:
    """Let a function, or each function and property of a class, do what another one does."""
    if isinstance(old, property):
        old, new = old.fget, new.fget
    if isinstance(old, types.FunctionType):
        old.__code__, old.__defaults__ = new.__code__, new.__defaults__
    for key, value in vars(old).items() if isinstance(old, type) else ():
        if key in vars(new):
            swap(value, vars(new)[key])


def take_place(old: types.ModuleType, new: types.ModuleType) -> None:
    """Make a module, wherever its names were imported to, what another one is."""
    for name, value in list(vars(old).items()):
        if getattr(value, "__module__", None) == old.__name__:
            swap(value, vars(new)[name])
        elif not name.startswith("__") and vars(new)[name] != value:  # a number or several
            for module in list(sys.modules.values()):
                if vars(module).get(name) is value:
                    setattr(module, name, vars(new)[name])


class Trials:
    """A plugin of pytest: runs the collected tests without a change, then with each mutant; ``rows`` say how it was."""

    def __init__(self, wanted: list[dict], log: Path):
        self.wanted, self.log = wanted, log
        self.seconds: dict[str, float] = {}
        self.failed, self.rows = "", None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None  # not even collected: pytest says why
        plain = self.trial(session.items, None, 3600)
        if plain["outcome"] != "survived":
            print(f"deep.mutation: without any change {plain['by']} fails; mend that first", file=sys.stderr)
            return True
        items = sorted(session.items, key=lambda item: plain["seconds"][item.nodeid])
        limit = 60 + 5 * sum(plain["seconds"].values())
        done, tests, self.rows = known(self.log), digest(*TESTS), []
        for number, mutant in enumerate(self.wanted):
            row = done.get((mutant["module"], mutant["number"]))
            if row is None:
                row = mutant | self.trial(items, mutant, limit) | {"tests": tests}
                row["code"] = digest(source(mutant["module"]))
                assert row["outcome"] != "broken", f"could not take the place of the module: {row}"
                with self.log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                shown = f"{row['outcome']} {row['module']}:{row['line']} {row['from']} -> {row['to']}"
                print(f"{number + 1}/{len(self.wanted)} {shown}", flush=True)
            self.rows.append(row)
        return True

    def trial(self, items: list[pytest.Item], mutant: dict | None, limit: float) -> dict:
        """The tests' outcome in a fork: killed, survived or timeout, and by which; without a mutant also seconds."""
        (reading, writing), began, pid = os.pipe(), time.monotonic(), os.fork()
        if not pid:
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            found = {"outcome": "broken", "by": "this driver"}
            try:
                if mutant:
                    take_place(sys.modules[f"lsbook.{mutant['module']}"], changed(mutant))
                for item, following in zip(items, [*items[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if self.failed:
                        break
                found = {"outcome": "killed" if self.failed else "survived", "by": self.failed}
            finally:
                os.write(writing, json.dumps(found if mutant else found | {"seconds": self.seconds}).encode())
                os._exit(0)
        os.close(writing)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, limit)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.waitpid(pid, 0)
        late = time.monotonic() - began >= limit
        return json.loads(answer) if answer else {"outcome": "timeout" if late else "killed", "by": "a crash"}


def digest(*names: str) -> str:
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()[:16]


def known(log: Path) -> dict[tuple, dict]:
    """Outcomes of earlier runs that still hold: killed ones of this code, survivors of this code and these tests."""
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    valid = (row for row in rows if row["code"] == digest(source(row["module"])))
    tests = digest(*TESTS)
    return {(r["module"], r["number"]): r for r in valid if r["outcome"] != "survived" or r["tests"] == tests}


def summary(rows: list[dict], before: dict) -> dict:
    """Counts, and survivors with the reason that the earlier summary gave for each."""
    reasons = {(s["module"], s["from"], s["to"], s["in"]): s["why"] for s in before.get("survivors", [])}
    killed = [row for row in rows if row["outcome"] != "survived"]
    result: dict = {"mutants": len(rows), "killed": len(killed), "by_module": {}, "survivors": []}
    for module in MODULES:
        counts = [sum(row["module"] == module for row in part) for part in (rows, killed)]
        result["by_module"][module] = dict(zip(("mutants", "killed"), counts, strict=True))
    for row in (row for row in rows if row["outcome"] == "survived"):
        line = source(row["module"]).read_text(encoding="utf-8").splitlines()[row["line"] - 1].strip()
        shown = {"module": row["module"], "in": line, "from": row["from"], "to": row["to"]}
        reason = reasons.get((row["module"], row["from"], row["to"], line), "")
        result["survivors"].append(shown | {"why": reason})
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deep.mutation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/mutation.json"))
    parser.add_argument("--log", type=Path, default=Path("build/mutation.jsonl"), help="outcomes, to go on after a cut")
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    trials = Trials([mutant for module in MODULES for mutant in mutants(module)], args.log)
    pytest.main(["-s", "-q", "-p", "no:cacheprovider", *TESTS], plugins=[trials])
    if trials.rows is None:
        return 2
    before = json.loads(args.out.read_text()) if args.out.is_file() else {}
    report = {"date": date.today().isoformat()} | versions() | {"tests": TESTS} | summary(trials.rows, before)
    with atomic_path(args.out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['killed']} of {report['mutants']} mutants were killed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
