"""The project's files agree with each other: ranges, lock, Binder environment, imports, pages, sizes."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from check_book import faults, toc_pages
from oldest import oldest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
MODULES = sorted((ROOT / "lsbook").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

# Names under which conda-forge has a dependency; python and pip are no dependencies of pyproject.toml.
CONDA_NAMES = {"pytorch-cpu": "torch"}


def read_yaml(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def declared(*extras: str) -> dict[str, SpecifierSet]:
    """Ranges of the core dependencies and of the given extras, by canonical name."""
    lines = sum((PROJECT["optional-dependencies"][extra] for extra in extras), PROJECT["dependencies"])
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def locked() -> dict[str, str]:
    """Versions of constraints.txt, by canonical name. A line that is no exact pin raises ValueError."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_lock_holds_an_exact_version_of_every_dependency():
    pins = locked()
    for name, versions in declared("book", "test").items():
        assert name in pins, f"{name} is not in constraints.txt: run make lock"
        assert pins[name] in versions, f"constraints.txt has {name} {pins[name]}, pyproject.toml asks for {versions}"


def test_lock_names_a_release_of_torch_that_every_build_has():
    assert re.fullmatch(r"\d+\.\d+\.\d+", locked()["torch"]), "a local tag such as +cpu fits one index only"


def test_oldest_versions_are_inside_the_ranges():
    ranges = declared("book", "test")
    pins = dict(line.split("==") for line in oldest(ROOT / "pyproject.toml"))
    assert {canonicalize_name(name) for name in pins} == set(ranges)
    for name, version in pins.items():
        assert version in ranges[canonicalize_name(name)]


def test_binder_environment_agrees_with_the_project():
    dependencies = read_yaml("environment.yml")["dependencies"]
    conda = {}
    for line in (d for d in dependencies if isinstance(d, str)):
        name, versions = re.fullmatch(r"([\w-]+)(.*)", line).groups()
        conda[name] = versions
    assert conda.pop("python").removeprefix("=") in SpecifierSet(PROJECT["requires-python"])
    assert conda.pop("pip") == ""
    for name, versions in conda.items():
        assert name in CONDA_NAMES, f"environment.yml: {name} is no dependency, or CONDA_NAMES has to learn it"
        assert SpecifierSet(versions) == declared()[CONDA_NAMES[name]], f"environment.yml and pyproject.toml: {name}"
        assert locked()[CONDA_NAMES[name]] in SpecifierSet(versions)
    assert set(CONDA_NAMES) == set(conda)
    assert [d for d in dependencies if isinstance(d, dict)] == [{"pip": ["-e .[book]"]}]
    assert os.access(ROOT / "postBuild", os.X_OK), "postBuild must be executable"


def test_python_versions_agree():
    oldest_python = PROJECT["requires-python"].removeprefix(">=")
    header = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[0]
    assert f"Python {oldest_python}." in header, "make the lock with the oldest Python"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest_python.replace(".", "")
    assert f"python={oldest_python}" in read_yaml("environment.yml")["dependencies"]
    used = re.findall(r'python(?:-version)?: "([\d.]+)"', "".join(w.read_text(encoding="utf-8") for w in WORKFLOWS))
    assert oldest_python in used
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in used)


def test_pre_commit_runs_the_locked_tools():
    revisions = {r["repo"].rsplit("/", 1)[1]: r["rev"] for r in read_yaml(".pre-commit-config.yaml")["repos"]}
    assert revisions == {"ruff-pre-commit": f"v{locked()['ruff']}", "nbstripout": locked()["nbstripout"]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflow_has_least_permissions_and_pinned_actions(path: Path):
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}).keys() <= ({"pages", "id-token"} if name == "deploy" else set())
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}|", step.get("uses", "")), step


def test_one_repository_is_named_everywhere():
    assert read_yaml("_config.yml")["repository"]["url"] == REPOSITORY
    citation = read_yaml("CITATION.cff")
    assert citation["repository-code"] == REPOSITORY
    assert citation["version"] == PROJECT["version"]


def source_of(path: Path) -> str:
    """Python source of a module, or of a notebook's code cells without the lines that are magics."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("%", "!")))


def imported(path: Path) -> set[str]:
    """Full names of the modules and of the names that a file imports, wherever in it: ``lsbook``, ``lsbook.ct``."""
    names = set()
    for node in ast.walk(ast.parse(source_of(path), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(["lsbook"] * bool(node.level) + [node.module] * bool(node.module))
            names |= {package} | {f"{package}.{alias.name}" for alias in node.names}
    return names


EXTRAS = {"lsbook": [], "book": ["book"], "lsphantom": [], "lscheck": []} | dict.fromkeys(
    ("tests", "tools", "benchmarks", "experiments", "deep"), ["book", "test"]
)
PROGRAMS = [p for folder in list(EXTRAS)[2:] for p in sorted((ROOT / folder).glob("*.py"))]
SOURCES = [*MODULES, *NOTEBOOKS, *PROGRAMS]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_import_is_declared(path: Path):
    own = {"lsbook", "lscheck", "lsphantom", "benchmarks", "experiments", "deep"} | {p.stem for p in PROGRAMS}
    allowed = declared(*EXTRAS[path.parent.name])
    distributions = packages_distributions()
    for name in {name.split(".")[0] for name in imported(path)} - own - sys.stdlib_module_names:
        sources = {canonicalize_name(d) for d in distributions.get(name, [])}
        assert sources & set(allowed), f"{path.name} imports {name} (of {sources or 'nothing installed'}): declare it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_every_solution_ends_before_the_next_exercise_begins(path: Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    order = re.findall(r"```\{(exercise|solution-start|solution-end)\}", text)
    assert order == ["exercise", "solution-start", "solution-end"] * (len(order) // 3)


def test_modules_import_in_one_direction():
    names = {f"lsbook.{p.stem}" for p in MODULES}
    graph = {f"lsbook.{p.stem}": imported(p) & names for p in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle
    assert set(order) == names


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, documented) and ast.get_docstring(n) is not None]
    prose = {line for n in nodes for line in range(n.body[0].lineno, n.body[0].end_lineno + 1)}
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and line.lstrip()[0] != "#" and number not in prose for number, line in lines)


def test_package_stays_small():
    """A module fits on a few screens, all of them in an afternoon; what explains the code is not held against it."""
    assert {p.name for p in MODULES if len(p.read_text(encoding="utf-8").splitlines()) > 250} == set()
    assert 1000 < sum(map(code_lines, MODULES)) <= 2530


def test_table_of_contents_and_notebooks_agree():
    pages = toc_pages(ROOT / "_toc.yml")
    for page in pages:
        assert any((ROOT / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")), f"_toc.yml: no file {page}"
    assert {f"book/{p.stem}" for p in NOTEBOOKS} <= set(pages), "a notebook is in no part of _toc.yml"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_asks_for_the_kernel_of_the_environment(path: Path):
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


CPU_INDEX = "https://download.pytorch.org/whl/cpu"
FOREIGN = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|anaconda\.(?:org|com)|deb\.debian\.org|download\.pytorch\.org"
    r"|(?<![\w.~)}-])/(?:root|work|tmp|opt|home|Users)/|[A-Z]:\\Users"
)


def foreign_names(text: str) -> list[str]:
    """Hosts of package registries, other than PyTorch's CPU index, and paths of one machine."""
    return FOREIGN.findall(text.replace(CPU_INDEX, ""))


def test_foreign_names_are_recognised():
    for parts in (
        ["https://py", "pi.org/simple"],
        ["see /ro", "ot/.cache"],
        ["https://download.pytorch", ".org/whl/x"],
    ):
        assert foreign_names("".join(parts))
    assert not foreign_names(f"{CPU_INDEX} https://example.org/home/ $(OUT)/tmp/ ~/home/")


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    assert ROOT / "tests" / "test_project.py" in files
    found = {}
    for path in filter(Path.is_file, files):
        names = foreign_names(path.read_text(encoding="utf-8", errors="ignore"))
        if names:
            found[str(path.relative_to(ROOT))] = names
    assert found == {}


def built_book(folder: Path, text: str) -> tuple[Path, Path]:
    """A table of contents with two pages, and a folder in which both are built; the second holds ``text``."""
    toc = folder / "_toc.yml"
    toc.write_text("root: index\nparts:\n- chapters:\n  - file: a/one\n", encoding="utf-8")
    (folder / "a").mkdir()
    for name, content in (("index", "long enough " * 20), ("a/one", text)):
        page = f"<nav>{'x' * 500}</nav><article><h1>Title</h1><p>{content}</p><script>{'x' * 500}</script></article>"
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return toc, folder


def test_check_book_accepts_a_whole_book(tmp_path: Path):
    assert faults(*built_book(tmp_path, "long enough " * 20)) == []


def test_check_book_finds_an_empty_page(tmp_path: Path):
    (fault,) = faults(*built_book(tmp_path, "short"))
    assert "one.html: empty" in fault


def test_check_book_finds_a_missing_page(tmp_path: Path):
    toc, html = built_book(tmp_path, "")
    (html / "a" / "one.html").unlink()
    (fault,) = faults(toc, html)
    assert "lists a/one" in fault
