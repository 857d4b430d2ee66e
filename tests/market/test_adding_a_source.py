"The guide to adding a source holds a source that works."

import re
import sqlite3
from pathlib import Path

import pytest

from tradenb.core.errors import SourceError

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "adding_a_source.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_pages_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    space: dict[str, object] = {"__name__": "guide"}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), space)
    report = space["report"]
    assert len(BLOCKS) == 4 and report.counts["symbols"] > 10  # type: ignore[attr-defined]


def test_the_pages_source_refuses_what_is_no_such_database(tmp_path: Path):
    space: dict[str, object] = {"__name__": "guide"}
    exec(BLOCKS[0], space)
    source = space["SqliteSource"](tmp_path / "none.db")  # type: ignore[operator]
    with pytest.raises(SourceError, match="unable to open database file; expected the tables bars and events"):
        source.symbols()
    with sqlite3.connect(tmp_path / "none.db") as database:
        database.execute("CREATE TABLE bars (symbol TEXT, day TEXT)")
    database.close()
    with pytest.raises(SourceError, match="the table bars is empty"):
        source.symbols()
