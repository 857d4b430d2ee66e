"Backward adjustment as a shareholder would check it."

from datetime import date, timedelta
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import DataError, InputError
from tradenb.market.actions import (
    ACTION_SCHEMA,
    BAR_COLUMNS,
    EVENT_SCHEMA,
    SHARE_KINDS,
    adjust,
    apply_factors,
    combine,
    cumulative,
    factors,
    final_returns,
    place_events,
    value_delistings,
    value_spin_offs,
)

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
    "From (ex_date, kind, ratio, cash) or (ex_date, kind, ratio, cash, target)."
    rows = [(symbol, *row[:4], None, "test", row[4] if len(row) > 4 else None) for row in rows]
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


@given(prices, events, st.randoms(use_true_random=False), st.sampled_from(CONVENTIONS))
def test_neither_order_nor_telling_twice_changes_a_bit(closes, rows, random, convention):
    shuffled = random.sample(range(len(closes)), len(closes))
    told = random.sample(rows, len(rows)) + random.sample(rows, len(rows) // 2)
    mixed = adjust(bars_of(closes)[shuffled], actions_of(told), "total_return", convention)
    assert mixed.equals(adjust(bars_of(closes), actions_of(rows), "total_return", convention))


@given(prices, events, st.sampled_from(CONVENTIONS), st.sampled_from(["split", "total_return"]))
def test_adjusting_what_is_adjusted_changes_nothing(closes, rows, convention, how):
    once = adjust(bars_of(closes), actions_of(rows), how, convention)
    assert adjust(once, actions_of(rows), how, convention).equals(once)


@given(prices, events)
def test_combined_events_adjust_to_the_same_bits(closes, rows):
    told, bars = actions_of(rows), bars_of(closes)
    both = [adjust(bars, each, "total_return", "prev_close") for each in (told, combine(told))]
    assert both[0].equals(both[1]) and combine(combine(told)).equals(combine(told))


@settings(max_examples=60)
@given(prices, events, st.lists(day, max_size=5), st.sampled_from(CONVENTIONS))
def test_events_placed_day_by_day_are_those_placed_at_once(closes, rows, stops, convention):
    "As an ETL does it: what stands between two bars stays, what waits for a bar is placed again with the news."
    bars, actions = bars_of(closes), actions_of(rows)
    settled = place_events(actions.clear(), bars)
    for stop in sorted({*stops, max(closes), START + timedelta(days=40)}):
        known = bars.filter(pl.col("date") <= stop)
        open_ = actions.filter(pl.col("ex_date") <= stop).join(settled, on=["symbol", "ex_date"], how="anti")
        placed = place_events(open_, known)
        settled = pl.concat([settled, placed.filter(pl.col("date").is_not_null())])
    waiting = placed.filter(pl.col("date").is_null())
    assert pl.concat([settled, waiting]).sort("symbol", "ex_date").equals(place_events(actions, bars))
    steps = cumulative(settled, convention)
    parts = [apply_factors(bars.filter(part), steps, "total_return") for part in (pl.col("date") <= stops[0], pl.col("date") > stops[0])] if stops else [apply_factors(bars, steps, "total_return")]  # fmt: skip
    assert pl.concat(parts).equals(adjust(bars, actions, "total_return", convention))


@settings(max_examples=60)
@given(prices, prices, events, events, st.sampled_from(CONVENTIONS), day, st.floats(0.1, 2))
def test_a_day_never_sees_what_came_after_it(closes, later, rows, more, convention, as_of, ratio):
    "Whatever is told of later days, and however the child of a spin-off trades then, the table of a day stays."
    spin_off = (START + timedelta(days=4), "spin_off", ratio, 0.0, "NOVA")
    child = bars_of({d: p / 20 for d, p in later.items()}, "NOVA")
    small = bars_of({d: p / 20 + 1 for d, p in closes.items()}, "NOVA")
    past, future = pl.col("date") <= as_of, pl.col("date") > as_of
    truth = pl.concat([bars_of(closes), small]), actions_of([*rows, spin_off])
    other = (
        pl.concat([truth[0].filter(past), bars_of(later).filter(future), child.filter(future)]),
        pl.concat([truth[1].filter(pl.col("ex_date") <= as_of), actions_of(more).filter(pl.col("ex_date") > as_of)]),
    )
    tables = [_as_of(*each, convention, as_of) for each in (truth, other)]
    assert tables[0] == tables[1]


def _as_of(bars: pl.DataFrame, actions: pl.DataFrame, convention: str, as_of: date) -> list:
    "The table of a day, from the bars of that day and from events that were placed with all bars there are; or why there is none."
    try:
        direct = adjust(bars, actions, "total_return", convention, as_of)
        steps = cumulative(place_events(actions, bars), convention, as_of)
    except DataError as error:
        return [str(error)]
    stored = apply_factors(bars.filter(pl.col("date") <= as_of), steps, "total_return")
    assert stored.equals(direct)
    return direct.rows()


whole = st.lists(
    st.tuples(day, st.just("split"), st.sampled_from([2.0, 3.0, 4.0, 7.0, 10.0]), st.just(0.0)), max_size=3
)


@given(prices, whole)
def test_volume_is_exact_to_the_share(closes, rows):
    frame = adjust(bars_of(closes), actions_of(rows), "total_return", "prev_close")
    for bar in frame.iter_rows(named=True):
        shares = bar["volume"]
        for ex, ratio in {(row[0], row[2]) for row in rows}:
            shares *= int(ratio) if bar["date"] < ex <= max(closes) else 1
        assert round(bar["adj_volume"]) == shares and bar["adj_volume"] == pytest.approx(shares, rel=1e-15)


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


def test_one_event_in_two_rows_is_added_up_and_told_twice_counts_once():
    ex = START + timedelta(days=3)
    rows = [
        (ex, "dividend", 1.0, 0.5),
        (ex, "dividend", 1.0, 0.5),
        (ex, "dividend", 1.0, 0.25),
        (ex, "split", 2.0, 0.0),
    ]
    rows += [(ex, "stock_dividend", 1.05, 0.0), (ex, "spin_off", 0.5, 0.0, "ADT"), (ex, "spin_off", 0.25, 0.0, "PNR")]
    both = combine(actions_of(rows))
    assert both.select("kind", "ratio", "cash", "target").rows() == [
        ("dividend", 1.0, 0.75, None),
        ("spin_off", 0.5, 0.0, "ADT"),
        ("spin_off", 0.25, 0.0, "PNR"),
        ("split", 2.0, 0.0, None),
        ("stock_dividend", 1.05, 0.0, None),
    ]
    assert set(SHARE_KINDS) <= set(both["kind"])


def test_a_placed_event_stands_between_its_bars_and_one_before_all_bars_is_left_out():
    bars = bars_of({START + timedelta(days=n): 100.0 + n for n in (1, 2, 6)})
    rows = [(START + timedelta(days=n), "dividend", 1.0, 1.0) for n in (1, 2, 4, 9)]
    placed = place_events(actions_of(rows), bars)
    assert dict(placed.schema) == EVENT_SCHEMA
    assert [(a and a.day, b and b.day) for a, b in placed.select("prev_date", "date").rows()] == [(2, 3), (3, 7), (7, None)]  # fmt: skip


def test_a_spin_off_is_worth_its_first_close_unless_somebody_told_its_value():
    ex = START + timedelta(days=3)
    actions = actions_of([(ex, "spin_off", 0.5, 0.0, "NOVA"), (ex, "spin_off", 1.0, 7.0, "DUNE"), (ex, "dividend", 1.0, 0.0, "NOVA")])  # fmt: skip
    first = bars_of({START: 99.0, ex + timedelta(days=2): 40.0, ex + timedelta(days=3): 50.0}, "NOVA")
    valued = value_spin_offs(actions, pl.concat([first, bars_of({ex: 90.0}, "DUNE")]))
    assert sorted(valued.select("kind", "cash").rows()) == [("dividend", 0.0), ("spin_off", 7.0), ("spin_off", 20.0)]
    assert valued["valued_on"].drop_nulls().to_list() == [ex + timedelta(days=2)]
    assert value_spin_offs(valued, first).equals(valued)


def test_a_child_that_begins_to_trade_too_late_values_nothing():
    ex = START + timedelta(days=3)
    actions = actions_of([(ex, "spin_off", 0.5, 0.0, "NOVA")])
    assert value_spin_offs(actions, bars_of({ex + timedelta(days=14): 40.0}, "NOVA"))["cash"].to_list() == [20.0]
    assert value_spin_offs(actions, bars_of({ex + timedelta(days=15): 40.0}, "NOVA"))["cash"].to_list() == [0.0]


@given(prices, st.floats(0.05, 1).map(lambda x: round(x, 2)))
def test_a_holder_who_keeps_the_child_earns_the_total_return(closes, ratio):
    "Parent after the spin-off plus the shares handed out, at the closes of the ex-date."
    days = sorted(closes)
    ex = days[len(days) // 2]
    child = bars_of({ex: 12.5}, "NOVA")
    frame = adjust(pl.concat([bars_of(closes), child]), actions_of([(ex, "spin_off", ratio, 0.0, "NOVA")]), "total_return", "ex_close")  # fmt: skip
    parent = frame.filter(symbol="KOVA")["adj_close"].to_list()
    at = days.index(ex)
    assert parent[at] / parent[at - 1] == pytest.approx((closes[ex] + ratio * 12.5) / closes[days[at - 1]], rel=1e-12)


def test_a_delisted_share_ends_at_cash_stock_both_or_nothing():
    ex, last = START + timedelta(days=3), START + timedelta(days=1)
    acquirer = bars_of({START: 70.0, START + timedelta(days=2): 80.0, ex + timedelta(days=1): 1.0}, "NOVA")
    dead = [(0.0, 1.0, None, 0.0), (60.0, 1.0, None, 60.0), (0.0, 0.5, "NOVA", 40.0), (5.0, 0.5, "NOVA", 45.0)]
    dead += [(0.0, 1.0, "KOVA", 50.0), (0.0, 1.0, "GONE", None)]
    for cash, ratio, target, value in dead:
        bars = pl.concat([bars_of({START: 49.0, last: 50.0}), acquirer])
        row = final_returns(bars, actions_of([(ex, "delisting", ratio, cash, target)])).row(0, named=True)
        assert (row["last_date"], row["last_close"], row["final_value"]) == (last, 50.0, value)
        assert row["final_return"] == (None if value is None else pytest.approx(value / 50 - 1))


def test_a_delisting_for_stock_valued_twice_is_valued_once():
    ex = START + timedelta(days=3)
    actions = actions_of([(ex, "delisting", 0.5, 5.0, "NOVA"), (START, "dividend", 1.0, 0.1)])
    closes = bars_of({ex - timedelta(days=1): 80.0, ex: 81.0}, "NOVA")
    once = value_delistings(actions, closes)
    assert once.filter(kind="delisting").select("ratio", "cash", "target").row(0) == (1.0, 45.0, None)
    assert value_delistings(once, closes).equals(once)


def test_a_share_that_never_traded_has_no_final_return():
    assert final_returns(bars_of({START: 1.0}, "NOVA"), actions_of([(START, "delisting", 1.0, 5.0)])).is_empty()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_value_that_was_learnt_late_is_in_no_earlier_table(convention):
    ex = START + timedelta(days=3)
    parent = bars_of({START + timedelta(days=n): 100.0 if n < 3 else 60.0 for n in range(8)})
    bars = pl.concat([parent, bars_of({ex + timedelta(days=2): 40.0}, "NOVA")])
    placed = place_events(actions_of([(ex, "spin_off", 1.0, 0.0, "NOVA"), (ex, "dividend", 1.0, 1.0)]), bars)
    seen = [cumulative(placed, convention, ex + timedelta(days=n))["total_return_factor"].item() for n in (0, 1, 2, 3)]
    paid, handed_out = {"prev_close": (0.99, 0.59), "ex_close": (60 / 61, 60 / 101)}[convention]
    assert seen == pytest.approx([paid, paid, handed_out, handed_out])
    assert cumulative(placed, convention)["total_return_factor"].item() == seen[-1]


def test_a_spin_off_that_one_vendor_values_and_another_does_not_counts_once():
    ex = START + timedelta(days=2)
    told = actions_of([(ex, "spin_off", 0.5, 0.0, "NOVA"), (ex, "spin_off", 0.5, 21.0, "NOVA")])
    bars = pl.concat([bars_of({START: 100.0, ex: 80.0}), bars_of({ex: 40.0}, "NOVA")])
    assert place_events(told, bars)["cash"].to_list() == [21.0]
