"The rules of the house, read from the code itself."

import ast
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tradenb.core.settings import SECRETS, Settings

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "tradenb"
FLOOR = {
    "core": 0,
    "market": 1,
    "features": 2,
    "models": 3,
    "portfolio": 4,
    "signals": 5,
    "execution": 5,
    "exchange": 5,
    "trading": 6,
    "cli": 7,
}
SEES_ONLY_CORE = {"exchange"}
CLOCK_READERS = re.compile(
    r"\b(datetime\.now|datetime\.utcnow|date\.today|time\.time|time\.monotonic|time\.sleep|time\.perf_counter)\("
)
GLOBAL_RANDOM = re.compile(
    r"\b(np\.random\.(?!default_rng|Generator|SeedSequence|PCG64|Philox)\w+|random\.(random|choice|randint|shuffle|seed))\("
)

modules = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
notebooks = sorted(p for p in (PROJECT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    "Absolute names of the tradenb modules that `path` imports, wherever in the file."
    package = ("tradenb", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield from (".".join((*base, *(node.module or alias.name).split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_go_down_and_never_across() -> None:
    wrong = []
    for path in modules:
        here = room(path)
        if here == "__init__":
            continue
        for name in imported(path):
            there = [*name.split("."), ""][1] if name.startswith("tradenb") else ""
            if name.startswith("pipelines") and here != "cli":
                wrong.append(f"{path.relative_to(PROJECT)} imports {name}")
            if not there or there == here or there not in FLOOR:
                continue
            if FLOOR[there] >= FLOOR[here] or (here in SEES_ONLY_CORE and there != "core"):
                wrong.append(f"{path.relative_to(PROJECT)} (floor {FLOOR[here]}) imports {name} (floor {FLOOR[there]})")
    assert wrong == []


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in modules} - {"__init__"} <= set(FLOOR)


def test_only_the_clock_reads_the_time() -> None:
    code = [*modules, *(PROJECT / "pipelines").glob("*.py")]
    readers = [
        str(p.relative_to(PROJECT))
        for p in code
        if p != PACKAGE / "core" / "clock.py" and CLOCK_READERS.search(p.read_text())
    ]
    assert readers == []


def test_randomness_is_an_argument() -> None:
    assert [str(p.relative_to(PROJECT)) for p in modules if GLOBAL_RANDOM.search(p.read_text())] == []


def test_the_package_is_what_the_notebooks_export(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("nbs", "pyproject.toml", "README.md", "settings.ini"):
        subprocess.run(["cp", "-r", PROJECT / name, copy / name], check=True)
    (copy / "tradenb").mkdir()
    (copy / "tradenb" / "__init__.py").write_text((PACKAGE / "__init__.py").read_text())
    subprocess.run([Path(sys.executable).with_name("nbdev-export")], cwd=copy, check=True, capture_output=True)
    ours = {p.relative_to(PACKAGE): p.read_text() for p in PACKAGE.rglob("*.py")}
    fresh = {p.relative_to(copy / "tradenb"): p.read_text() for p in (copy / "tradenb").rglob("*.py")}
    assert sorted(ours) == sorted(fresh)
    assert [str(name) for name in ours if ours[name] != fresh[name]] == []


@pytest.mark.parametrize("path", notebooks, ids=lambda p: str(p.relative_to(PROJECT)))
def test_a_notebook_is_clean_and_begins_with_a_title_and_a_subtitle(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert first.startswith("# ")
    assert re.search(r"^> \S", first, re.MULTILINE)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_settings_ini_has_a_commented_default_for_every_key() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(PROJECT / "settings.ini")
    for section, field in Settings.model_fields.items():
        assert set(parser[section]) == {
            key for key in field.annotation.model_fields if f"{section}.{key}" not in SECRETS
        }


def test_the_lock_names_no_registry() -> None:
    assert not re.search(r"https?://|--index-url|--find-links", (PROJECT / "requirements.lock").read_text())
