"""Write book/api.md from the docstrings of the packages: python tools/write_api.py

Every public name of every module is on the page: a name of the module's top level that does not begin with ``_``.
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "book" / "api.md"
MODULES = sorted(path for path in ROOT.glob("ls*/*.py") if not path.stem.startswith("_"))  # lsbook, lscheck, lsphantom
INTRODUCTION = """# API

Every public name of the packages `lsbook`, `lscheck` and `lsphantom`, with its docstring. The commands are described in
[Your own CT](own_data.md).

<!-- Written by tools/write_api.py: change the docstrings, not this page. -->
"""
LONGEST_VALUE = 60  # characters of a constant's value that is shown
SECTIONS = {"Args": ":param {}:", "Attributes": ":param {}:", "Returns": ":returns:", "Raises": ":raises {}:"}
STEMS = "|".join(path.stem for path in MODULES if path.parent.name == "lsbook")
SHORT_ROLE = re.compile(rf"(:\w+:`)(?=(?:{STEMS})\.)")  # the target of :func:`fused.run` is lsbook.fused.run
LITERAL = re.compile(r"(``.+?``|:[\w:]+:`.+?`)", re.DOTALL)


def escaped(text: str) -> str:
    """Text in which |, * and a trailing _ mean nothing to reStructuredText; literals stay, roles get full names."""
    parts = LITERAL.split(SHORT_ROLE.sub(r"\1lsbook.", text))
    return "".join(p if i % 2 else re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", p) for i, p in enumerate(parts))


def section(name: str, body: str) -> str:
    """A section of a docstring ("Args") as a list of fields."""
    if name == "Returns":
        return f":returns: {escaped(' '.join(body.split()))}"
    entries = re.split(r"\n(?=\S)", textwrap.dedent(body).strip("\n"))
    fields = (re.fullmatch(r"([^:]+): (.*)", " ".join(entry.split())).groups() for entry in entries)
    return "\n".join(f"{SECTIONS[name].format(key)} {escaped(text)}" for key, text in fields)


def text_of(docstring: str | None) -> str:
    """A docstring as reStructuredText."""
    heading = rf"^({'|'.join(SECTIONS)}):\n((?:    .*\n?|\n)+)"
    parts = re.split(heading, docstring or "", flags=re.MULTILINE)
    pieces = [escaped(parts[0].strip())]
    for name, body, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pieces += [section(name, body), escaped(after.strip())]
    return "\n\n".join(piece for piece in pieces if piece)


def directive(kind: str, signature: str, text: str) -> str:
    return f".. py:{kind}:: {signature}\n\n{textwrap.indent(text, '   ')}".rstrip()


def signature(node: ast.FunctionDef, bound: bool = False) -> str:
    """``name(arguments) -> result``; without the first argument for a bound method."""
    arguments = ast.unparse(node.args)
    if bound:
        arguments = re.sub(r"^\w+(, )?", "", arguments)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({arguments}){result}"


def class_text(node: ast.ClassDef) -> str:
    """A class with its fields and public methods."""
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    made = next((signature(item, bound=True) for item in methods if item.name == "__init__"), "__init__()")
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    members = [directive("attribute", f"{f.target.id}: {ast.unparse(f.annotation)}", "") for f in fields]
    for item in methods:
        if not item.name.startswith("_"):
            members.append(directive("method", signature(item, bound=True), text_of(ast.get_docstring(item))))
    call = made.removeprefix("__init__").removesuffix(" -> None") if methods else ""
    return directive("class", f"{node.name}{call}", "\n\n".join([text_of(ast.get_docstring(node)), *members]).strip())


def constants(node: ast.Assign | ast.AnnAssign, lines: list[str]) -> dict[str, str]:
    """Text for each name that the statement assigns: its value if that is short, and the comment beside or above it."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    above = node.lineno - 1
    while lines[above - 1].startswith("#"):
        above -= 1
    comment = " ".join(line.lstrip("# ") for line in lines[above : node.lineno - 1])
    beside = lines[node.end_lineno - 1].partition("  # ")[2]
    if beside and not beside.startswith("fmt:"):
        comment = beside
    value = ast.unparse(node.value)
    shown = f"``{value}``" if len(names) == 1 and len(value) <= LONGEST_VALUE else ""
    return {name: "\n\n".join(part for part in (shown, escaped(comment)) if part) for name in names}


def entries(path: Path) -> dict[str, str]:
    """Each public name of a module, in the order of the file, with what the page says about it."""
    source = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = directive("function", signature(node), text_of(ast.get_docstring(node)))
        elif isinstance(node, ast.ClassDef):
            found[node.name] = class_text(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {n: directive("data", n, text) for n, text in constants(node, source.splitlines()).items()}
    return {name: text for name, text in found.items() if not name.startswith("_")}


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for path in MODULES:
        name = f"{path.parent.name}.{path.stem}"
        head = text_of(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
        body = "\n\n".join([f".. py:module:: {name}", head, *entries(path).values()])
        parts.append(f"## {name}\n\n```{{eval-rst}}\n{body}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
