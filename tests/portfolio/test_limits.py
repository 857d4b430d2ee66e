"Limits: what single names and whole books may not exceed, cut down and never up, each cut with its numbers."

import math
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.core.settings import load
from tradenb.portfolio.limits import Limits, limit, shrink
from tradenb.portfolio.weights import Context, context

weight = st.floats(-2, 2, allow_subnormal=False)
size = st.floats(0, 2, allow_subnormal=False)


def frame(symbols, weights):
    return pl.DataFrame(
        {
            "symbol": list(symbols),
            "predicted_return": [0.0] * len(symbols),
            "rank": range(1, len(symbols) + 1),
            "target_weight": weights,
        },
        schema_overrides={"rank": pl.Int32, "target_weight": pl.Float64},
    )


@st.composite
def situations(draw, free=False):
    n = draw(st.integers(1, 12))
    each = lambda values: np.array(draw(st.lists(values, min_size=n, max_size=n)))
    symbols = tuple(f"S{i:02d}" for i in range(n))
    listed = draw(st.integers(1, n))
    asked = each(weight)[:listed]
    held = np.zeros(n) if free else each(st.one_of(st.just(0.0), weight))
    tradable = np.ones(n, bool) if free else each(st.booleans())
    volume = each(st.one_of(st.just(float("nan")), st.floats(0, 1e8)))
    shares = st.just(0.0) if free else st.one_of(st.just(0.0), st.floats(0.01, 1))
    limits = Limits(
        draw(st.floats(0.01, 1)), draw(st.floats(0.05, 3)), draw(st.one_of(st.just(0.0), st.floats(0, 2))), draw(shares)
    )
    return frame(symbols[:listed], asked), Context(symbols, held, tradable, dollar_volume=volume), limits


def as_arrays(weights, ctx, table):
    "Weights asked for and given, in the order of the context."
    asked, given = (dict(frame.select("symbol", "target_weight").iter_rows()) for frame in (weights, table))
    return tuple(np.array([side.get(s, 0.0) for s in ctx.symbols]) for side in (asked, given))


@given(situations(free=True))
def test_from_nothing_held_every_limit_holds_and_no_weight_grows_or_turns(situation):
    weights, ctx, limits = situation
    asked, given = as_arrays(weights, ctx, limit(weights, ctx, limits, 1e6)[0])
    assert (np.abs(given) <= np.minimum(np.abs(asked), limits.max_position_share) + 1e-15).all()
    assert (given * asked >= 0).all()
    assert math.fsum(np.abs(given)) <= limits.max_gross * (1 + 1e-6)
    assert abs(math.fsum(given)) <= limits.max_net + 4e-6


@given(situations())
def test_no_order_exceeds_its_share_of_the_volume_and_none_names_what_cannot_be_traded(situation):
    weights, ctx, limits = situation
    _, given = as_arrays(weights, ctx, limit(weights, ctx, limits, 1e6)[0])
    change = np.abs(given - ctx.held)
    assert (given[~ctx.tradable] == ctx.held[~ctx.tradable]).all()
    if limits.max_volume_share:
        most = limits.max_volume_share * np.nan_to_num(ctx.dollar_volume) / 1e6
        assert (change <= most * (1 + 1e-12) + 1e-15).all()


@given(situations())
def test_weights_end_between_what_is_held_what_is_asked_and_nothing(situation):
    weights, ctx, limits = situation
    asked, given = as_arrays(weights, ctx, limit(weights, ctx, limits, 1e6)[0])
    low = np.minimum(np.minimum(asked, ctx.held), 0.0)
    high = np.maximum(np.maximum(asked, ctx.held), 0.0)
    assert ((given >= low - 1e-15) & (given <= high + 1e-15)).all()


@given(situations())
@settings(max_examples=300)
def test_asking_twice_changes_nothing(situation):
    weights, ctx, limits = situation
    once, _ = limit(weights, ctx, limits, 1e6)
    twice, _ = limit(once, ctx, limits, 1e6)
    one, two = as_arrays(once, ctx, twice)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-13)


@given(situations())
def test_exactly_the_names_that_were_cut_have_a_reason(situation):
    weights, ctx, limits = situation
    table, reasons = limit(weights, ctx, limits, 1e6)
    asked, given = as_arrays(weights, ctx, table)
    cut = {s for s, a, g in zip(ctx.symbols, asked, given, strict=True) if a != g}
    assert cut <= set(reasons)
    unreached = {s for s, why in reasons.items() if "reached=" in why}
    stuck_anyway = {s for s, free in zip(ctx.symbols, ctx.tradable, strict=True) if not free}
    assert set(reasons) - cut <= unreached | stuck_anyway


@given(situations(), st.randoms())
def test_the_cut_does_not_depend_on_the_order_of_rows_or_names(situation, random):
    weights, ctx, limits = situation
    order = list(range(len(ctx.symbols)))
    random.shuffle(order)
    other = Context(
        tuple(ctx.symbols[i] for i in order),
        ctx.held[order],
        ctx.tradable[order],
        dollar_volume=ctx.dollar_volume[order],
    )
    rows = list(range(weights.height))
    random.shuffle(rows)
    here, why = limit(weights, ctx, limits, 1e6)
    there, also = limit(weights[rows], other, limits, 1e6)
    assert here.sort("symbol").equals(there.sort("symbol")) and why == also


@given(st.lists(st.tuples(size, st.floats(0, 1)), min_size=1, max_size=15), st.floats(0, 4))
def test_shrinking_meets_the_sum_exactly_where_the_floors_allow_it(rows, most):
    sizes = np.array([s for s, _ in rows])
    floors = np.array([s * share for s, share in rows])
    less = shrink(sizes, floors, most)
    assert ((less >= floors) & (less <= sizes)).all()
    wanted = min(math.fsum(sizes), max(most, math.fsum(floors)))
    assert math.fsum(less) == pytest.approx(wanted, abs=1e-12) or math.fsum(sizes) <= most * (1 + 1e-6)


@pytest.mark.parametrize(
    ("limits", "asked", "expected", "reason"),
    [
        (Limits(0.10), [0.14, -0.05], [0.10, -0.05], "WEIGHT_CAPPED: max=0.1, asked=0.14"),
        (Limits(max_gross=0.1), [0.15, -0.05], [0.075, -0.025], "GROSS_CAPPED: max=0.1, asked=0.2"),
        (Limits(max_net=0.02), [0.15, -0.05], [0.07, -0.05], "NET_CAPPED: max=0.02, asked=0.1"),
        (Limits(max_volume_share=0.1), [0.15, -0.05], [0.10, -0.05], "VOLUME_CAPPED: max=0.1, asked=0.15"),
    ],
)
def test_each_limit_says_its_number_and_what_was_asked(limits, asked, expected, reason):
    ctx = context(["A", "B"], dollar_volume={"A": 1e6, "B": 1e6})
    table, reasons = limit(frame(["A", "B"], asked), ctx, limits, Decimal(1_000_000))
    assert table["target_weight"].to_list() == pytest.approx(expected, abs=1e-15)
    assert reasons["A"] == reason


def test_a_held_name_without_a_row_is_sold_no_faster_than_its_volume_allows():
    ctx = context(["A"], held={"Z": 0.30}, dollar_volume={"A": 1e9, "Z": 1e6})
    table, reasons = limit(frame(["A"], [0.5]), ctx, Limits(max_volume_share=0.1), 1_000_000)
    assert table.select("symbol", "target_weight").rows() == [("A", 0.5), ("Z", pytest.approx(0.2))]
    assert table["rank"].to_list() == [1, None]
    assert reasons == {"Z": "VOLUME_CAPPED: max=0.1, asked=-0.3"}


def test_what_cannot_be_sold_today_is_said_and_stops_new_positions():
    ctx = context(["A", "Z"], held={"Z": 1.5}, untradable=["Z"])
    table, reasons = limit(frame(["A", "Z"], [0.5, 1.5]), ctx, Limits(max_gross=1.0), 1_000_000)
    assert table["target_weight"].to_list() == [0.0, 1.5]
    assert "reached=1.5: the rest cannot be sold today" in reasons["A"]


def test_a_name_without_a_known_volume_is_not_traded():
    ctx = context(["A"], held={"A": 0.05}, dollar_volume={"A": float("nan")})
    table, reasons = limit(frame(["A"], [0.2]), ctx, Limits(max_volume_share=0.1), 1_000_000)
    assert table["target_weight"].to_list() == [0.05]
    assert reasons == {"A": "VOLUME_UNKNOWN: asked=0.15"}


def test_what_cannot_be_checked_is_refused():
    ctx = context(["A"])
    with pytest.raises(InputError, match="dollar volumes"):
        limit(frame(["A"], [0.1]), ctx, Limits(max_volume_share=0.1), 1_000_000)
    with pytest.raises(InputError, match="does not know: B"):
        limit(frame(["B"], [0.1]), ctx, Limits(), 1_000_000)
    with pytest.raises(InputError, match="not finite: A"):
        limit(frame(["A"], [float("nan")]), ctx, Limits(), 1_000_000)
    with pytest.raises(InputError, match="capital=0"):
        limit(frame(["A"], [0.1]), ctx, Limits(), 0)
    with pytest.raises(InputError, match="positive"):
        Limits(max_gross=-1)


def test_the_settings_give_their_limits():
    portfolio = load().portfolio
    assert Limits.of(portfolio).max_position_share == portfolio.max_position_share
    assert Limits.of(portfolio).max_gross == portfolio.max_gross


def test_the_rounding_of_an_optimiser_is_not_a_breach():
    asked = [1 + 1e-9, -1.0]
    table, reasons = limit(frame(["A", "B"], asked), context(["A", "B"]), Limits(2.0, 2.0, 0.0), 1_000_000)
    assert table["target_weight"].to_list() == asked
    assert reasons == {}
