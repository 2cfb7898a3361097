"""Check the built book: every page of _toc.yml is there and holds text. Run by ``make book``."""

import sys
from html.parser import HTMLParser
from pathlib import Path

import yaml

LEAST_TEXT = 100  # characters that a page has at least below its heading


class ArticleText(HTMLParser):
    """Collects what a reader sees of a page's article, apart from the navigation around it."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0  # of <article>
        self.heading = False
        self.hidden = False
        self.title = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag == "article"
        self.heading |= tag == "h1"
        self.hidden |= tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "article"
        self.heading &= tag != "h1"
        self.hidden &= tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self.depth > 0 and not self.hidden:
            if self.heading:
                self.title += data.strip()
            else:
                self.text += data.strip()


def toc_pages(toc: Path) -> list[str]:
    """Pages of a ``_toc.yml`` in reading order, as written there: paths without a suffix."""

    def below(node: dict) -> list[str]:
        own = [node[key] for key in ("root", "file") if key in node]
        return own + [
            page for key in ("parts", "chapters", "sections") for child in node.get(key, []) for page in below(child)
        ]

    return below(yaml.safe_load(toc.read_text(encoding="utf-8")))


def faults(toc: Path, html: Path) -> list[str]:
    """What is wrong with the book in the folder ``html``, one line per fault; an empty list if nothing is."""
    found = [] if (html / "index.html").is_file() else [f"{html / 'index.html'}: the page to open is missing"]
    for page in toc_pages(toc):
        path = html / f"{page}.html"
        if not path.is_file():
            found.append(f"{path}: not built, though {toc.name} lists {page}")
            continue
        article = ArticleText()
        article.feed(path.read_text(encoding="utf-8"))
        if not article.title:
            found.append(f"{path}: no heading")
        if len(article.text) < LEAST_TEXT:
            found.append(f"{path}: empty, {len(article.text)} characters below the heading, least {LEAST_TEXT}")
    return found


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    problems = faults(root / "_toc.yml", root / "_build" / "html")
    if problems:
        sys.exit("\n".join(problems))
    print(f"All {len(toc_pages(root / '_toc.yml'))} pages of the book are there.")
