"What is read of a run's P&L is what was kept of it, and nothing that was voided counts."

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import Engine, delete, insert, update

from tradenb.core import db, web
from tradenb.core.errors import DataError
from tradenb.core.settings import load
from tradenb.execution.entries import CashEvent, Fill
from tradenb.execution.ledger import cash_row, fill_row
from tradenb.execution.orders import Side
from tradenb.market.tables import TABLES
from tradenb.portfolio.market import Market
from tradenb.trading.attribution import (
    BARS,
    LATE,
    SESSION,
    benchmark_return,
    by_cause,
    by_sector,
    causes_history,
    closes_of,
    deposited,
    entries_since,
    history,
    keep_pnl,
    measure,
    pnl_of,
    session_bars,
)
from tradenb.trading.pnl import SymbolDay
from tradenb.trading.run import Run

MON, TUE, WED = date(2024, 1, 8), date(2024, 1, 9), date(2024, 1, 10)
ZERO = Decimal(0)


def at(day: date, hour: int = 21) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def add_run(engine: Engine, day: date, equity: str, summary: dict[str, Any] | None) -> str:
    run_id = f"{day}-s"
    run = dict(
        run_id=run_id, trade_date=day, strategy="s", status="completed", settings_hash="", code_version="", seed=7
    )
    zeros = dict.fromkeys(("cash", "long_value", "short_value", "realised_pnl", "unrealised_pnl", "fees", "dividends"), ZERO)  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(db.runs), run | dict(trace_id="", capital=ZERO, started_at=at(day), summary=summary))
        close = dict(run_id=run_id, moment="close", trade_date=day, equity=Decimal(equity))
        connection.execute(insert(db.account_snapshots), zeros | close)
    return run_id


def test_what_was_voided_or_lies_outside_the_period_is_not_read(engine: Engine) -> None:
    fills = [Fill(f"f{d}", "A", Side("buy"), Decimal(1), Decimal(10), at(d)) for d in (MON, TUE, WED)]
    guess = Fill("inferred-1", "A", Side("buy"), Decimal(1), Decimal(11), at(TUE), origin="inferred")
    paid = [CashEvent(f"c{d}", "deposit", Decimal(5), at(d)) for d in (MON, TUE)]
    with engine.begin() as connection:
        connection.execute(insert(db.fills), [fill_row(fill) for fill in (*fills, guess)])
        connection.execute(insert(db.cash_events), [cash_row(event) for event in paid])
        connection.execute(insert(db.fill_voids), dict(execution_id=guess.id, reason="the real one came", at=at(TUE)))
    assert {entry.id for entry in entries_since(engine, MON, TUE)} == {f"f{TUE}", f"c{TUE}"}
    assert {entry.id for entry in entries_since(engine, None, TUE)} == {f"f{MON}", f"f{TUE}", f"c{MON}", f"c{TUE}"}
    assert deposited(entries_since(engine, None, WED)) == 10


def test_what_is_kept_is_read_again_to_the_digit_and_only_once(engine: Engine) -> None:
    days = [
        SymbolDay("A", ZERO, Decimal("100.000000001"), bought=Decimal(90), fees=Decimal("0.25"), sector="Energy"),
        SymbolDay("B", Decimal(50), Decimal(45), realised=Decimal(-2), dividends=Decimal(1), trading=Decimal("-0.5")),
    ]
    for _ in range(2):
        keep_pnl(engine, "r", MON, days)
    frame = pnl_of(engine, "r")
    assert frame["symbol"].to_list() == ["A", "B"]
    assert frame["pnl"].to_list() == [float(day.pnl) for day in days]
    assert by_cause(frame) == pytest.approx({"holding": 5.5, "trading": -0.5, "dividends": 1.0, "borrow": 0.0, "other": 0.0, "fees": -0.25})  # fmt: skip
    sectors = by_sector(frame)
    assert sectors.select("sector", "names").rows() == [("Energy", 1), ("unknown", 1)]
    assert sectors["pnl"].sum() == pytest.approx(sum(by_cause(frame).values()))
    keep_pnl(engine, "r", MON, days[:1])
    assert pnl_of(engine, "r").height == 1


def test_history_compounds_what_each_run_told_and_skips_runs_without_a_verdict(engine: Engine) -> None:
    told = lambda pnl, own, other: {"pnl": pnl, "daily_return": own, "benchmark_return": other}
    add_run(engine, MON, "100", told("1.00", 0.01, None))
    add_run(engine, TUE, "101", told("-2.00", -0.02, 0.03))
    add_run(engine, WED, "99", None)
    past = history(engine, "s")
    assert past["trade_date"].to_list() == [MON, TUE]
    assert past["cumulative"].to_list() == pytest.approx([0.01, 1.01 * 0.98 - 1])
    assert past["benchmark"].to_list() == pytest.approx([0.0, 0.03])
    assert past["active"].to_list() == [None, pytest.approx(-0.05)]
    assert history(engine, "s", MON).height == 1 and history(engine, "other").is_empty()


def test_causes_are_summed_by_run_with_costs_below_zero(engine: Engine) -> None:
    for day in (MON, TUE):
        keep_pnl(engine, add_run(engine, day, "1", {}), day, [SymbolDay(s, fees=Decimal(1), dividends=Decimal(3)) for s in "AB"])  # fmt: skip
    assert causes_history(engine, "s").select("trade_date", "dividends", "fees", "pnl").rows() == [(MON, 6.0, -2.0, 4.0), (TUE, 6.0, -2.0, 4.0)]  # fmt: skip
    assert causes_history(engine, "s", MON).height == 1


# --- the session's bars ----------------------------------------------------------------------------------------


@pytest.fixture
def gateway() -> Iterator[Any]:
    "A gateway's address that answers with `bars`, or not at all while they are None."
    app = FastAPI()
    app.state.bars, app.state.asked = [], 0

    @app.get("/api/v1/bars")
    def bars() -> Any:
        app.state.asked += 1
        if app.state.bars is None:
            return JSONResponse({"code": "BrokerUnavailable", "detail": "the broker is away"}, 503)
        return {"bars": app.state.bars}

    with web.serving(app) as url:
        app.state.url = url
        yield app.state


@pytest.fixture
def run(tmp_path: Path, gateway: Any) -> Iterator[Run]:
    engine = db.migrate(db.connect(f"sqlite:///{tmp_path / 'state.db'}"))
    add_run(engine, MON, "100", None)
    made = Run(load({"core.root": str(tmp_path), "services.execution_url": gateway.url}, env={}), f"{MON}-s", engine)
    made.folder.mkdir(parents=True)
    yield made
    engine.dispose()


def test_bars_are_asked_for_once_and_kept_with_the_run(run: Run, gateway: Any) -> None:
    gateway.bars = [{"symbol": "A", "open": "9.5", "close": "10.25", "volume": "1200"}]
    with run.engine.begin() as connection:
        fill = Fill("f", "A", Side("buy"), Decimal(1), Decimal(10), at(MON))
        connection.execute(insert(db.fills), fill_row(fill))
    assert session_bars(run).rows() == [("A", 9.5, 10.25, 1200)]
    assert closes_of(run) == {"A": 10.25}
    assert gateway.asked == 1 and (run.folder / SESSION).is_file()


@pytest.mark.parametrize("bars", [None, []], ids=["no broker", "no bars yet"])
def test_without_bars_nothing_is_kept_and_they_are_asked_for_again(run: Run, gateway: Any, bars: Any) -> None:
    gateway.bars = bars
    keep_pnl(run.engine, run.run_id, MON, [])
    with run.engine.begin() as connection:
        connection.execute(insert(db.fills), fill_row(Fill("f", "A", Side("buy"), Decimal(1), Decimal(10), at(MON))))
    assert session_bars(run).is_empty() and session_bars(run).schema == BARS
    assert closes_of(run) == {} and not (run.folder / SESSION).exists()
    assert gateway.asked == 3


def test_where_the_file_is_lost_the_lake_has_the_session_by_then(run: Run) -> None:
    bar = {name: [value] for name, value in dict(symbol="B", date=MON, open=1.0, high=2.0, low=1.0, close=2.0, volume=3).items()}  # fmt: skip
    with run.lake.writing(5) as draft:
        schema = TABLES["bars"].schema
        known = pl.DataFrame(bar).with_columns(pl.lit(None).alias(n) for n in schema if n not in bar)
        draft.merge("bars", known.select(list(schema)).cast(dict(schema)))
        draft.record(MON, "test", at(TUE))
    assert closes_of(run) == {"B": 2.0}


def test_a_day_whose_close_was_not_kept_is_not_measured_as_a_loss_of_everything(run: Run) -> None:
    with run.engine.begin() as connection:
        connection.execute(delete(db.account_snapshots))
    with pytest.raises(DataError, match="kept no account at its close"):
        measure(run)


def test_a_fee_that_the_broker_lists_a_day_late_is_explained_as_such(run: Run) -> None:
    vintage = {"bars": 0}
    paid = [CashEvent("c", "deposit", Decimal(100), at(MON, 14)), CashEvent("f", "fee", Decimal("-0.35"), at(MON, 20))]
    with run.engine.begin() as connection:
        connection.execute(update(db.account_snapshots).values(cash=Decimal(100)))
        connection.execute(update(db.runs).values(vintage=vintage, summary={"pnl": "0"}))
        connection.execute(insert(db.cash_events), [cash_row(event) for event in paid])
    add_run(run.engine, TUE, "99.65", None)
    with run.lake.writing(5) as draft:
        draft.record(MON, "test", at(TUE))
    measured = measure(Run(run.settings, f"{TUE}-s", run.engine))
    assert [(day.symbol, day.other, day.pnl) for day in measured.days] == [(LATE, Decimal("-0.35"), Decimal("-0.35"))]
    assert measured.account.pnl == Decimal("-0.35") and measured.unexplained == 0


# --- the benchmark ---------------------------------------------------------------------------------------------


def test_a_name_without_a_bar_has_not_moved_and_dividends_are_earned() -> None:
    nan = float("nan")
    close = np.array([[100.0, 110.0, 99.0], [50.0, nan, nan]])
    days = np.array(["2024-01-08", "2024-01-09", "2024-01-10"], dtype="datetime64[D]")
    cash = np.array([[0.0, 0.0, 11.0], [0.0, 0.0, 0.0]])
    market = Market(("A", "B"), days, close, close, np.full_like(close, 1e6), np.ones_like(close), cash, np.full_like(close, nan))  # fmt: skip
    assert benchmark_return(market, ["A", "B"], MON) == pytest.approx(1.05 * 1.0 - 1)
    assert benchmark_return(market, ["A"], TUE) == pytest.approx(0.0)
    assert benchmark_return(market, ["A"], None) is None
