"The notebooks of the site: run where they lie, kept until something changes, shown without nbdev's directives."

import hashlib
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from layout import PROJECT, ROOMS, RUN, say, to_pages, toctree, write


def shown(book: dict[str, Any], folder: Path) -> dict[str, Any]:
    "Without nbdev's directives, and without the cells that hold nothing else; imports that follow each other are folded as one."
    cells: list[dict[str, Any]] = []
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if re.search(r"^#\|\s*hide\b", text, re.MULTILINE):
                continue
            text = re.sub(r"^#\|.*\n?", "", text, flags=re.MULTILINE).strip("\n")
        else:
            text = to_pages(text, folder)
        if cells and folded(cells[-1]) and cell["cell_type"] == "code" and only_imports(text):
            cells[-1]["source"] += f"\n\n{text}"
        elif text.strip():
            tags = {"metadata": {"tags": ["hide-input"]}} if cell["cell_type"] == "code" and only_imports(text) else {}
            cells.append(cell | {"source": text} | tags)
    return book | {"cells": cells}


def folded(cell: dict[str, Any]) -> bool:
    return "hide-input" in cell.get("metadata", {}).get("tags", ())


def only_imports(text: str) -> bool:
    "Does a cell do nothing but import?"
    return all(re.match(r"(from|import|if TYPE_CHECKING|[)#]|\s|$)", line) for line in text.splitlines())


def made_of(text: str) -> set[Path]:
    "The files of ours that a source names: by import, by `python -m`, or in a string."
    names = {f"{room}/{name}" for room, name in re.findall(r"\btradenb\.(\w+)\.(\w+)", text)}
    for package, listed in re.findall(r"from tradenb\.([\w.]+) import (\([^)]*\)|.*)", text):
        names |= {f"{package.replace('.', '/')}/{name}" for name in re.findall(r"\w+", listed)} | {
            package.replace(".", "/")
        }
    files = {PROJECT / "tradenb" / f"{name}.py" for name in names}
    return {path for path in files if path.is_file()} | (
        {*(PROJECT / "pipelines").rglob("*.py")} if "pipelines" in text else set()
    )


def behind(book: Path) -> set[Path]:
    "All files whose change may change what a notebook shows."
    found, ahead = {book, PROJECT / "settings.ini", PROJECT / "requirements.lock"}, {book}
    while ahead:
        new = set().union(*(_made_of(path) for path in ahead)) - found
        found, ahead = found | new, new
    return found


@cache
def _made_of(path: Path) -> set[Path]:
    text = path.read_text(encoding="utf-8")
    return made_of(
        "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]) if path.suffix == ".ipynb" else text
    )


def key_of(book: Path) -> str:
    "Changes when the notebook does, or anything that it is made of."
    digest = hashlib.sha256()
    for path in sorted(behind(book)):
        digest.update(str(path.relative_to(PROJECT)).encode() + path.read_bytes())
    return digest.hexdigest()[:24]


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


def by_length(book: Path) -> bool:
    "Those that take minutes come first, so that nobody waits for them at the end."
    return book.parent.name != "explore"


def run_books(jobs: int) -> list[str]:
    "Run every notebook that has changed; the ones that failed, each in a line."
    RUN.mkdir(parents=True, exist_ok=True)
    kept = {book: RUN / f"{key_of(book)}.ipynb" for book in books()}
    for old in {*RUN.glob("*.ipynb")} - {*kept.values()}:
        old.unlink()
    todo = sorted((book for book, path in kept.items() if not path.exists()), key=by_length)
    failed: list[str] = []
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"}
    # What notebooks leave in memory ends with their process; a pool with `max_tasks_per_child` waits for ever (python#115634).
    size = 12 * jobs
    for first in range(0, len(todo), size):
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            running = {pool.submit(run_book, book, kept[book]): book for book in todo[first : first + size]}
            for n, done in enumerate(as_completed(running), first + 1):
                say(f"notebooks {n} of {len(todo)}: {running[done].relative_to(PROJECT)}")
                failed += [text] if (text := done.result()) else []
    for book, path in kept.items():
        place(book, path if path.exists() else book)
    return failed


def place(book: Path, content: Path) -> None:
    "Put a notebook where the site has it."
    there = book.relative_to(PROJECT)
    write(
        str(there), json.dumps(shown(json.loads(content.read_text(encoding="utf-8")), there.parent), ensure_ascii=False)
    )


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
