"What the pages of a run find, and how serious it is: every rule with every case, as values in and sentences out."

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from pipelines.flows import LINKS, render_stopped, report_path
from pipelines.render import external_requests
from tests.logged import logging_to
from tradenb.core.clock import SystemClock
from tradenb.core.db import orders as order_table
from tradenb.core.logs import bind, get_logger
from tradenb.core.report import NEAR, Use
from tradenb.core.settings import Settings
from tradenb.models.inference import newey_west
from tradenb.signals.monitor import Drift, Realised, Watched
from tradenb.trading import records
from tradenb.trading.pages import common, exposure, reconcile, report, signals, trade, train
from tradenb.trading.run import start_run
from tradenb.trading.stages import Reconciled, Signals, Traded

DAY = date(2024, 1, 3)


def verdicts(found: list[common.Finding]) -> list[str]:
    return [verdict for verdict, _ in found]


def said(found: list[common.Finding]) -> str:
    return "\n".join(text for _, text in found)


# ---- the words that all pages share

findings = st.lists(st.tuples(st.sampled_from(["green", "amber", "red"]), st.text(max_size=5)))


@given(findings)
def test_the_most_serious_comes_first_and_nothing_is_lost(found: list[Any]) -> None:
    ordered = common.by_weight(found)
    assert sorted(ordered) == sorted(found)
    assert [v for v, _ in ordered] == sorted(verdicts(found), key=["red", "amber", "green"].index)
    assert common.worst(verdicts(found)) == (ordered[0][0] if ordered else "green")


@given(findings)
def test_what_a_page_found_is_read_back_as_it_was(found: list[Any]) -> None:
    kept = {"orders": 3, common.FOUND: [list(finding) for finding in found]}
    assert common.findings_of(kept) == found


# ---- orders

NAMES = ("BED", "ZYH", "KUTO")


def traded(*statuses: str, status: str = "partially_completed", reasons: tuple[str, ...] = ()) -> trade.TradePage:
    "Three orders of a plan; `denied` and `failed` ones never left."
    why = [*reasons, *["open long, rank 1"] * 3]
    plan = [
        dict(symbol=name, leg=0, client_order_id=name, status=ended, reason=why[at], side="buy", qty="10")
        for at, (name, ended) in enumerate(zip(NAMES, statuses, strict=False))
    ]
    sent = [row for row in plan if row["status"] not in ("denied", "failed")]
    rows = [
        dict(client_order_id=row["symbol"], symbol=row["symbol"], side="buy", qty=10.0, status=row["status"], price=20.0, reason="")
        | dict(filled_qty=10.0 if row["status"] == "filled" else 0.0, filled_avg_price=20.5 if row["status"] == "filled" else None)
        for row in sent
    ]  # fmt: skip
    mappings = pl.DataFrame(
        plan, schema=dict.fromkeys(("symbol", "leg", "client_order_id", "status", "reason", "side", "qty"))
    )
    frame = pl.DataFrame(rows, schema_overrides={"filled_avg_price": pl.Float64}) if rows else EMPTY
    events = pl.DataFrame(schema={"client_order_id": pl.String, "at": pl.Datetime("us", "UTC"), "kind": pl.String, "status_to": pl.String})  # fmt: skip
    return trade.TradePage(
        Traded({}, mappings, frame, events, status), trade.with_costs(frame, dict.fromkeys(NAMES, 20.5)), 1000.0
    )


FLOATS, TEXTS = (
    ("qty", "filled_qty", "price", "filled_avg_price"),
    ("client_order_id", "symbol", "side", "status", "reason"),
)
EMPTY = pl.DataFrame(schema=dict.fromkeys(TEXTS, pl.String) | dict.fromkeys(FLOATS, pl.Float64))
DENIED = "open long, rank 1; denied: ORDER_NOTIONAL: found=600, limit=500"


@pytest.mark.parametrize(
    ("page", "verdict", "text"),
    [
        (traded("filled", "filled", "filled", status="completed"), "green", "All 3 orders were filled."),
        (traded("dry_run", "dry_run", "dry_run", status="completed"), "green", "3 orders ended as: not sent (dry run)."),
        (traded("filled", "filled", "canceled"), "amber", "1 order ended as: cancelled."),
        (traded("filled", "partially_filled", "expired"), "amber", "1 order ended as: filled in part."),
        (traded("filled", "filled", "rejected"), "amber", "1 order ended as: rejected."),
        (traded("filled", "filled", "failed"), "amber", "1 order ended as: failed."),
        (traded("filled", "filled", "unknown"), "red", "1 order ended as: unknown."),
        (traded("canceled", "canceled", "rejected", status="failed"), "red", "0 of 3 orders filled."),
        (traded(status="completed"), "green", "Nothing had to be traded."),
        (traded("denied", "filled", "filled", reasons=(DENIED,)), "amber", "The gateway's control ORDER_NOTIONAL denied 1 order."),
        (traded("denied", "denied", "denied", reasons=(DENIED,) * 3, status="failed"), "red", "ORDER_NOTIONAL denied 3 orders."),
        (traded("denied", "filled", "filled"), "amber", "1 order ended as: denied."),  # by nobody who gave a code
    ],
)  # fmt: skip
def test_orders_are_judged_by_how_they_ended(page: trade.TradePage, verdict: str, text: str) -> None:
    found = trade.findings(page)
    assert common.worst(verdicts(found)) == verdict
    assert text in said(found)


def test_every_order_of_the_plan_is_told_of_once() -> None:
    page = traded("denied", "filled", "canceled", reasons=(DENIED,))
    assert sum(page.ends.values()) + sum(page.denials.values()) == 3


def test_what_lies_between_arrival_and_fill_is_the_market_and_the_cost() -> None:
    frame = trade.arrival_frame(traded("filled", "filled", "filled", status="completed").orders)
    assert frame.select("what", "waited", "cost", "shortfall").rows() == [
        ("Buys", 15.0, 0.0, 15.0),
        ("All", 15.0, 0.0, 15.0),
    ]


def test_orders_that_lived_otherwise_are_told_step_by_step() -> None:
    at = datetime(2024, 1, 3, 14, tzinfo=UTC)
    steps = [
        ("BED", "pending_new"),
        ("BED", "new"),
        ("BED", "filled"),
        ("ZYH", "pending_new"),
        ("ZYH", "accepted"),
        ("ZYH", "filled"),
    ]
    steps += [("KUTO", "pending_new"), ("KUTO", "unknown"), ("KUTO", "unknown"), ("KUTO", "filled")]
    rows = [
        dict(client_order_id=n, at=at + timedelta(seconds=i), kind="", status_to=s) for i, (n, s) in enumerate(steps)
    ]
    page = traded("filled", "filled", "filled", status="completed")
    page = replace(page, traded=replace(page.traded, events=pl.DataFrame(rows)))
    odd = trade.odd_lives(page)
    assert odd["symbol"].to_list() == ["KUTO"]
    assert odd["text"][0] == "written down 09:00:06 → outcome unknown 09:00:07 → filled 09:00:09"


# ---- signals


def ranked(missing: int = 0, barred: int = 0, upside_down: bool = False, first: bool = False) -> signals.SignalPage:
    frame = pl.DataFrame({"symbol": [f"S{i:02}" for i in range(40)], "rank": range(1, 41), "predicted_return": np.linspace(0.04, -0.04, 40)})  # fmt: skip
    weights = np.repeat([0.2, 0.0, -0.2], [5, 30, 5]) * (-1 if upside_down else 1)
    frame = frame.with_columns(
        target_weight=pl.Series(weights), sector=pl.lit("Energy"), new=pl.lit(value=False), before=pl.lit(1)
    )
    gone = [dict(symbol=f"M{i}", reason="no bar", by_settings=i >= missing) for i in range(missing + barred)]
    left = pl.DataFrame(gone, schema={"symbol": pl.String, "reason": pl.String, "by_settings": pl.Boolean})
    none = pl.DataFrame(schema={"symbol": pl.String, "feature": pl.String, "contribution": pl.Float64})
    return signals.SignalPage(Signals(frame, left, {"model_version": 1}), frame, first, frame.clear(), none)


@pytest.mark.parametrize(
    ("page", "verdict", "text"),
    [
        (ranked(), "green", "5 names to hold long and 5 to hold short, out of 40 ranked."),
        (ranked(first=True), "green", "These are the first signals."),
        (ranked(missing=2), "green", "2 members of the universe could not be ranked: M0, M1."),
        (ranked(missing=3), "amber", "3 members"),
        (ranked(barred=30), "green", "30 names not ranked because the settings in [universe] bar them"),
        (ranked(upside_down=True), "amber", "not predicted to do better"),
    ],
)
def test_signals_are_judged_by_who_is_missing_and_which_side_is_which(
    page: signals.SignalPage, verdict: str, text: str
) -> None:
    found = signals.findings(page, DAY)
    assert common.worst(verdicts(found)) == verdict
    assert text in said(found)


# ---- reconciliation

LINES = dict.fromkeys(("kind", "key", "ours", "broker", "cause"), pl.String)
NOTHING = pl.DataFrame(schema=LINES)
AGREE = Reconciled(True, NOTHING, {"orders": 2, "cash": 1}, {}, pl.DataFrame(), {}, NOTHING)


def line(cause: str) -> pl.DataFrame:
    return pl.DataFrame([dict(kind="fill", key="e1", ours="", broker="buy 12 BED", cause=cause)])


ODD = (
    "missed event: nobody told us",
    "given up and revived",
    "manual trade",
    "foreign order",
    "not sent: x",
    "kill switch",
)
CASH = pl.DataFrame([dict(kind="cash", key="cash", ours="1028877.5057", broker="1028864.1357", cause="unexplained")])
SWITCH = dict(scope="*", level="block", who="reconciliation", why="a line that nothing explains")


@pytest.mark.parametrize(
    ("result", "uses", "standing", "verdict", "text"),
    [
        (AGREE, (), (), "green", "Our books and the broker's agree, line by line."),
        (replace(AGREE, matched=False, differences=line("unexplained")), (), (), "red", "differ in 1 line, fill e1: ours nothing, the broker's buy 12 BED (unexplained)."),
        (replace(AGREE, matched=False, differences=CASH), (), (), "red", "cash: ours $1,028,877.51, the broker's $1,028,864.14 (unexplained)."),
        (replace(AGREE, matched=False, differences=pl.concat([CASH, line("unexplained")])), (), (), "red", "differ in 2 lines, the first: cash:"),
        (replace(AGREE, halted="two lines"), (), (), "red", "until somebody releases it: two lines."),
        (AGREE, (), (SWITCH,), "red", "Trading is stopped (block, everywhere) by reconciliation: a line that nothing explains. When it is explained"),
        *((replace(AGREE, settled=line(cause)), (), (), "amber", cause) for cause in ODD),
        *((replace(AGREE, settled=line(f"{cause}: booked")), (), (), "green", "1 line differed at first and is accounted for now.") for cause in reconcile.ROUTINE),
        (AGREE, (Use("Gross", 3.3, 4, "price"),), (), "amber", "has used 82% of its limit"),
        (AGREE, (Use("Gross", 4.1, 4, "price"),), (), "red", "is beyond its limit"),
        (AGREE, (Use("Gross", 9.0, 0, "price"),), (), "green", "agree"),
    ],
)  # fmt: skip
def test_books_are_judged_by_what_differs_what_was_mended_and_what_is_near(
    result: Reconciled, uses: tuple[Use, ...], standing: tuple[dict[str, str], ...], verdict: str, text: str
) -> None:
    found = reconcile.findings(result, uses, standing)
    assert common.worst(verdicts(found)) == verdict
    assert text in said(found)


def test_every_cause_of_a_difference_is_either_routine_or_to_be_looked_at() -> None:
    from tradenb.execution.reconcile import Cause

    odd = {"missed event", "given up and revived", "kill switch", "manual trade", "foreign order", "not sent", "moving", "cache", "unexplained"}  # fmt: skip
    assert {cause.value for cause in Cause} == odd | set(reconcile.ROUTINE)


# ---- limits

stamps = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 1000)), max_size=30)


@given(stamps, st.integers(1, 120))
def test_the_most_within_a_window_is_what_a_look_at_every_order_finds(
    rows: list[tuple[int, int]], seconds: int
) -> None:
    start, window = datetime(2024, 1, 3, 14, tzinfo=UTC), timedelta(seconds=seconds)
    stored = [(start + timedelta(seconds=at), Decimal(value)) for at, value in rows]
    inside = [[value for other, value in stored if at - window < other <= at] for at, _ in stored]
    expected = (max(map(len, inside), default=0), max((sum(part, Decimal(0)) for part in inside), default=Decimal(0)))
    assert exposure.most_within(stored, window) == expected


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, "green"), (NEAR - 0.001, "green"), (NEAR, "amber"), (1.0, "amber"), (1.001, "red")]
)
def test_a_limit_is_near_from_four_fifths_on(share: float, verdict: str) -> None:
    assert Use("x", share * 50, 50, "price").verdict == verdict


def test_an_account_without_equity_or_orders_has_limits_too(make_settings: Callable[..., Settings]) -> None:
    zero = Decimal(0)
    uses = exposure.limit_uses(make_settings().limits, exposure.Exposed(zero, zero, zero, zero, None, None))
    assert [use.share for use in uses] == [0.0] * len(uses)
    assert exposure.near_limits(uses) == []


# ---- the model


def watched(
    psi: float = 0.1,
    usual: float = 0.1,
    ics: tuple[float, ...] = (),
    error: str | None = None,
    others: int = 0,
    predictions: float = 0.0,
) -> Watched:
    names, moved = ["ROC5", "prediction", *(f"F{i}" for i in range(others))], [psi, predictions, *[0.0] * others]
    table = pl.DataFrame({"name": names, "psi": moved, "usual": [usual] + [0.1] * (others + 1)})
    table = table.with_columns(missing=0.0, missing_then=0.0)
    daily = pl.DataFrame({"date": [DAY] * len(ics), "rank_ic": ics, "names": [60] * len(ics)}, schema_overrides={"rank_ic": pl.Float64})  # fmt: skip
    skill = Realised(daily, newey_west(np.array(ics))) if ics else None
    return Watched(
        1, (), datetime(2024, 1, 3, tzinfo=UTC), None if error else Drift(DAY, DAY, 100, table), skill, error
    )


NOISE = tuple(0.001 * (-1) ** i for i in range(30))


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (watched(), ["green"]),
        (watched(psi=0.3, usual=0.1), ["amber"]),
        (watched(psi=0.3, usual=0.2), ["green"]),  # further than the limit, but not than twice the usual
        (watched(psi=0.24, usual=0.0), ["green"]),
        (watched(ics=NOISE), ["green", "amber"]),  # worth nothing since it was trained
        (watched(ics=NOISE[:5]), ["green"]),  # too few to say so
        (watched(psi=0.3, usual=0.1, ics=NOISE), ["amber", "amber"]),
        (watched(error="no bars"), ["amber"]),
        (watched(psi=0.3, usual=0.1, others=9), ["green"]),  # one of eleven: some always move
        (watched(predictions=0.9, others=99), ["amber"]),  # what trades has moved
    ],
)
def test_a_model_is_judged_by_drift_beyond_the_usual_and_by_skill_below_its_promise(
    seen: Watched, found: list[str]
) -> None:
    record = train.Record({"rank_ic": 0.05}, {}, None)
    assert verdicts(train.watched_findings(seen, record, 0.25)) == found


# ---- the day


@pytest.mark.parametrize(
    ("status", "matched", "unexplained", "verdict"),
    [
        ("completed", True, "0", "green"),
        ("completed", True, "0.05", "green"),
        ("completed", True, "0.06", "red"),
        ("completed", True, "-0.06", "red"),
        ("completed", False, "0", "red"),
        ("partially_completed", True, "0", "amber"),
        ("partially_completed", False, "0", "red"),
        ("failed", True, "0", "red"),
    ],
)
def test_a_day_is_judged_by_its_orders_its_books_and_its_cents(
    status: str, matched: bool, unexplained: str, verdict: str
) -> None:
    assert report.verdict_of(status, matched, Decimal(unexplained)) == verdict


def test_the_day_repeats_what_the_other_pages_found_and_leaves_out_what_is_fine() -> None:
    of = lambda *found: SimpleNamespace(result={common.FOUND: [list(finding) for finding in found]})
    done = {"etl": of(("amber", "KUTO is late.")), "trade": of(("green", "All filled.")), "reconcile": of(("red", "Trading is stopped.")), "report": of(("red", "itself"))}  # fmt: skip
    assert report.elsewhere_found(done) == [
        ("red", "Reconciliation: Trading is stopped."),
        ("amber", "Market data: KUTO is late."),
    ]
    assert report.elsewhere_found({"etl": SimpleNamespace(result=None)}) == []


@pytest.mark.parametrize(
    ("sent", "verdict", "text"),
    [
        ({}, "green", "Nothing was sent to the broker"),
        ({"filled": 12}, "amber", "12 orders had been sent: 12 filled."),
        ({"filled": 2, "unknown": 1}, "red", "1 order may still be working at the broker"),
        *(({status: 3}, "red", "3 orders may still be working") for status in report.IN_FLIGHT),
        ({"rejected": 1}, "amber", "1 order had been sent: 1 rejected."),
    ],
)
def test_a_day_that_stopped_says_what_is_at_the_broker(sent: dict[str, int], verdict: str, text: str) -> None:
    found = report.stopped_findings(SimpleNamespace(error="x", trade_date=DAY), {}, sent)  # type: ignore[arg-type]
    assert found[1][0] == verdict
    assert text in found[1][1]


def test_a_day_that_stopped_names_the_stage_and_the_command() -> None:
    done = {
        "etl": SimpleNamespace(status="completed", error=None),
        "train": SimpleNamespace(status="failed", error="no bars before 2019"),
    }
    found = report.stopped_findings(SimpleNamespace(error="other", trade_date=DAY), done, {})  # type: ignore[arg-type]
    assert found[0] == ("red", "The run stopped in its stage model: no bars before 2019.")
    assert "tradenb paper-run --date 2024-01-03" in found[-1][1]
    between = report.stopped_findings(SimpleNamespace(error=None, trade_date=DAY), {}, {})  # type: ignore[arg-type]
    assert between[0] == ("red", "The run stopped between its stages: interrupted.")


def test_a_figure_that_is_not_known_shows_as_a_dash_and_has_no_change() -> None:
    frame = report.changes({}, {"trade": {"orders": 3}})
    assert set(frame["now"]) == {"–"}
    assert set(frame["change"]) == {""}


# ---- kept with the stage, and written as a page


def test_a_run_that_stopped_has_the_page_that_everybody_has_the_link_to(make_settings: Callable[..., Settings]) -> None:
    chosen, clock = make_settings(), SystemClock()
    run = start_run(chosen, DAY)
    for stage in ("etl", "train"):
        records.begin_stage(run.engine, run.run_id, stage, clock.now())
        records.note_facts(run.engine, run.run_id, stage, {"sessions": 1, "symbols": 12, "quarantined": 0})
    common.remember(run, "etl", [("amber", "KUTO is <b>late</b>.")])
    common.remember(run, "signals", [("red", "has no row yet")])
    records.end_stage(run.engine, run.run_id, "etl", clock.now(), 1.5)
    records.end_stage(run.engine, run.run_id, "train", clock.now(), 0.5, error="too few sessions")
    order = dict(
        client_order_id="a", strategy="s", trade_date=DAY, run_id=run.run_id, symbol="BED", side="buy", type="market"
    )
    order |= dict(
        time_in_force="cls",
        sequence=0,
        status="unknown",
        filled_qty=0,
        dry_run=False,
        created_at=clock.now(),
        updated_at=clock.now(),
    )
    with run.engine.begin() as connection:
        connection.execute(insert(order_table), order)
    kept = records.stages(run.engine, run.run_id)["etl"].result
    assert (kept["symbols"], common.findings_of(kept)) == (12, [("amber", "KUTO is <b>late</b>.")])
    render_stopped(run)
    html = report_path(chosen.root, DAY, run.run_id).read_text()
    for text in ("stopped in its stage model: too few sessions", "1 order may still be working", "Market data: KUTO is &lt;b&gt;late", "needs action"):  # fmt: skip
        assert text in html
    assert external_requests(html) == []
    assert all(f">{title}<" in html for title, _ in LINKS)
    run.engine.dispose()


def test_the_page_of_the_day_says_what_the_log_of_its_run_complains_of(make_settings: Callable[..., Settings]) -> None:
    chosen = make_settings()
    run, trace = start_run(chosen, DAY), None
    assert "has no warning and no error" in report.log_table(run).html
    with logging_to(chosen.root / "logs"):
        for trace in ("f" * 32, run.row.trace_id):  # another run's are not told
            with bind(trace_id=trace):
                get_logger("execution").info("order_sent", symbol="BED")
                for symbol in NAMES:
                    get_logger("execution").warning("order_denied", symbol=symbol, code="<KILL>")
        for number in range(15):
            get_logger("signals").error(f"event_{number}", trace_id=run.row.trace_id)
    html = report.log_table(run).html
    assert (
        html.count("order_denied") == 0
        and f"and 4 more: <code>tradenb logs --trace {run.row.trace_id} --level warning" in html
    )
    block = report.log_block(report.logged(run), "", most=20).html
    assert block.count("order_denied") == 1 and f"symbol={', '.join(NAMES)}; code=&lt;KILL&gt;" in block
    assert external_requests(html) == [] and "order_sent" not in block
    run.engine.dispose()


def test_a_log_that_cannot_be_read_costs_the_page_its_table_only(make_settings: Callable[..., Settings]) -> None:
    chosen = make_settings()
    run = start_run(chosen, DAY)
    (chosen.root / "logs" / f"run-{SystemClock().now():%Y-%m-%d}.jsonl").mkdir(parents=True)
    assert "could not be read" in report.log_table(run).html
    run.engine.dispose()


def test_a_report_that_was_begun_keeps_its_own_page(make_settings: Callable[..., Settings]) -> None:
    chosen = make_settings()
    run = start_run(chosen, DAY)
    records.begin_stage(run.engine, run.run_id, "report", SystemClock().now())
    render_stopped(run)
    assert not report_path(chosen.root, DAY, run.run_id).exists()
    run.engine.dispose()
