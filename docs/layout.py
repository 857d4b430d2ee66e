"Where the site's pages lie, how they are laid out, and how their links hold."

import os
import re
import shutil
from pathlib import Path

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


def write(address: str, text: str) -> None:
    path = SOURCE / address
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def say(text: str) -> None:
    "Progress, as it happens."
    print(text, flush=True)
