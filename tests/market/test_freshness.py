"Old data stops a run, and the error says how old."

from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions, shift
from tradenb.core.clock import new_york
from tradenb.core.errors import FreshnessError
from tradenb.market.freshness import GONE_AFTER, measure, require_fresh, require_recent

TODAY = date(2024, 3, 28)


def last_bars(behind: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"symbol": [f"S{i:03d}" for i in range(len(behind))], "date": [shift(TODAY, -n) for n in behind]}
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40))
def test_every_symbol_is_fresh_or_stale_or_gone(behind: list[int]) -> None:
    state = measure(last_bars(behind), TODAY)
    assert state.fresh == behind.count(0)
    assert sorted(state.stale["behind"]) == sorted(n for n in behind if 0 < n <= GONE_AFTER)
    assert sorted(state.gone["behind"]) == sorted(n for n in behind if n > GONE_AFTER)


def test_a_feed_without_the_session_stops_even_when_every_stale_symbol_is_tolerated() -> None:
    with pytest.raises(FreshnessError, match="newest bar is of 2024-03-27, 1 session"):
        require_fresh(measure(last_bars([1, 1]), TODAY), max_stale_share=1.0)
    with pytest.raises(FreshnessError, match="there are no bars"):
        require_fresh(measure(last_bars([]).cast({"symbol": pl.String, "date": pl.Date}), TODAY), 1.0)


def test_the_error_names_the_worst_symbols() -> None:
    with pytest.raises(FreshnessError, match=r"2 of 4 symbols \(50%\).*S002 2024-03-21 \(5 behind\)"):
        require_fresh(measure(last_bars([0, 0, 5, 1]), TODAY), max_stale_share=0.4)


def test_a_symbol_that_has_left_is_not_late() -> None:
    left = pl.DataFrame({"symbol": ["S001"]})
    assert len(measure(last_bars([0, 3]), TODAY, left).stale) == 0


@settings(deadline=None)
@given(st.integers(0, 24 * 60 - 1), st.integers(0, 200))
def test_the_intraday_rule_speaks_only_while_the_market_is_open(minute: int, age: int) -> None:
    now = new_york(TODAY, minute // 60, minute % 60)
    newest = {"AAPL": now - timedelta(minutes=age)}
    opened = 9 * 60 + 30
    late = opened <= minute <= 16 * 60 and min(age, minute - opened) > 30
    if late:
        with pytest.raises(FreshnessError, match="AAPL"):
            require_recent(newest, now, 30)
    else:
        require_recent(newest, now, 30)


def test_a_holiday_has_no_intraday_rule() -> None:
    noon = new_york(date(2024, 3, 29), 12)
    require_recent({"AAPL": noon - timedelta(days=1)}, noon, 30)
    assert date(2024, 3, 29) not in sessions(TODAY, date(2024, 4, 1))
