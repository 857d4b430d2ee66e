"""Sessions in a row, from the command line, at an exchange that loses messages and never money.

Five sessions of forty symbols by default; `TRADENB_TEST_MONTH_SESSIONS=21` (as in `make test-long`) makes it a month of a hundred.
"""

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.integration.conftest import folder_of_all_workers
from tradenb.core import db, web
from tradenb.core.calendar import next_session, sessions, shift
from tradenb.core.clock import Stopwatch
from tradenb.core.settings import load
from tradenb.exchange.faults import Plan
from tradenb.exchange.service import from_settings
from tradenb.market.lake import Lake
from tradenb.market.tables import TABLES
from tradenb.trading.gap import BACKTEST, GAP_CAUSES, PAPER, Parity, parity
from tradenb.trading.orchestrator import planning_time
from tradenb.trading.run import open_run
from tradenb.trading.services import provide_feed

FIRST = date(2020, 1, 3)
DAYS = int(os.environ.pop("TRADENB_TEST_MONTH_SESSIONS", "5"))  # or it would be taken for a setting
SYMBOLS = 40 if DAYS <= 5 else 100
MONTH = sessions(FIRST, shift(FIRST, DAYS - 1))
AFTER = next_session(MONTH[-1])  # one more, on which the market rejects two orders that it had accepted
KEYS = {"TRADENB_EXECUTION__BROKER_KEY_ID": "month", "TRADENB_EXECUTION__BROKER_SECRET": "sesame"}
MILD = Plan.model_validate(
    {
        "seed": 7,
        "rules": [
            {"kind": "gateway_timeout_after", "on": "POST /v2/orders", "probability": 0.05},
            {"kind": "reset_before", "on": "POST /v2/orders", "probability": 0.05},
            {"kind": "reset_after", "on": "POST /v2/orders", "probability": 0.03},
            {"kind": "server_error", "on": "GET /v2/*", "probability": 0.02, "status": 503},
            {"kind": "drop_event", "on": "trade_updates", "probability": 0.05},
            {"kind": "duplicate_event", "on": "trade_updates", "probability": 0.05},
            {"kind": "reorder_events", "on": "trade_updates", "probability": 0.05, "seconds": 0.02},
            {"kind": "disconnect", "on": "trade_updates", "probability": 0.01},
        ],
    }
)
REJECTING = Plan.model_validate({"rules": [{"kind": "reject_later", "on": "match", "times": 2}]})


@dataclass
class Month:
    "What there is when it is over."

    desk: Any
    faults: dict[str, int]  # how often each kind happened
    seconds: float
    beside: Parity  # of the sessions so far


@pytest.fixture(scope="module")
def month(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_desk: Any) -> Month:
    "The sessions, lived through once for all workers."
    with folder_of_all_workers(tmp_path_factory, "month") as folder:
        root, told = folder / "data", folder / "told.json"
        desk = make_desk(root, env=KEYS)
        if SYMBOLS != 40:
            desk.settings |= {
                "demo.symbols": SYMBOLS,
                "portfolio.top_n": SYMBOLS // 5,
                "portfolio.bottom_n": SYMBOLS // 5,
            }
        if not told.exists():
            shutil.rmtree(root, ignore_errors=True)
            if SYMBOLS == 40:  # the day that other tests begin with, too
                shutil.copytree(request.getfixturevalue("first_day"), root)
            told.write_text(json.dumps(live_through(desk, begun=int(SYMBOLS == 40))))
    runs = [open_run(str(root), str(day), f"{day}-alpha158_ls") for day in MONTH]
    beside = parity(runs)
    for run in runs:
        run.engine.dispose()
    return Month(desk, **json.loads(told.read_text()), beside=beside)


def live_through(
    desk: Any,
    begun: int,  # sessions that it has behind it already
) -> dict[str, Any]:  # what happened
    "A backfill of the sessions among mild faults, and a day after them on which the market rejects."
    settings = load({n: str(v) for n, v in desk.settings.items()} | {"core.root": str(desk.root)}, env=KEYS)
    provide_feed(settings, MONTH[0])
    app, watch = from_settings(settings, start=planning_time(MONTH[0]), plan=MILD), Stopwatch()
    with web.serving(app) as url:
        where = {"services.exchange_url": url}
        answer = desk.tradenb("backfill", "--from", str(MONTH[begun]), "--to", str(MONTH[-1]), **where)
        assert answer.code == 0, answer.err
        seconds, done = watch.seconds, Counter(fault.kind.value for fault in app.state.faults.done)
        app.state.faults.set(REJECTING)
        answer = desk.tradenb("paper-run", "--date", str(AFTER), **where)
        assert answer.code == 0, answer.err
    return {"faults": done, "seconds": seconds}


def test_every_session_is_completed_reconciled_and_reported(month: Month) -> None:
    print(f"{DAYS} sessions of {SYMBOLS} symbols: {month.seconds:.0f} s, faults {month.faults}")
    rows = {row["trade_date"]: row for row in month.desk.rows(db.runs) if row["trade_date"] != AFTER}
    assert list(rows) == MONTH
    assert {(row["status"], row["summary"]["matched"]) for row in rows.values()} == {("completed", True)}
    for day in MONTH:
        pages = sorted(
            p.stem for p in Path(month.desk.root / "runs" / str(day) / rows[day]["run_id"]).glob("[1-6]_*.html")
        )
        assert pages == ["1_etl", "2_train", "3_signals", "4_trade", "5_reconcile", "6_report"]
    assert len(month.faults) >= 3, "mild, but not none"
    month.desk.check_books()


def planned_until(month: Month, last: date) -> int:
    runs = {row["run_id"] for row in month.desk.rows(db.runs) if row["trade_date"] <= last}
    return sum(row["qty"] is not None and row["run_id"] in runs for row in month.desk.rows(db.run_signals))


def test_the_runs_and_one_backtest_over_all_sessions_plan_the_same_orders(month: Month) -> None:
    orders = month.beside.orders
    assert orders.height == planned_until(month, MONTH[-1]) > 5 * DAYS
    assert month.beside.differing.is_empty(), month.beside.differing.head(5)


def test_their_equity_is_within_a_hundredth_of_a_percent_at_every_close(month: Month) -> None:
    assert month.beside.equity.height == DAYS
    assert month.beside.furthest_bp < 1, month.beside.equity


def test_every_day_s_gap_is_explained_to_the_last_digit_and_is_none_but_rounding(month: Month) -> None:
    gaps = {(row["trade_date"], row["cause"]): row["amount"] for row in month.desk.rows(db.run_gap)}
    closes = {row["trade_date"]: row["equity"] for row in month.desk.rows(db.account_snapshots, moment="close")}
    deposits = sum(row["amount"] for row in month.desk.rows(db.cash_events, kind="deposit"))
    before = deposits
    for day in MONTH:
        steps = [gaps[day, cause] for cause in (BACKTEST, *GAP_CAUSES)]
        assert sum(steps, Decimal(0)) == gaps[day, PAPER] == closes[day] - before
        assert {cause for cause in GAP_CAUSES if abs(gaps[day, cause]) > 20} == set(), day
        before = closes[day]


def test_the_names_p_and_l_adds_up_to_what_the_account_earned(month: Month) -> None:
    gaps = {row["trade_date"]: row["amount"] for row in month.desk.rows(db.run_gap, cause=PAPER)}
    earned = dict.fromkeys([*MONTH, AFTER], Decimal(0))
    for row in month.desk.rows(db.run_pnl):
        earned[row["trade_date"]] += row["pnl"]
        parts = row["dividends"] - row["borrow"] + row["other"] - row["fees"]
        assert row["realised"] + row["unrealised"] + parts == row["pnl"] == row["holding"] + row["trading"] + parts
    assert {day: amount - gaps[day] for day, amount in earned.items()} == dict.fromkeys(earned, Decimal(0))


def test_what_the_market_rejects_is_missed_and_named(month: Month) -> None:
    (run,) = month.desk.rows(db.runs, trade_date=AFTER)
    assert run["status"] == "partially_completed" and run["summary"]["gap_note"] is None
    lost = {row["symbol"] for row in month.desk.rows(db.orders, run_id=run["run_id"], status="rejected")}
    gaps = {row["cause"]: row for row in month.desk.rows(db.run_gap, run_id=run["run_id"])}
    assert lost and gaps["missed"]["detail"]["shares"].keys() == lost
    assert all(f"{symbol} " in gaps["missed"]["detail"]["said"] for symbol in lost)
    assert "(rejected)" in gaps["missed"]["detail"]["said"]
    assert (
        gaps["signal"]["amount"]
        == gaps["sizing"]["amount"]
        == gaps["corporate"]["amount"]
        == gaps["marks"]["amount"]
        == 0
    )
    assert gaps["missed"]["amount"] != 0
    assert sum((gaps[name]["amount"] for name in (BACKTEST, *GAP_CAUSES)), Decimal(0)) == gaps[PAPER]["amount"]


def test_every_run_of_the_month_is_replayed_to_the_bit_also_after_late_corrections(
    month: Month, make_desk: Any, tmp_path: Path
) -> None:
    desk = make_desk(tmp_path / "data", dict(month.desk.settings))
    shutil.copytree(month.desk.root, desk.root)
    answer = desk.tradenb("replay", "--all")
    assert answer.code == 0, answer.out
    assert answer.out.count("identical") == DAYS + 1
    day, lake = MONTH[-1], Lake(desk.root / "lake")
    known = lake.read("bars", shift(day, -1), shift(day, -1), columns=list(TABLES["bars"].schema))
    late = known.head(2).with_columns(pl.col("close") * 0.9, low=pl.min_horizontal("low", pl.col("close") * 0.9))
    with lake.writing() as draft:
        draft.merge("bars", late)
        draft.record(None, "late corrections", planning_time(AFTER))
    assert desk.tradenb("replay", "--all").code == 0
    answer = desk.tradenb("replay", str(day), "--compare", "--output", str(tmp_path / "today.csv"))
    assert answer.code == 0, answer.out
    for symbol in late["symbol"]:
        assert symbol in answer.out
    listed = pl.read_csv(tmp_path / "today.csv", infer_schema=False)
    assert set(listed["against"]) == {"today"}
    assert {"predictions", "sizes"} <= set(listed["part"])
