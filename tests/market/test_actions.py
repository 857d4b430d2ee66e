"Backward adjustment as a shareholder would check it."

from datetime import date, timedelta
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import DataError, InputError
from tradenb.market.actions import ACTION_SCHEMA, BAR_COLUMNS, adjust, factors

START = date(2024, 1, 1)
day = st.integers(0, 19).map(lambda n: START + timedelta(days=n))
price = st.floats(5, 500).map(lambda x: round(x, 2))
prices = st.dictionaries(day, price, min_size=2, max_size=20)
event = st.one_of(
    st.tuples(
        day,
        st.sampled_from(["split", "stock_dividend"]),
        st.sampled_from([0.1, 0.5, 1.05, 1.5, 2.0, 3.0, 7.0]),
        st.just(0.0),
    ),
    st.tuples(
        day,
        st.sampled_from(["dividend", "special_dividend", "spin_off"]),
        st.just(1.0),
        st.sampled_from([0.01, 0.03, 0.05]),
    ),
    st.tuples(day, st.sampled_from(["symbol_change", "delisting"]), st.just(1.0), st.sampled_from([0.0, 3.0])),
)
events = st.lists(event, max_size=6)
CONVENTIONS = ["prev_close", "ex_close"]


def bars_of(closes: dict[date, float], symbol: str = "KOVA") -> pl.DataFrame:
    rows = [(symbol, d, p, p, p, p, 1000, None) for d, p in sorted(closes.items())]
    schema = {
        "symbol": pl.String,
        "date": pl.Date,
        **dict.fromkeys(("open", "high", "low", "close"), pl.Float64),
        "volume": pl.Int64,
        "vwap": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def actions_of(rows: list[tuple], symbol: str = "KOVA") -> pl.DataFrame:
    rows = [(symbol, d, kind, ratio, cash, None, "test", None) for d, kind, ratio, cash in rows]
    return pl.DataFrame(rows, schema=ACTION_SCHEMA, orient="row")


def between(rows: list[tuple], before: date, after: date) -> tuple[float, float]:
    "What one old share becomes from `before` to `after`: shares, and cash per one of them. Events of one day: the split first. Told twice is told once."
    rows = list(set(rows))
    shares, cash = 1.0, 0.0
    for d in sorted({e[0] for e in rows if before < e[0] <= after}):
        for ex, kind, ratio, _ in rows:
            shares *= ratio if ex == d and kind in ("split", "stock_dividend") else 1.0
        cash += shares * sum(e[3] for e in rows if e[0] == d and e[1] in ("dividend", "special_dividend", "spin_off"))
    return shares, cash / shares


def returns(frame: pl.DataFrame) -> list[float]:
    return [b / a for a, b in pairwise(frame["adj_close"].to_list())]


@given(prices, events)
def test_the_return_under_ex_close_is_what_a_shareholder_earned(closes, rows):
    frame = adjust(bars_of(closes), actions_of(rows), "total_return", "ex_close")
    for got, (a, b) in zip(returns(frame), pairwise(sorted(closes)), strict=True):
        shares, cash = between(rows, a, b)
        assert got == pytest.approx(shares * (closes[b] + cash) / closes[a], rel=1e-12)


@given(prices, events)
def test_the_return_under_prev_close_is_on_what_the_payment_left(closes, rows):
    frame = adjust(bars_of(closes), actions_of(rows), "total_return", "prev_close")
    for got, (a, b) in zip(returns(frame), pairwise(sorted(closes)), strict=True):
        shares, cash = between(rows, a, b)
        assert got == pytest.approx(shares * closes[b] / (closes[a] - cash * shares), rel=1e-12)


@given(prices, events, st.sampled_from(CONVENTIONS))
def test_split_adjustment_ignores_cash_and_keeps_dollar_volume(closes, rows, convention):
    frame = adjust(bars_of(closes), actions_of(rows), "split", convention)
    for got, (a, b) in zip(returns(frame), pairwise(sorted(closes)), strict=True):
        assert got == pytest.approx(between(rows, a, b)[0] * closes[b] / closes[a], rel=1e-12)
    dollars = (frame["adj_close"] * frame["adj_volume"]).to_list()
    assert dollars == pytest.approx((frame["close"] * frame["volume"]).to_list(), rel=1e-12)


@given(prices, events, st.sampled_from(CONVENTIONS))
def test_the_latest_bar_stays_as_it_traded(closes, rows, convention):
    last = factors(bars_of(closes), actions_of(rows), convention).tail(1)
    assert last.select("price_factor", "volume_factor", "total_return_factor").row(0) == (1.0, 1.0, 1.0)


@given(prices, events, st.sampled_from(CONVENTIONS), day)
def test_as_of_a_day_is_the_same_as_never_having_seen_the_days_after(closes, rows, convention, as_of):
    known = factors(bars_of(closes), actions_of(rows), convention, as_of)
    then = factors(
        bars_of({d: p for d, p in closes.items() if d <= as_of}),
        actions_of([r for r in rows if r[0] <= as_of]),
        convention,
        as_of,
    )
    assert known.equals(then)
    assert known["date"].is_empty() or known["date"].max() <= as_of


@given(prices, events, prices, events, st.sampled_from(CONVENTIONS))
def test_symbols_do_not_touch_each_other(closes_a, rows_a, closes_b, rows_b, convention):
    both = factors(
        pl.concat([bars_of(closes_b, "B"), bars_of(closes_a, "A")]),
        pl.concat([actions_of(rows_a, "A"), actions_of(rows_b, "B")]),
        convention,
    )
    alone = [
        factors(bars_of(c, s), actions_of(r, s), convention)
        for s, c, r in (("A", closes_a, rows_a), ("B", closes_b, rows_b))
    ]
    assert both.equals(pl.concat(alone))


@given(prices, events, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(closes, rows, random):
    shuffled = random.sample(range(len(closes)), len(closes))
    mixed = adjust(bars_of(closes)[shuffled], actions_of(random.sample(rows, len(rows))), "total_return", "prev_close")
    straight = adjust(bars_of(closes), actions_of(rows), "total_return", "prev_close")
    assert mixed["date"].equals(straight["date"])
    assert mixed["adj_close"].to_list() == pytest.approx(straight["adj_close"].to_list(), rel=1e-14)


def test_a_split_during_a_halt_restates_the_whole_past_once_it_is_effective():
    bars = bars_of({START: 100.0, START + timedelta(days=1): 102.0})
    split = actions_of([(START + timedelta(days=3), "split", 2.0, 0.0)])
    assert factors(bars, split, "prev_close")["price_factor"].to_list() == [1.0, 1.0]
    assert factors(bars, split, "prev_close", START + timedelta(days=3))["price_factor"].to_list() == [0.5, 0.5]


def test_ex_close_measures_a_dividend_of_a_halt_on_the_next_bar():
    bars = bars_of({START: 100.0, START + timedelta(days=5): 99.0})
    paid = actions_of([(START + timedelta(days=2), "dividend", 1.0, 1.0)])
    assert factors(bars, paid, "ex_close")["total_return_factor"].to_list() == [0.99, 1.0]
    assert factors(bars.head(1), paid, "ex_close", START + timedelta(days=4))["total_return_factor"].to_list() == [1.0]


def test_no_actions_and_no_bars_are_frames_like_any_other():
    bars = bars_of({START: 100.0})
    plain = adjust(bars, actions_of([]), "total_return", "prev_close")
    assert plain.columns == list(BAR_COLUMNS) and plain["adj_close"].to_list() == [100.0]
    assert adjust(bars.head(0), actions_of([(START, "split", 2.0, 0.0)]), "split", "ex_close").columns == list(
        BAR_COLUMNS
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((START, "split", 0.0, 0.0), "KOVA 2024-01-01: kind=split, ratio=0.0"),
        ((START, "merger", 1.0, 0.0), "kind=merger"),
        ((START, "dividend", 1.0, float("nan")), "cash=nan"),
        ((START + timedelta(days=1), "dividend", 1.0, 100.0), "KOVA 2024-01-02: cash 100 on a close of 100"),
    ],
)
def test_an_event_that_cannot_be_is_named(row, says):
    with pytest.raises(DataError, match=says):
        factors(bars_of({START: 100.0, START + timedelta(days=1): 99.0}), actions_of([row]), "prev_close")


def test_an_unknown_adjustment_or_convention_is_named():
    bars = bars_of({START: 100.0})
    with pytest.raises(InputError, match="adjustment=full"):
        adjust(bars, actions_of([]), "full", "prev_close")
    with pytest.raises(InputError, match="convention=crsp"):
        adjust(bars, actions_of([]), "split", "crsp")
