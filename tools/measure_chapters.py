"""Run each chapter alone in a fresh kernel; write its seconds and peak memory to results/chapters.json.

    python tools/measure_chapters.py [NAME ...]        all chapters, or those named (01_implicit_curves)

Results of chapters that are not named are kept. Measure on a machine that does nothing else.
"""

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "chapters.json"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
NotebookClient(nbformat.read(sys.argv[1], 4), timeout=600, resources={"metadata": {"path": "book"}}).execute()
"""


def measure(notebook: Path) -> dict[str, float]:
    """Wall-clock seconds, and the peak memory of the kernel in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", RUN, str(notebook)], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{notebook.name} failed")
    # Of the process and of the kernel that it waited for, the larger counts; Linux counts in KiB.
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mib": round(usage.ru_maxrss / 1024)}


def main(names: list[str]) -> None:
    notebooks = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"chapters": {}}
    chapters = {n.stem: report["chapters"][n.stem] for n in notebooks if n.stem in report["chapters"]}
    for notebook in notebooks:
        if not names or notebook.stem in names:
            chapters[notebook.stem] = measure(notebook)
            print(notebook.stem, chapters[notebook.stem], flush=True)
    report = {"date": date.today().isoformat(), "cores": os.cpu_count(), "chapters": dict(sorted(chapters.items()))}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
