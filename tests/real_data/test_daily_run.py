"Whole days on real prices in one process: every order filled, every cent accounted for, and nothing done twice."

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import Engine, func, select

from pipelines.day import DayResult, desk, run_days
from tradenb.core.db import account_snapshots, cash_events, connect, database_url, fills, orders, position_snapshots
from tradenb.core.settings import Settings, load
from tradenb.market.lake import Lake

pytestmark = pytest.mark.long  # three days, twice; days on the demo market are in every run
SETTINGS_FILE = Path(__file__).resolve().parents[2] / "settings.ini"
DAYS = [date(2017, 1, 3), date(2017, 1, 4), date(2017, 1, 5)]
SHORT = {
    "market.source": "files",
    "market.history_years": "2",
    "training.train_sessions": "126",
    "training.valid_sessions": "42",
    "training.test_sessions": "63",
    "training.rounds": "30",
    "training.early_stopping": "10",
    "training.min_data_in_leaf": "50",
    "portfolio.top_n": "8",
    "portfolio.bottom_n": "8",
}


@dataclass
class Desk:
    "Three sessions of forty names, run once and then once more."

    settings: Settings
    engine: Engine
    first: list[DayResult]
    again: list[DayResult]
    kept: tuple[dict[str, int], dict[str, int]]  # rows and table versions after the first pass and after the second
    prices: pl.DataFrame  # symbol, date, close: the vendor's


def rows_and_versions(settings: Settings, engine: Engine) -> dict[str, int]:
    "How much is stored, and which versions the lake is at."
    with engine.connect() as connection:
        tables = (orders, fills, cash_events, account_snapshots, position_snapshots)
        counts = {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in tables}
    return counts | Lake(settings.root / "lake").vintage()


def settings_on(folder: Path, bars: Path) -> Settings:
    return load({"core.root": str(folder), "files.bars": str(bars)} | SHORT, env={}, file=SETTINGS_FILE)


@pytest.fixture(scope="module")
def ran(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("run")
    bars = pl.read_parquet(real_data / "sp500_daily_2013_2018.parquet")
    old = bars.group_by("symbol").agg(pl.col("date").min()).filter(pl.col("date") < date(2015, 1, 1))["symbol"].sort()
    some = bars.filter(pl.col("symbol").is_in(old.gather_every(12).head(40).to_list()))
    some.write_parquet(folder / "bars.parquet")
    settings = settings_on(folder / "data", folder / "bars.parquet")
    engine = connect(database_url(settings))
    passes, kept = [], []
    for _ in range(2):
        with desk(settings):
            passes.append(list(run_days(settings, DAYS[0], DAYS[-1])))
        kept.append(rows_and_versions(settings, engine))
    yield Desk(settings, engine, passes[0], passes[1], (kept[0], kept[1]), some)
    engine.dispose()


def test_three_sessions_are_completed_and_reconciled_to_zero_difference(ran: Desk):
    assert [(day.trade_date, day.status, day.repeated) for day in ran.first] == [(d, "completed", False) for d in DAYS]
    for day in ran.first:
        facts = {stage["stage"]: stage["result"] for stage in day.stages}
        assert facts["reconcile"]["matched"] and facts["reconcile"]["differences"] == 0
        assert facts["etl"]["symbols"] == 40
        assert day.summary["positions"] == 16 and day.summary["orders"] == day.summary["fills"] > 0
        assert all(stage["status"] == "completed" for stage in day.stages) and day.report.is_file()


def test_a_model_of_the_year_before_trades_and_is_kept(ran: Desk):
    trained = [next(s["result"]["trained"] for s in day.stages if s["stage"] == "train") for day in ran.first]
    assert trained == [True, False, False]
    assert {day.summary["model_version"] for day in ran.first} == {"1"}


def test_equity_is_cash_and_shares_at_the_vendor_s_closes(ran: Desk):
    "Cash from deposits and fills alone, shares from fills alone, prices from the file: the stored close, to the cent."
    with ran.engine.connect() as connection:
        traded = connection.execute(select(fills)).all()
        moved = connection.execute(select(cash_events)).all()
        closing = select(account_snapshots).filter_by(moment="close")
        stored = {row.trade_date: row.equity for row in connection.execute(closing)}
    for day in DAYS:
        closes = dict(ran.prices.filter(pl.col("date") == day).select("symbol", "close").iter_rows())
        signed = [(f, f.qty if f.side == "buy" else -f.qty) for f in traded if f.trade_date <= day]
        cash = sum((e.amount for e in moved if e.trade_date <= day), Decimal(0))
        cash -= sum((qty * f.price + f.fee for f, qty in signed), Decimal(0))
        shares = sum((qty * Decimal(str(closes[f.symbol])) for f, qty in signed), Decimal(0))
        assert stored[day] == pytest.approx(cash + shares, abs=Decimal("0.01"))


def test_the_days_earn_what_the_account_gained(ran: Desk):
    with ran.engine.connect() as connection:
        deposit = connection.execute(select(func.sum(cash_events.c.amount)).filter_by(kind="deposit")).scalar_one()
    earned = sum(Decimal(day.summary["pnl"]) for day in ran.first)
    assert Decimal(ran.first[-1].summary["equity"]) - deposit == pytest.approx(earned, abs=Decimal("0.02"))


def test_no_order_was_planned_on_prices_of_its_own_session(ran: Desk):
    "The lake that the last run read ends with the session before."
    assert Lake(ran.settings.root / "lake").read("bars")["date"].max() == DAYS[-2]


def test_the_second_pass_does_nothing(ran: Desk):
    assert all(day.repeated and day.status == "completed" for day in ran.again)
    assert [day.summary for day in ran.again] == [day.summary for day in ran.first]
    assert ran.kept[0] == ran.kept[1]
