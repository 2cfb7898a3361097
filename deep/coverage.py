"""How many lines of ``lsbook`` the unit tests run: ``python -m deep.coverage``.

The loops that numba compiles are not seen by coverage.py. So some tests of these loops, in which they must agree with
the definition, run a second time as plain Python; both runs count together, and no line is excluded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from lsbook.__main__ import versions
from lsbook.files import atomic_path

ROOT = Path(__file__).parents[1]
LOOPS = ["tests/test_fused.py", "tests/test_fused_bending.py", "-k", "through_the_definition or stretches"]


def measure(tests: list[str], data: Path) -> dict[str, dict]:
    """Lines run and missed of each module, after all tests and the loops' tests without numba's compiler."""
    cover = [sys.executable, "-m", "coverage"]
    for options, files, more in (([], tests, {}), (["--append"], LOOPS, {"NUMBA_DISABLE_JIT": "1"})):
        command = [*cover, "run", *options, f"--data-file={data}", "--source=lsbook", "-m", "pytest", *files, "-q"]
        command += ["-p", "no:cacheprovider", "--ignore=tests/browser"]
        surroundings = os.environ | {"MPLBACKEND": "agg"} | more
        if subprocess.run(command, cwd=ROOT, env=surroundings).returncode:
            raise RuntimeError(f"{' '.join(files)}: tests fail; mend them first")
    out = data.with_suffix(".json")
    subprocess.run([*cover, "json", f"--data-file={data}", "-o", str(out)], cwd=ROOT, check=True)
    return {Path(name).name: module for name, module in json.loads(out.read_text())["files"].items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deep.coverage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/coverage.json"))
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders of tests (default: all)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        modules = measure(args.tests, Path(folder) / "coverage.data")
    rows = {
        name: {"lines": m["summary"]["num_statements"], "missed": m["missing_lines"]} for name, m in modules.items()
    }
    lines, missed = sum(row["lines"] for row in rows.values()), sum(len(row["missed"]) for row in rows.values())
    report = {"date": date.today().isoformat()} | versions()
    report |= {"lines": lines, "missed": missed, "percent": round(100 * (1 - missed / lines), 2), "modules": rows}
    with atomic_path(args.out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['percent']} % of {lines} lines")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
