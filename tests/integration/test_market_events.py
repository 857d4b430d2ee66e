"A day sees nothing of its own future, and splits, dividends and delistings of held names leave the books whole."

import fcntl
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tradenb.core import db
from tradenb.core.calendar import sessions
from tradenb.market.lake import Lake

FIRST, SECOND, THIRD = date(2020, 1, 3), date(2020, 1, 6), date(2020, 1, 7)
DAYS = sessions(date(2018, 6, 1), date(2020, 1, 8))
NAMES = ["AAA", "BBB", "CCC", "DDD", "EEE", "FFF", "GGG", "HHH", "III", "JJJ", "KKK", "LLL"]
PRICES = ["open", "high", "low", "close"]
NO_NEWS = pl.DataFrame(
    {"symbol": ["AAA"], "ex_date": [date(2018, 9, 4)], "kind": ["dividend"], "ratio": [1.0], "cash": [0.05]}
)


def market(seed: int = 11) -> pl.DataFrame:
    "Random walks without any event, in cents."
    rng, days = np.random.default_rng(seed), len(DAYS)
    parts = []
    for name in NAMES:
        close = 80 * np.exp(np.cumsum(rng.normal(0, 0.015, days)))
        first = close * np.exp(rng.normal(0, 0.004, days))
        body = np.stack([first, close])
        high, low = body.max(0) * 1.005, body.min(0) * 0.995
        values = dict(zip(PRICES, (a.round(2) for a in (first, high, low, close)), strict=True))
        volume = rng.integers(2_000_000, 9_000_000, days)
        parts.append(pl.DataFrame({"symbol": name, "date": DAYS, **values, "volume": volume}))
    return pl.concat(parts)


def files_settings(folder: Path) -> dict[str, object]:
    return {
        "market.source": "files",
        "files.bars": folder / "bars.csv",
        "files.actions": folder / "actions.csv",
        "training.train_sessions": 150,
        "training.valid_sessions": 30,
        "training.test_sessions": 60,
        "training.rounds": 10,
        "training.threads": 1,
        "training.min_data_in_leaf": 20,
        "portfolio.top_n": 6,
        "portfolio.bottom_n": 6,
        "execution.backoff_s": 0.01,
    }


@pytest.fixture(scope="session")
def files_day(first_day: Path, tmp_path_factory: pytest.TempPathFactory, make_desk) -> Path:
    "A root after one day on files, in which every name is held; never change it."
    folder = first_day.parent.parent / "files_day"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder / "data", ignore_errors=True)
            here = folder / "here"
            here.mkdir(exist_ok=True)
            market().write_csv(here / "bars.csv")
            NO_NEWS.write_csv(here / "actions.csv")
            make_desk(folder / "data", files_settings(here)).day(FIRST)
            (folder / "done").touch()
    return folder


@pytest.fixture
def files_desk(files_day: Path, tmp_path: Path, make_desk):
    "Copies of that root: `files_desk(name)`."

    def make(name: str):
        shutil.copytree(files_day / "data", tmp_path / name / "data")
        shutil.copytree(files_day / "here", tmp_path / name / "here")
        return make_desk(tmp_path / name / "data", files_settings(tmp_path / name / "here"))

    return make


def rewrite(desk, bars: pl.DataFrame, actions: pl.DataFrame = NO_NEWS) -> None:
    "Other files for a desk."
    bars.write_csv(desk.root.parent / "here" / "bars.csv")
    actions.write_csv(desk.root.parent / "here" / "actions.csv")


def actions(*rows: tuple) -> pl.DataFrame:
    return pl.concat([NO_NEWS, pl.DataFrame(list(rows), schema=NO_NEWS.schema, orient="row")])


def held(desk, day: date) -> dict[str, Decimal]:
    return {row["symbol"]: row["qty"] for row in desk.rows(db.position_snapshots, trade_date=day)}


def decisions(desk) -> list[tuple]:
    names = ("run_id", "symbol", "leg", "predicted_return", "rank", "target_weight", "price", "qty", "client_order_id")
    return sorted(tuple(map(str, (row[name] for name in names))) for row in desk.rows(db.run_signals))


def rescaled(bars: pl.DataFrame, symbol: str, since: date, ratio: float) -> pl.DataFrame:
    "Prices of one name from a day on, per new share."
    hit = (pl.col("symbol") == symbol) & (pl.col("date") >= since)
    prices = [pl.when(hit).then((pl.col(p) / ratio).round(4)).otherwise(p).alias(p) for p in PRICES]
    return bars.with_columns(prices)


@pytest.mark.long
def test_no_decision_depends_on_the_session_it_is_for_or_on_a_later_one(files_desk):
    usual, other = files_desk("usual"), files_desk("other")
    future = pl.col("date") >= SECOND
    factor = pl.when(future).then(1.17).otherwise(1.0)
    rewrite(other, market().with_columns((pl.col(p) * factor).round(4) for p in PRICES))
    for desk in (usual, other):
        desk.day(SECOND)
        lake = Lake(desk.root / "lake")
        assert lake.read("bars")["date"].max() == FIRST
        assert lake.read("raw_bars")["date"].max() == FIRST
        desk.check_books()
    assert decisions(usual) == decisions(other)
    first, second = (sorted(row["price"] for row in desk.rows(db.fills, trade_date=SECOND)) for desk in (usual, other))
    assert len(first) == len(second) > 0
    assert first != second


def test_splits_and_dividends_on_both_sides_leave_nothing_unexplained(files_desk):
    desk = files_desk("events")
    before = held(desk, FIRST)
    longs, shorts = ([s for s, qty in sorted(before.items()) if (qty > 0) == side] for side in (True, False))
    forward, reverse, cut, paid, owed = longs[0], longs[1], shorts[0], longs[2], shorts[1]
    bars = rescaled(rescaled(rescaled(market(), forward, SECOND, 2), reverse, SECOND, 0.25), cut, SECOND, 3)
    rows = [
        (forward, SECOND, "split", 2.0, 0.0),
        (reverse, SECOND, "split", 0.25, 0.0),
        (cut, SECOND, "split", 3.0, 0.0),
        (paid, SECOND, "dividend", 1.0, 0.75),
        (owed, SECOND, "special_dividend", 1.0, 1.5),
    ]
    rewrite(desk, bars, actions(*rows))
    desk.day(SECOND)
    desk.check_books()
    sized = {row["symbol"]: row for row in desk.rows(db.run_signals, run_id=f"{SECOND}-alpha158_ls")}
    last = dict(market().filter(pl.col("date") == FIRST).select("symbol", "close").iter_rows())
    for symbol, ratio in ((forward, 2), (reverse, 0.25), (cut, 3)):
        assert float(sized[symbol]["price"]) == pytest.approx(last[symbol] / ratio)
        assert float(sized[symbol]["current_qty"]) == pytest.approx(float(before[symbol]) * ratio, abs=1)
    cash = {row["symbol"]: row["amount"] for row in desk.rows(db.cash_events) if "dividend" in row["kind"]}
    assert cash == {paid: before[paid] * Decimal("0.75"), owed: before[owed] * Decimal("1.5")}
    require_explained(desk, SECOND)
    desk.day(THIRD)
    desk.check_books()
    require_explained(desk, THIRD)


@pytest.mark.long
def test_a_held_name_that_is_delisted_is_paid_out_and_gets_no_order(files_desk):
    desk = files_desk("delisting")
    before = held(desk, FIRST)
    long = next(s for s, qty in sorted(before.items()) if qty > 0)
    short = next(s for s, qty in sorted(before.items()) if qty < 0)
    gone = pl.col("symbol").is_in([long, short]) & (pl.col("date") >= SECOND)
    rewrite(
        desk,
        market().filter(~gone),
        actions((long, SECOND, "delisting", 1.0, 70.0), (short, SECOND, "delisting", 1.0, 90.0)),
    )
    few = {"portfolio.top_n": 4, "portfolio.bottom_n": 4}
    for day in (SECOND, THIRD):
        desk.day(day, **few)
        desk.check_books()
        require_explained(desk, day)
        assert not {long, short} & {row["symbol"] for row in desk.rows(db.orders, trade_date=day)}
    assert not {long, short} & held(desk, SECOND).keys()


def require_explained(desk, day: date) -> None:
    "The change in equity of the day is what the names earned, to the cent."
    from tradenb.trading.attribution import measure
    from tradenb.trading.run import open_run

    run = open_run(str(desk.root), str(day), f"{day}-alpha158_ls")
    gap = measure(run).unexplained
    run.engine.dispose()
    assert abs(gap) < Decimal("0.01"), gap


@pytest.mark.long
def test_two_days_on_postgresql(fresh, postgres_url):
    fresh.env["TRADENB_CORE__DATABASE_URL"] = postgres_url
    for _ in range(2):
        answer = fresh.day()
        assert postgres_url not in answer.out + answer.err
        fresh.check_books()
    assert not (fresh.root / "state" / "tradenb.db").exists()
    assert [row["status"] for row in fresh.rows(db.runs)] == ["completed"] * 2
    kept = [
        p for p in (fresh.root / "runs").rglob("*") if p.is_file() and postgres_url in p.read_text(errors="replace")
    ]
    assert kept == []
    assert "nothing was changed" in fresh.day(FIRST).out
