"One place opens the source that the settings name; every source keeps the same promises; the exchange gets its feed."

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest

from tradenb.core.calendar import next_session
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import ConfigError, DataError, InputError
from tradenb.core.settings import Settings
from tradenb.exchange.feed import Feed
from tradenb.market.catalog import broken_promises, open_source, write_feed
from tradenb.market.files import FilesSource
from tradenb.market.sources import DemoSource

SMALL = DemoSource(count=30, start=date(2020, 1, 2), years=1)
HEADER = "symbol,date,open,high,low,close,volume\n"
ROWS = "AAPL,2014-02-03,71.8,72.53,71.33,71.65,100366000\nAAPL,2014-02-04,72.26,72.78,71.82,72.68,94170000\nMSFT,2014-02-03,37.74,37.99,36.43,36.48,64063100\n"


def test_settings_choose_the_source_and_an_unknown_symbol_is_refused(
    make_settings: Callable[..., Settings], tmp_path: Path
):
    assert open_source(make_settings(**{"demo.symbols": 30})).name == "demo"
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + ROWS)
    chosen = {"market.source": "files", "files.bars": str(file)}
    assert open_source(make_settings(**chosen, **{"market.symbols": "MSFT"})).symbols() == ["AAPL", "MSFT"]
    with pytest.raises(InputError, match="unknown symbol MFST: the source files has 2 symbols; did you mean MSFT"):
        open_source(make_settings(**chosen, **{"market.symbols": "MFST"}))


def test_every_setting_of_files_reaches_the_source(make_settings: Callable[..., Settings], tmp_path: Path):
    clock = SimulatedClock(new_york(date(2014, 6, 10), 9))
    text = "Name;Day;O;H;L;C;V;D;S\nA;05.06.2014;7180;7253;7133;7165;9;0;1\nA;06.06.2014;7180;7253;7133;7165;9;305;2\nÄ;10.06.2014;1;1;1;1;1;0;0\n"
    (tmp_path / "bars.txt").write_bytes(text.encode("latin-1"))
    (tmp_path / "actions.csv").write_text("symbol;ex_date;kind;ratio;cash\nA;09.06.2014;symbol_change;1;0\n")
    source = open_source(
        make_settings(
            **{
                "market.source": "files", "files.bars": str(tmp_path / "bars.txt"), "files.actions": str(tmp_path / "actions.csv"),
                "files.delimiter": ";", "files.encoding": "latin-1", "files.date_format": "%d.%m.%Y", "files.price_scale": "100",
                "files.prices": "split_adjusted",
                "files.columns": "symbol=Name, date=Day, open=O, high=H, low=L, close=C, volume=V, dividend=D, split_ratio=S",
            }
        ),
        clock,
    )  # fmt: skip
    assert (source.first_date, source.last_date) == (date(2014, 6, 5), date(2014, 6, 6))
    assert source.bars(source.first_date, source.last_date)["close"].to_list() == [71.65, 71.65]
    told = source.actions(date(2014, 1, 1), date(2014, 12, 31))
    assert told.select("kind", "cash").rows() == [("dividend", 3.05), ("symbol_change", 0.0)]
    (tmp_path / "yahoo").mkdir()
    (tmp_path / "yahoo" / "BRK-B.csv").write_text("Date,Open,High,Low,Close,Adj Close,Volume\n2014-06-05,1,1,1,1,1,1\n")
    yahoo = {"market.source": "files", "files.bars": str(tmp_path / "yahoo"), "files.layout": "yahoo"}
    with pytest.raises(ConfigError, match=r"files\.prices=raw"):
        open_source(make_settings(**yahoo))
    assert open_source(make_settings(**yahoo, **{"files.prices": "split_adjusted"})).symbols() == ["BRK.B"]


def files(folder: Path) -> FilesSource:
    last = date(2020, 12, 31)
    SMALL.bars(SMALL.first_date, last).drop("source").write_parquet(folder / "bars.parquet")
    SMALL.actions(SMALL.first_date, last).write_parquet(folder / "actions.parquet")
    return FilesSource(str(folder / "bars.parquet"), str(folder / "actions.parquet"), latest=next_session(last))


def test_the_demo_market_and_files_keep_every_promise(tmp_path: Path):
    assert broken_promises(SMALL, date(2020, 3, 2), date(2020, 12, 31)) == []
    assert broken_promises(files(tmp_path), date(2020, 3, 2), date(2020, 12, 31)) == []


@dataclass(frozen=True)
class Careless(DemoSource):
    "Breaks one promise."

    fault: str = ""

    def bars(self, start, end, symbols=None):
        rows = super().bars(start, end, symbols)
        return {
            "unsorted": lambda: rows.reverse(),
            "typed": lambda: rows.with_columns(pl.col("volume").cast(pl.Float64)),
            "named": lambda: rows.with_columns(source=pl.lit("other")),
            "days": lambda: rows.with_columns(pl.col("close") + (0.0 if start == end else 1.0)),
        }.get(self.fault, lambda: rows)()

    def truth(self, start, end):
        rows = super().truth(start, end)
        return rows.with_columns(high=pl.col("low")) if self.fault == "truth" else rows

    def actions(self, start, end, symbols=None):
        rows = super().actions(date(2018, 1, 2) if self.fault == "ex_date" else start, end, symbols)
        return rows.drop("target") if self.fault == "target" else rows

    def universe(self, as_of=None):
        rows = super().universe(self.last_date if self.fault == "future" else as_of)
        if self.fault == "stranger":
            return rows.with_columns(symbol=pl.lit("NOBODY"))
        return rows.drop("sector") if self.fault == "sector" else rows

    def assets(self, as_of):
        return super().assets(as_of).drop("name") if self.fault == "assets" else super().assets(as_of)

    def newest(self, symbols):
        return {"A": datetime(2020, 6, 1)} if self.fault == "newest" else {}  # noqa: DTZ001

    def symbols(self):
        return 1 / 0 if self.fault == "raises" else SMALL.symbols()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("", ""),
        ("unsorted", "bars: not sorted"),
        ("typed", "bars: columns are"),
        ("named", "bars: the column source is not demo"),
        ("days", "is not what it is among all days and symbols"),
        ("truth", "truth: holds bars that cannot have happened"),
        ("ex_date", "actions: an ex_date outside the days asked for"),
        ("target", "actions: target is None"),
        ("future", "universe: as of 2020-03-02 it knows of what came later"),
        ("stranger", "universe: NOBODY is a member and no symbol of the source"),
        ("sector", "universe: columns are"),
        ("assets", "assets: name is missing"),
        ("newest", "newest: a time without a time zone"),
        ("raises", "a question ended in ZeroDivisionError"),
    ],
)
def test_a_broken_promise_is_said(fault: str, says: str):
    found = broken_promises(
        Careless(count=30, start=date(2020, 1, 2), years=1, fault=fault), date(2020, 3, 2), date(2020, 6, 30)
    )
    assert any(says in text for text in found) if says else found == []


def test_what_a_source_refuses_is_passed_on():
    class Refusing(DemoSource):
        def bars(self, start, end, symbols=None):
            raise DataError("no bars today")

    with pytest.raises(DataError, match="no bars today"):
        broken_promises(Refusing(), date(2020, 3, 2), date(2020, 6, 30))


def test_the_exchange_opens_the_feed_that_is_written_and_rewriting_leaves_no_rest(tmp_path: Path):
    through = date(2020, 9, 30)
    for _ in range(2):
        write_feed(SMALL, tmp_path, through)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["actions.parquet", "assets.parquet", "bars.parquet"]
    feed = Feed(tmp_path)
    assert feed.bars["date"].max() == through and set(feed.bars["symbol"]) == set(feed.assets)
    assert feed.bars.filter(date=through)["symbol"].to_list() == SMALL.truth(through, through)["symbol"].to_list()


def test_the_demo_market_loads_no_brokers_client():
    code = "import sys; from tradenb.core.settings import load; from tradenb.market.catalog import open_source; open_source(load(env={})); assert not [m for m in sys.modules if m.split('.')[0] == 'alpaca']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
