"""Make README.md from nbs/index.ipynb: run it, keep what a reader wants.

usage: python .ci/readme.py [--check]     --check: write nothing, fail when README.md is not what would be written
A cell that begins with `#| hide` leaves no trace; one with `#| echo: false` leaves its output alone.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from execnb.shell import CaptureShell
from fastcore.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

PROJECT = Path(__file__).resolve().parents[1]
SOURCE, README = PROJECT / "nbs" / "index.ipynb", PROJECT / "README.md"


def executed(path: Path) -> NotebookNode:
    "The notebook with its outputs; an error in a cell is raised."
    notebook = read_nb(path)
    os.chdir(path.parent)
    CaptureShell(path).run_all(notebook, exc_stop=True)
    return nbformat.reads(nb2str(notebook), as_version=4)


def shown(cell: NotebookNode) -> bool:
    return not re.match(r"#\|\s*hide\b", cell.source) and bool(cell.source.strip())


def dressed(cell: NotebookNode) -> NotebookNode:
    "Without directives, and without code where only the output is wanted."
    if cell.cell_type == "code":
        only_output = bool(re.match(r"#\|\s*echo:\s*false", cell.source))
        cell.metadata = NotebookNode(transient={"remove_source": only_output})
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    return cell


def markdown(path: Path = SOURCE) -> str:
    "The README: links that lead out of nbs/ lead from the project's root."
    notebook = executed(path)
    notebook.cells = [dressed(cell) for cell in notebook.cells if shown(cell)]
    notebook.metadata["language_info"] = {"name": "python"}
    exporter = MarkdownExporter()
    exporter.display_data_priority = ["text/markdown", "text/plain"]
    text, _ = exporter.from_notebook_node(notebook)
    text = re.sub(r"(\]\(|src=\"|srcset=\")\.\./", r"\1", text)
    lines = [line.rstrip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


if __name__ == "__main__":
    made = markdown()
    if "--check" not in sys.argv:
        README.write_text(made)
    elif README.read_text() != made:
        sys.exit("README.md is not what nbs/index.ipynb makes: run `make readme`")
