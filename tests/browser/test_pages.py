"""The built book in headless Chromium: every page, light and dark, on a desktop and on a phone; no network.

``make browser`` runs these tests and fails where something they need is missing; ``make test`` skips them, with the
reason. ``LSBOOK_HTML`` names another folder with a built book than ``_build/html``.
"""

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from check_book import toc_pages

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HTML = Path(os.environ.get("LSBOOK_HTML", ROOT / "_build" / "html"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), "")
SOURCES = ("book/*.*", "ls*/*.py", "_static/*", "results/*.json", "_config.yml", "_toc.yml", "references.bib")

# Written by Sphinx beside the pages of the book; not all of them in every book.
GENERATED = ("genindex.html", "prf-prf.html", "py-modindex.html")
SEARCH = "search.html?q=upwind"


def missing_tools() -> str:
    """What a browser test lacks and what to do about it; an empty text if nothing."""
    if not CHROMIUM:
        return f"no browser ({', '.join(BROWSERS)}): run tests/browser/install"
    if not shutil.which("node"):
        return "no node: run tests/browser/install"
    if not (HERE / "node_modules" / "axe-core").is_dir():
        return "no node packages: run tests/browser/install"
    return ""


def missing_book() -> str:
    """Why there is no built book to test; an empty text if there is one. A folder named by the user may be old."""
    index = HTML / "index.html"
    if not index.is_file():
        return f"no built book in {HTML}: run make book"
    newer = [p for pattern in SOURCES for p in ROOT.glob(pattern) if p.stat().st_mtime > index.stat().st_mtime]
    if newer and "LSBOOK_HTML" not in os.environ:
        return f"the built book is older than {newer[0].relative_to(ROOT)}: run make book"
    return ""


def require(reason: str) -> None:
    """Skip, or fail under ``make browser``, if there is a reason."""
    if reason and os.environ.get("LSBOOK_BROWSER") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def run_checks(folder: Path, pages: Sequence[str], patience: int = 15_000) -> dict[str, list[str]]:
    """Faults of each page in all views, each with its view in front; ``patience`` in milliseconds."""
    env = os.environ | {"CHROMIUM": CHROMIUM, "PATIENCE": str(patience)}
    command = ["node", str(HERE / "check.mjs"), str(folder), *pages]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = defaultdict(list)
    for line in map(json.loads, run.stdout.splitlines()):
        found[line["page"]] += [f"{line['width']} {line['theme']}: {fault}" for fault in line["faults"]]
    return found


PAGES = [f"{page}.html" for page in toc_pages(ROOT / "_toc.yml")]


@pytest.fixture(scope="session")
def book() -> Path:
    """Folder of the built book."""
    require(missing_book())
    return HTML


@pytest.fixture(scope="session")
def report(book: Path) -> dict[str, list[str]]:
    """Faults of all pages: one browser opens them one after the other."""
    require(missing_tools())
    there = [page for page in (*PAGES, *GENERATED) if (book / page).is_file()]
    return run_checks(book, [*there, SEARCH])


@pytest.mark.parametrize("page", [*PAGES, *GENERATED, SEARCH])
def test_page_has_no_fault(report: dict[str, list[str]], page: str):
    if page in GENERATED and page not in report:
        pytest.skip(f"this book has no {page}")
    assert report[page] == []


class Links(HTMLParser):
    """Where a page's links and pictures lead, its anchors, its widgets and the pictures for readers without script."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.widgets = self.stills = 0
        self.open = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.targets |= {values[key] for key in ("href", "src", "srcset") if values.get(key)}
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        self.widgets += tag == "script" and "widget-view" in (values.get("type") or "")
        self.stills += tag == "img" and self.open == "noscript"
        self.open = tag if tag != "img" else self.open


def dead_links(folder: Path) -> list[str]:
    """Links of the pages below ``folder`` to files that are not there or to anchors that the file does not have."""
    pages = {page: Links(page) for page in sorted(folder.rglob("*.html")) if "_static" not in page.parts}
    found = []
    for page, links in pages.items():
        for target in links.targets:
            if urlsplit(target).scheme or target.startswith("//"):
                continue
            address, anchor = urldefrag(target)
            file = (page.parent / unquote(address.split("?")[0])).resolve() if address else page.resolve()
            if not file.is_file():
                found.append(f"{page.relative_to(folder)}: no file for {target}")
            elif file.suffix == ".html" and anchor and unquote(anchor) not in pages[file].anchors:
                found.append(f"{page.relative_to(folder)}: no anchor for {target}")
    return found


def test_internal_links_resolve(book: Path):
    assert dead_links(book.resolve()) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_slider_has_a_picture_for_readers_without_script(book: Path, page: str):
    links = Links(book / page)
    assert links.stills >= links.widgets


@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / page).with_suffix(".ipynb").is_file()])
def test_notebook_can_be_launched_and_downloaded(book: Path, page: str):
    notebook = str(Path(page).with_suffix(".ipynb"))
    targets = Links(book / page).targets
    repository = "github/levelsetbook/level-set-networks/blob/main"
    assert f"https://colab.research.google.com/{repository}/{notebook}" in targets
    binder = [target for target in targets if target.startswith("https://mybinder.org/v2/gh/levelsetbook/")]
    assert [target.split("urlpath=")[1] for target in binder] == [f"lab/tree/{notebook}"]
    assert f"../_sources/{notebook}" in targets and (book / "_sources" / notebook).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_page_is_small(book: Path, page: str):
    assert (book / page).stat().st_size <= 1.5e6


PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle cx="4" cy="4" r="3"/></svg>'
FAULTS = {
    "has no alt text": '<img src="there.svg">',
    "image not_there.png is not loaded": '<img src="not_there.png" alt="nothing">',
    "404 http": "",
    "not typeset: x": '<span class="math">x</span>',
    "mathematics: bad": '<span class="math"><mjx-container><mjx-merror>bad</mjx-merror></mjx-container></span>',
    "scrolls sideways": '<p style="width:2000px">wide</p>',
    "error: here": '<script>throw new Error("here")</script>',
    "console: there": '<script>console.error("there")</script>',
    "asks the network for https://example.org": '<img src="https://example.org/x.png" alt="far">',
    "slider 0 does not change": '<p><img src="there.svg" alt="x"><span class="noUi-handle" tabindex="0">o</span></p>',
    "2 widgets, but 1 sliders": 2 * '<script type="application/vnd.jupyter.widget-view+json">{}</script>',
    "button-name": "<button></button>",
    "color-contrast": '<p style="color:#999;background:#aaa">hard to read</p>',
    'the theme is "undefined" for a reader who wants dark': "",
}
SYSTEM_THEME = (
    "<script>document.documentElement.dataset.theme ="
    " matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'</script>"
)


@pytest.fixture(scope="module")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the checks say about a page with each of the faults, and about one without."""
    require(missing_tools())
    folder = tmp_path_factory.mktemp("handmade")
    (folder / "there.svg").write_text(PICTURE, encoding="utf-8")
    bodies = {"good": f'{SYSTEM_THEME}<img src="there.svg" alt="a disc">', "bad": "".join(FAULTS.values())}
    for name, body in bodies.items():
        head = f'<head><meta charset="utf-8"><title>{name}</title><link rel="icon" href="data:,"></head>'
        page = f'<!doctype html><html lang="en">{head}<body><main><h1>{name}</h1>{body}</main></body></html>'
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return run_checks(folder, ["good.html", "bad.html"], patience=2000)


def test_checks_accept_a_good_page(handmade: dict[str, list[str]]):
    assert handmade["good.html"] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_checks_see_a_fault(handmade: dict[str, list[str]], fault: str):
    assert any(fault in found for found in handmade["bad.html"]), handmade["bad.html"]


def test_a_dead_link_is_seen(tmp_path: Path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a><a id="me" href="#me">a</a>', encoding="utf-8")
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html#you">a</a><img src="c.png">', encoding="utf-8")
    first, second = sorted(dead_links(tmp_path))
    assert "no anchor for a.html#you" in first and "no file for c.png" in second


def test_install_names_the_command_where_it_fails(tmp_path: Path):
    """A machine without browser, node and npm, whose package manager finds nothing."""
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    for tool, line in (("apt-get", "exit 100"), ("id", "echo 0")):
        (tmp_path / tool).write_text(f"#!{shutil.which('bash')}\n{line}\n", encoding="utf-8")
        (tmp_path / tool).chmod(0o755)
    command = ["bash", str(HERE / "install")]
    run = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 1
    assert "apt-get install -y chromium nodejs npm" in run.stderr
