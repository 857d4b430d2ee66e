"The exploring notebook runs on a lake of anybody's, with little in it as with much."

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.settings import load
from tradenb.market.catalog import open_source
from tradenb.market.etl import run_etl
from tradenb.market.lake import open_lake
from tradenb.market.sources import DemoSource

PROJECT = Path(__file__).resolve().parents[1]
BOOK = PROJECT / "nbs" / "explore" / "01_market_data.ipynb"
START, END = date(2020, 1, 2), date(2020, 12, 31)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    "A data root with clean bars and a few dividends from files: no split, no sector, no correction, nothing in quarantine."
    demo = DemoSource(count=8, start=START, years=1, bad_rows=0)
    demo.truth(START, END).write_parquet(tmp_path / "bars.parquet")
    demo.actions(START, END).filter(pl.col("kind") == "dividend").write_parquet(tmp_path / "actions.parquet")
    files = {"files.bars": str(tmp_path / "bars.parquet"), "files.actions": str(tmp_path / "actions.parquet")}
    settings = load({"core.root": str(tmp_path / "data"), "market.source": "files"} | files, env={})
    run_etl(settings, open_source(settings), open_lake(settings), END, SimulatedClock(new_york(date(2021, 1, 4), 9)))
    return settings.root


# A shell of IPython takes matplotlib and the display hook of its process over, so it gets a process of its own
RUN = """
import json, sys
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb

shell = CaptureShell(sys.argv[1])
shell.run_all(read_nb(sys.argv[1]), exc_stop=True)
print(json.dumps({"root": str(shell.user_ns["settings"].root), "name": shell.user_ns["name"]}))
"""


def run_on(root: Path) -> dict[str, str]:
    "Run the whole notebook on a data root: the root of the lake that it opened, and the company that it chose."
    environment = os.environ | {"TRADENB_CORE__ROOT": str(root), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", RUN, str(BOOK)]
    done = subprocess.run(command, env=environment, cwd=BOOK.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_opens_the_users_lake_even_where_little_has_happened(plain: Path) -> None:
    before = sorted(file.relative_to(plain) for file in plain.rglob("*"))
    assert run_on(plain)["root"] == str(plain)
    assert sorted(file.relative_to(plain) for file in plain.rglob("*")) == before


@pytest.mark.long
def test_where_there_is_no_lake_it_builds_one_elsewhere(tmp_path: Path) -> None:
    opened = run_on(tmp_path / "nothing")
    assert opened["root"] != str(tmp_path / "nothing")
    assert opened["name"] == "TUCO"
    assert not (tmp_path / "nothing").exists()
