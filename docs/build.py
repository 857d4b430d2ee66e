"""The documentation as a site to read offline: guide, concepts, notebooks with their results, reference, decisions, runbooks.

usage: python docs/build.py [--quick] [--jobs N]
`--quick` leaves the notebooks as they are, without running them. A notebook that was run is kept until it, the package or the settings change.
The pages are laid out below docs/_build/source as they lie in the project, so that every link between them holds, and Sphinx makes docs/_build/html.
"""

import argparse
import ast
import configparser
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
BUILD = PROJECT / "docs" / "_build"
SOURCE, HTML, RUN = BUILD / "source", BUILD / "html", BUILD / "run"
ROOMS = {
    "core": "the floor: settings, errors, clock, calendar, logs, database, web",
    "market": "sources, corporate actions, the quality gate, the lake, the universe, the ETL",
    "features": "Qlib's expressions, windows, panels, feature sets, labels",
    "models": "splits, training, metrics, search, tracking, the registry",
    "portfolio": "weights, limits, sizing, costs, backtest, tear sheet",
    "signals": "the signal service",
    "execution": "orders, the ledger, the broker's edge, controls, the kill switch, reconciliation",
    "exchange": "the local paper exchange",
    "trading": "the orchestrator, the daily run, P&L, replay, its pages",
    "cli": "the command line",
    "explore": "to open in JupyterLab: the market data, features, research, runs and orders of your own",
}
SECTIONS = ("guide", "concepts", "decisions", "runbooks")


def lay_out() -> None:
    "Copy what is written by hand, each section's README as its first page."
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    for name in ("README.md", "settings.ini", "pyproject.toml", "requirements.in", "Makefile"):
        shutil.copy(PROJECT / name, SOURCE / name)
    shutil.copy(PROJECT / "docs" / "conf.py", SOURCE / "conf.py")
    for folder in ("docs", "ops", "pipelines", "tests", "data"):
        if (PROJECT / folder).is_dir():
            shutil.copytree(PROJECT / folder, SOURCE / folder, ignore=not_written)
    for page in SOURCE.rglob("*.md"):
        page.write_text(to_pages(page.read_text(), page.relative_to(SOURCE).parent))
    for section in SECTIONS:
        first = SOURCE / "docs" / section / "README.md"
        if first.is_file():
            pages = sorted(page.stem for page in first.parent.glob("*.md") if page != first)
            first.write_text(first.read_text() + toctree(ordered(first.read_text(), pages)))


def not_written(folder: str, names: list[str]) -> list[str]:
    "What is generated, and everything of the data but what its page says."
    return [
        n
        for n in names
        if n in ("_build", "__pycache__")
        or n.endswith(".ipynb")
        or (folder == str(PROJECT / "data") and n != "README.md")
    ]


def to_pages(text: str, folder: Path) -> str:
    "Links to a folder lead to its first page here."

    def page_of(link: re.Match[str]) -> str:
        there = os.path.normpath(folder / link[1])
        first = {"nbs": "index.md", "docs": "README.md"}.get(there.split("/")[0])
        return f"]({link[1]}/{first})" if first and (PROJECT / there).is_dir() else link[0]

    return re.sub(r"\]\(([\w./-]+)\)", page_of, text)


def ordered(text: str, pages: list[str]) -> list[str]:
    "Pages in the order in which a text links to them, then the others."
    linked = [name for name in dict.fromkeys(re.findall(r"\(([\w-]+)\.md", text)) if name in pages]
    return [*linked, *(name for name in pages if name not in linked)]


def toctree(pages: list[str], **options: str) -> str:
    "The table of contents that Sphinx builds its navigation from; it does not show in the text."
    lines = "".join(f":{name}: {value}\n" for name, value in ({"hidden": "", "maxdepth": "1"} | options).items())
    return "\n\n```{toctree}\n" + lines + "\n" + "\n".join(pages) + "\n```\n"


# ---- the notebooks


def shown(book: dict[str, Any], folder: Path) -> dict[str, Any]:
    "Without nbdev's directives, and without the cells that hold nothing else."
    cells = []
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if re.search(r"^#\|\s*hide\b", text, re.MULTILINE):
                continue
            text = re.sub(r"^#\|.*\n?", "", text, flags=re.MULTILINE).strip("\n")
        else:
            text = to_pages(text, folder)
        if text.strip():
            tags = {"metadata": {"tags": ["hide-input"]}} if cell["cell_type"] == "code" and only_imports(text) else {}
            cells.append(cell | {"source": text} | tags)
    return book | {"cells": cells}


def only_imports(text: str) -> bool:
    "Does a cell do nothing but import?"
    return all(re.match(r"(from|import|if TYPE_CHECKING|[)#]|\s|$)", line) for line in text.splitlines())


def key_of(book: Path, package: str) -> str:
    "Changes when the notebook, the package or the settings do."
    return hashlib.sha256(book.read_bytes() + package.encode()).hexdigest()[:24]


def package_digest() -> str:
    "Of all that a notebook's results depend on."
    digest = hashlib.sha256((PROJECT / "settings.ini").read_bytes() + (PROJECT / "requirements.lock").read_bytes())
    for path in sorted((PROJECT / "tradenb").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_book(book: Path, kept: Path) -> str | None:
    "Run a notebook where it lies and keep it with its results; says what went wrong."
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb, write_nb

    os.environ["IN_TEST"] = "1"
    os.chdir(book.parent)
    shell, nb = CaptureShell(book, mpl_format="svg"), read_nb(book)
    skip = lambda cell: cell.cell_type == "code" and re.search(r"^#\|\s*eval:\s*false", cell.source, re.MULTILINE)
    try:
        shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception as error:
        return f"{book.relative_to(PROJECT)}: {type(error).__name__}: {error}".splitlines()[0]
    write_nb(nb, kept)
    return None


def books() -> list[Path]:
    "All notebooks but the one that makes the README."
    found = (PROJECT / "nbs").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts and path.parent.name != "nbs")


def run_books(jobs: int) -> list[str]:
    "Run every notebook that has changed; the ones that failed, each in a line."
    RUN.mkdir(parents=True, exist_ok=True)
    package = package_digest()
    kept = {book: RUN / f"{key_of(book, package)}.ipynb" for book in books()}
    for old in {*RUN.glob("*.ipynb")} - {*kept.values()}:
        old.unlink()
    todo, failed = [book for book, path in kept.items() if not path.exists()], []
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"}
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=12) as pool:
        running = {pool.submit(run_book, book, kept[book]): book for book in todo}
        for n, done in enumerate(as_completed(running), 1):
            say(f"notebooks {n} of {len(todo)}: {running[done].relative_to(PROJECT)}")
            failed += [text] if (text := done.result()) else []
    for book, path in kept.items():
        place(book, path if path.exists() else book)
    return failed


def place(book: Path, content: Path) -> None:
    "Put a notebook where the site has it."
    there = SOURCE / book.relative_to(PROJECT)
    there.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        shown(json.loads(content.read_text(encoding="utf-8")), there.relative_to(SOURCE).parent), ensure_ascii=False
    )
    there.write_text(text, encoding="utf-8")


def title_of(book: Path) -> tuple[str, str]:
    "A notebook's title and the line below it."
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    text = "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "markdown"))
    title, said = re.search(r"^# (.+)$", text, re.MULTILINE), re.search(r"^> (.+)$", text, re.MULTILINE)
    return (title[1] if title else book.stem), (said[1] if said else "")


def room_pages() -> list[str]:
    "A page for each room with its notebooks in reading order; their addresses."
    pages = []
    for room, about in ROOMS.items():
        mine = [book for book in books() if book.relative_to(PROJECT / "nbs").parts[0] == room]
        rows = [(book, *title_of(book)) for book in mine]
        links = [f"| [{title}]({book.relative_to(PROJECT / 'nbs' / room)}) | {said} |" for book, title, said in rows]
        names = [str(book.relative_to(PROJECT / "nbs" / room).with_suffix("")) for book in mine]
        text = (
            f"# {room}\n\n{about[0].upper()}{about[1:]}.\n\n| notebook | what it is about |\n|---|---|\n"
            + "\n".join(links)
        )
        write(f"nbs/{room}/index.md", text + toctree(names))
        pages.append(f"{room}/index")
    return pages


def write(address: str, text: str) -> None:
    path = SOURCE / address
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# ---- the reference


@dataclass(frozen=True)
class Key:
    "One setting."

    name: str
    default: str
    kind: str
    about: str


def settings_sections() -> dict[str, list[Key]]:
    "All settings by section: names and types from the code, defaults and descriptions from the file."
    from tradenb.core.settings import SECRETS, Settings

    file = PROJECT / "settings.ini"
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.read(file, encoding="utf-8")
    said, sections = comments(file.read_text(encoding="utf-8")), {}
    for section, field in Settings.model_fields.items():
        keys = field.annotation.model_fields  # type: ignore[union-attr]
        sections[section] = [
            Key(
                key,
                "" if f"{section}.{key}" in SECRETS else parser[section].get(key, ""),
                "secret" if f"{section}.{key}" in SECRETS else kind_of(inner),
                said.get((section, key), "From the environment alone." if f"{section}.{key}" in SECRETS else ""),
            )
            for key, inner in keys.items()
        ]
    return sections


def comments(text: str) -> dict[tuple[str, str], str]:
    "(section, key) → the comment above it; keys that follow without one share it."
    found, section, above = {}, "", ""
    fresh = True
    for line in text.splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section, above = head[1], ""
        elif line.startswith("#"):
            above, fresh = (line[1:].strip() if fresh else f"{above} {line[1:].strip()}"), False
            continue
        elif "=" in line:
            found[section, line.partition("=")[0].strip()] = above
        fresh = True
    return found


def kind_of(field: Any) -> str:
    "A field's type and bounds in words."
    choices = re.findall(r"Literal\[([^\]]*)\]", str(field.annotation))
    name = (
        ", ".join(choices[0].replace("'", "").split(", ")) if choices else getattr(field.annotation, "__name__", "text")
    )
    words = {"str": "text", "int": "whole number", "float": "number", "Decimal": "amount", "bool": "true or false", "date": "date", "tuple": "list", "dict": "field=column pairs", "Path": "folder"}  # fmt: skip
    bounds = [f"{sign} {value}" for part in field.metadata for sign, attribute in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")) if (value := getattr(part, attribute, None)) is not None]  # fmt: skip
    return " ".join([words.get(name, name), *bounds])


def settings_page() -> str:
    "The settings, section by section."
    parts = [
        "# Settings\n\nThree tiers, highest first: `--set section.key=value` on the command line, the environment (`TRADENB_SECTION__KEY`, a `.env` file too), and [settings.ini](../settings.ini). "
        "An unknown key, a bad value or an impossible combination is refused at start-up. Secrets come from the environment alone.\n"
    ]
    for section, keys in settings_sections().items():
        rows = [
            f"| `{k.name}` | {f'`{k.default}`' if k.default else ''} | {k.kind} | {k.about.replace('|', '&#124;')} |"
            for k in keys
        ]
        parts.append(
            f"## {section}\n\n| key | default | kind | what it does |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(parts)


def command_page() -> str:
    "Every command with its options, as `--help` tells them."
    import typer
    from typer._click import Context
    from typer.cli import get_docs_for_click

    from tradenb.cli.main import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=Context(command), name="tradenb", title="The command line")


def api_pages() -> list[str]:
    "A page for each module with its public names; their addresses."
    pages = []
    for path in sorted((PROJECT / "tradenb").rglob("*.py")):
        module = ast.parse(text := path.read_text(encoding="utf-8"))
        names = next((ast.literal_eval(n.value) for n in module.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])  # fmt: skip
        if not names or "migrations" in path.parts:
            continue
        dotted = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        entries = [entry for node in module.body for entry in documented(node, text.splitlines(), names)]
        head = f"# {dotted}\n\n{ast.get_docstring(module) or ''}\n\n"
        write(f"reference/api/{dotted}.md", head + "\n\n".join(entries) + "\n")
        pages.append(dotted)
    return pages


def documented(node: ast.AST, lines: list[str], names: list[str]) -> Iterator[str]:
    "A definition as it is written, up to its body, and what it says of itself."
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names:
        yield f"## {node.name}\n\n```python\n{header(node, lines)}\n```\n\n{ast.get_docstring(node) or ''}"
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                    yield f"```python\n{header(inner, lines)}\n```\n\n{ast.get_docstring(inner) or ''}"
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        said = [t.id for t in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(t, ast.Name)]
        if any(name in names for name in said) and node.end_lineno is not None and node.end_lineno - node.lineno < 12:
            yield f"## {', '.join(said)}\n\n```python\n" + "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n```"


def header(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]) -> str:
    "The lines of a definition without its body; of a class also its fields."
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    text = lines[first - 1 : node.body[0].lineno - 1] or [lines[first - 1]]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        text = [*text, *(line for n in fields for line in lines[n.lineno - 1 : n.end_lineno])]
    indent = min(len(line) - len(line.lstrip()) for line in text if line.strip())
    return "\n".join(line[indent:] for line in text).rstrip()


# ---- the whole


def front_page() -> str:
    "The README's own words, and the ways in."
    text = (SOURCE / "README.md").read_text(encoding="utf-8")
    sections = [f"docs/{name}/README" for name in ("guide", "concepts")] + ["nbs/index", "reference/index"]
    sections += [
        f"docs/{name}/README" for name in ("runbooks", "decisions") if (PROJECT / "docs" / name / "README.md").is_file()
    ]
    return text + toctree(sections, maxdepth="2")


def write_generated() -> None:
    "All pages that nobody writes by hand."
    rooms = room_pages()
    rows = "\n".join(f"| [{room}]({room}/index.md) | {about} |" for room, about in ROOMS.items())
    say_rooms = "The platform is written in notebooks; the package is exported from them. From the floor upwards:"
    write(
        "nbs/index.md",
        f"# Notebooks\n\n{say_rooms}\n\n| room | what is in it |\n|---|---|\n{rows}" + toctree(rooms, maxdepth="2"),
    )
    write("reference/settings.md", settings_page())
    write("reference/cli.md", command_page())
    modules = api_pages()
    listed = "\n".join(f"- [{name}]({name}.md)" for name in modules)
    write(
        "reference/api/index.md",
        f"# Package\n\nEvery public name, as its notebook defines it.\n\n{listed}" + toctree(modules),
    )
    write(
        "reference/index.md",
        "# Reference\n\n- [Settings](settings.md)\n- [The command line](cli.md)\n- [Package](api/index.md)"
        + toctree(["settings", "cli", "api/index"]),
    )
    write("index.md", front_page())
    (SOURCE / "README.md").unlink()


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    "Build the site; the exit code."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="do not run the notebooks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="notebooks at the same time")
    asked = parser.parse_args(arguments)
    lay_out()
    failed = [] if asked.quick else run_books(asked.jobs)
    for book in books() if asked.quick else ():
        place(book, book)
    write_generated()
    from sphinx.cmd.build import build_main

    code = build_main(["-q", "-j", str(asked.jobs), "-d", str(BUILD / "doctrees"), str(SOURCE), str(HTML)])
    for text in failed:
        print(f"did not run: {text}", file=sys.stderr)
    say(f"open {HTML / 'index.html'}")
    return code or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
