"Membership is answered for the day asked, and a list of survivors says that it is one."

from datetime import date, timedelta

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.market.lake import TABLES
from tradenb.market.universe import members, survivorship_warning

START = date(2020, 1, 1)
days = st.integers(0, 400).map(lambda n: START + timedelta(days=n))
intervals = st.lists(st.tuples(st.sampled_from("ABCDE"), days, st.none() | st.integers(0, 200)), max_size=12)


def universe(rows: list[tuple[str, date, int | None]], has_history: bool = True) -> pl.DataFrame:
    ends = [None if n is None else start + timedelta(days=n) for _, start, n in rows]
    return pl.DataFrame(
        [("u", s, start, end, None, has_history) for (s, start, _), end in zip(rows, ends, strict=True)],
        schema=TABLES["universe"].schema,
        orient="row",
    )


@settings(deadline=None)
@given(intervals, days)
def test_members_are_those_with_an_interval_around_the_day(rows: list, day: date) -> None:
    inside = {s for s, start, n in rows if start <= day and (n is None or day <= start + timedelta(days=n))}
    assert members(universe(rows), day)["symbol"].to_list() == sorted(inside)


def test_a_list_of_survivors_says_so_and_a_real_history_is_silent() -> None:
    rows = [("A", START, None)]
    assert survivorship_warning(universe(rows)) is None
    said = str(survivorship_warning(universe([*rows, ("B", START, 40)], has_history=False)))
    assert "1 of 2 (50.0%) ended since 2020-01-01" in said and "'u'" in said
