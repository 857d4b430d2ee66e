"The page of the market data: what was caught is shown with its reason and its bars, what the source took back is listed, and nothing in it becomes markup."

import re
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.market.etl import EtlReport
from tradenb.market.freshness import Freshness
from tradenb.market.quality import Limits, run_gate, sample_bars
from tradenb.market.tables import TABLES
from tradenb.trading.pages.etl import (
    CHECKS,
    action_terms,
    corrections,
    distances,
    findings,
    gate_table,
    judges_page,
    quarantine_table,
    worst_cases,
)
from tradenb.trading.stages import GATE_PAGE, GATE_RESULTS, keep_gate_results

DAYS = sessions(date(2024, 1, 2), date(2024, 2, 29))
CLEAN = sample_bars(DAYS, symbols=8, seed=2)
NO_ACTIONS = pl.DataFrame(schema=TABLES["corporate_actions"].schema)
PRICES = ("open", "high", "low", "close")


def printed(rows: pl.DataFrame, symbol: str, day: date, by: float) -> pl.DataFrame:
    hit = (pl.col("symbol") == symbol) & (pl.col("date") == day)
    return rows.with_columns(pl.when(hit).then(pl.col(c) * by).otherwise(pl.col(c)).alias(c) for c in PRICES)


def report_of(rows: pl.DataFrame, **more: Any) -> EtlReport:
    gate = run_gate(rows, DAYS[-1], NO_ACTIONS, Limits())
    fresh = Freshness(DAYS[-1], DAYS[-1], 8, *[pl.DataFrame(schema={"symbol": pl.String, "last": pl.Date, "behind": pl.Int64})] * 2)  # fmt: skip
    return EtlReport(DAYS[-1], "files", tuple(DAYS), {}, gate, gate.quarantined, fresh, {"bars": 1}, True, **more)


SPOILT = printed(printed(CLEAN, "S003", DAYS[20], 10), "S005", DAYS[25], 0.5)


def test_each_bad_print_is_drawn_among_its_bars_and_listed_worst_first() -> None:
    report = report_of(SPOILT)
    good = report.gate.good  # type: ignore[union-attr]
    off = distances(report.quarantined, good)
    assert off["symbol"].to_list() == ["S003", "S005"]
    drawn = worst_cases(off, report.quarantined, good)
    assert drawn.html.count("<figure") == 2
    assert "S003 on" in drawn.html and "the next open took it back" in drawn.html.lower()
    listed = quarantine_table(off).html
    assert listed.index("S003") < listed.index("S005")


def test_every_check_of_the_gate_has_a_name_for_people_and_its_threshold() -> None:
    report = report_of(SPOILT)
    assert set(report.gate.table["check"]) == set(CHECKS)  # type: ignore[union-attr]
    shown = gate_table(report.gate).html
    assert all(name in shown for name in CHECKS.values())
    assert "beyond 30%" in shown and "quality.max_move" in shown


def test_the_judges_own_page_lies_beside_the_run_and_is_linked(tmp_path: Any) -> None:
    report = report_of(SPOILT)
    keep_gate_results(report.gate, tmp_path)
    assert (tmp_path / GATE_RESULTS).is_file()
    assert "suspect_move" in (tmp_path / GATE_PAGE).read_text()
    assert f'href="{GATE_PAGE}"' in judges_page(report.gate).html


def test_without_new_rows_there_is_no_link_and_no_file(tmp_path: Any) -> None:
    idle = replace(report_of(CLEAN), gate=None)
    assert keep_gate_results(idle.gate, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert "href" not in judges_page(idle.gate).html


def test_a_withdrawn_action_makes_the_page_amber_and_is_listed_with_its_terms() -> None:
    gone = pl.DataFrame(
        [{"symbol": "S001", "ex_date": DAYS[3], "kind": "split", "ratio": 2.0, "cash": 0.0}],
        schema=TABLES["corporate_actions"].schema,
    )
    report = report_of(CLEAN, withdrawn=gone)
    assert findings(report, 0.02)[0] == ("amber", "The source took back 1 corporate action: S001.")
    assert "2 new shares for 1 old" in corrections(report).html


def test_corrected_values_are_listed_the_largest_change_first() -> None:
    revised = pl.DataFrame(
        {"symbol": ["A", "B"], "date": [DAYS[0], DAYS[1]], "field": ["volume", "close"], "before": [1e6, 50.0], "after": [1.001e6, 40.0]}
    )  # fmt: skip
    shown = corrections(report_of(CLEAN, revised=revised)).html
    assert shown.index(">B<") < shown.index(">A<")
    assert "1,001,000" in shown and "−20.00%" in shown


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (("split", 4.0, 0.0, None), "4 new shares for 1 old"),
        (("split", 0.1, 0.0, None), "1 new share for 10 old"),
        (("stock_dividend", 1.05, 0.0, None), "0.05 new shares for each"),
        (("dividend", 1.0, 0.23, None), "$0.23 per share"),
        (("spin_off", 0.5, 0.0, "CARR"), "0.5 shares of CARR for each"),
        (("spin_off", 0.5, 12.5, "CARR"), "0.5 shares of CARR for each, worth $12.5 per share"),
        (("spin_off", 1.0, 3.0, None), "$3 per share"),
        (("symbol_change", 1.0, 0.0, "META"), "now META"),
        (("delisting", 1.0, 54.2, None), "$54.2 per share"),
        (("delisting", 0.5, 10.0, "NOVA"), "0.5 shares of NOVA for each and $10 per share"),
        (("delisting", 1.0, 0.0, "GONE", "GONE"), "no terms told: its last close"),
        (("delisting", 1.0, 0.0, None), "nothing"),
    ],
)
def test_corporate_actions_are_told_in_words(event: tuple, says: str) -> None:
    assert action_terms(*event) == says


def bad_among_good(text: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    days = [DAYS[0] + timedelta(days=i) for i in range(3)]
    bars = pl.DataFrame({"symbol": [text] * 3, "date": days} | {price: [10.0, 100.0, 10.0] for price in PRICES})
    bad = bars[1:2].with_columns(check=pl.lit("move"), reason=pl.lit(text))
    return bad, bars.filter(pl.col("date") != days[1])


def tags(html: str) -> list[str]:
    return re.findall(r"</?[a-z]+", html)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12))
def test_no_text_of_a_vendor_becomes_markup(text: str) -> None:
    theirs, plain = (quarantine_table(distances(*bad_among_good(each))).html for each in (text, "x"))
    assert tags(theirs) == tags(plain)


def test_no_symbol_becomes_markup_in_a_chart() -> None:
    bad, good = bad_among_good("<b>&")
    assert "<b>" not in worst_cases(distances(bad, good), bad, good).html
