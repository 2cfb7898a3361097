"""The unit tests on the oldest and on the newest versions that the ranges allow: ``python -m deep.versions WORK``.

For each set of versions and each Python an environment is made below WORK, and the tests of the committed code (a clone
of HEAD) run in it. A warning that lsbook's own lines cause is a failure, as always. Given the same WORK again, what is
installed is used again, and a set that has a result of this commit is not run. The environment variable ``TORCH_INDEX``
names PyTorch's index, as in the Makefile. Notebooks and browser tests are not run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

from lsbook.files import atomic_path

ROOT = Path(__file__).parents[1]
SHOWN = (
    "torch numpy scipy scikit-image scikit-learn nibabel ipywidgets matplotlib numba lightning-fabric pytest".split()
)


def wanted() -> list[str]:
    """The project's dependencies and those of its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + project["optional-dependencies"]["test"]


def install(environment: Path, python: str, constraints: Path) -> None:
    """A new environment with the tests' packages; PyTorch from its own index if one is named."""
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "-c", str(constraints)]
    torch = next(name for name in wanted() if name.startswith("torch"))
    if os.environ.get("TORCH_INDEX"):
        subprocess.run([*pip, "--index-url", os.environ["TORCH_INDEX"], "--no-deps", torch], check=True)
    subprocess.run([*pip, *wanted()], check=True)


def installed(python: Path) -> dict[str, str]:
    """Versions in an environment: of Python, and of the packages that matter."""
    code = "import json, platform, sys; from importlib.metadata import version as v;"
    code += "print(json.dumps({'python': platform.python_version()} | {n: v(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *SHOWN], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def trial(environment: Path, tree: Path, options: list[str]) -> dict:
    """How many tests passed, failed and were skipped, the names of those that failed, seconds."""
    report, began = environment / "tests.xml", time.monotonic()
    command = [str(environment / "bin" / "python"), "-m", "pytest", "tests", "-q", "-p", "no:cacheprovider"]
    command += ["--ignore=tests/browser", f"--junitxml={report}", *options]
    own = {
        "NUMBA_CACHE_DIR": environment / "numba",
        "PYTHONPYCACHEPREFIX": environment / "pycache",
        "MPLBACKEND": "agg",
    }
    with (environment / "tests.txt").open("w") as file:
        surroundings = os.environ | {key: str(value) for key, value in own.items()}
        subprocess.run(command, cwd=tree, env=surroundings, stdout=file, stderr=subprocess.STDOUT)
    if not report.is_file():
        raise RuntimeError(f"{environment / 'tests.txt'}: the tests did not run")
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"passed": len(cases) - len(failed) - skipped, "failed": len(failed), "skipped": skipped}
    names = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    return counts | {"failures": names, "seconds": round(time.monotonic() - began)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deep.versions", description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for environments; several GB")
    parser.add_argument("--oldest", nargs="*", default=[sys.executable], metavar="PYTHON", help="for the oldest set")
    parser.add_argument("--newest", nargs="*", default=[sys.executable], metavar="PYTHON", help="for the newest set")
    parser.add_argument("--out", type=Path, default=Path("results/versions.json"))
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="further options of pytest")
    args = parser.parse_args(argv)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    oldest = subprocess.run([sys.executable, "tools/oldest.py"], cwd=ROOT, check=True, capture_output=True, text=True)
    (work / "oldest.txt").write_text(oldest.stdout)
    (work / "newest.txt").write_text("")
    shutil.rmtree(work / "tree", ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(work / "tree")], check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=work / "tree", check=True, capture_output=True, text=True
    ).stdout.strip()
    rows = []
    for kind, pythons in (("oldest", args.oldest), ("newest", args.newest)):
        for python in pythons:
            environment = work / f"{kind}-{Path(python).name}"
            result = environment / f"result-{commit}.json"
            if not (environment / "complete").is_file():
                install(environment, python, work / f"{kind}.txt")
                (environment / "complete").touch()
            if not result.is_file():
                row = {"set": kind, "versions": installed(environment / "bin" / "python"), "commit": commit}
                row |= trial(environment, work / "tree", args.pytest)
                result.write_text(json.dumps(row))
            rows.append(json.loads(result.read_text()))
            print(json.dumps({key: rows[-1][key] for key in ("set", "passed", "failed", "seconds")}), flush=True)
    with atomic_path(args.out) as partial:
        partial.write_text(json.dumps({"date": date.today().isoformat(), "sets": rows}, indent=1) + "\n")
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
