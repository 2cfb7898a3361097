"""Print the oldest versions that pyproject.toml allows, as pip constraints: ``python tools/oldest.py > oldest.txt``."""

import re
import tomllib
from pathlib import Path


def oldest(pyproject: Path) -> list[str]:
    """Turn each ``name>=version,<...`` of the project and its extras into ``name==version``.

    Raises:
        ValueError: if a dependency has no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = set()
    for dependency in sum(project["optional-dependencies"].values(), project["dependencies"]):
        bound = re.fullmatch(r"([\w.-]+)>=([\w.]+),.*", dependency)
        if bound is None:
            raise ValueError(f"{pyproject}: '{dependency}' has no lower bound; write it as name>=version,<version")
        lines.add(f"{bound[1]}=={bound[2]}")
    return sorted(lines)


if __name__ == "__main__":
    print("\n".join(oldest(Path(__file__).parents[1] / "pyproject.toml")))
