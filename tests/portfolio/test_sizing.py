"Orders lead exactly from what is held to what is wanted, within the cap, sells first."

from dataclasses import FrozenInstanceError
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.portfolio.sizing import size_orders

SYMBOLS = [f"S{i}" for i in range(8)]
prices = st.decimals("0.01", "5000", places=2)
whole = st.integers(-500, 500).map(Decimal)
capitals = st.decimals("1000", "10000000", places=2)
caps = st.decimals("0.01", "1", places=2)
weights = st.one_of(st.just(0.0), st.floats(-1, 1, allow_nan=False))


@st.composite
def mornings(draw, positions=whole, fractional=st.just(False)):
    named = draw(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=1))
    frame = pl.DataFrame(
        {
            "symbol": named,
            "predicted_return": [0.01] * len(named),
            "rank": list(range(1, len(named) + 1)),
            "target_weight": [draw(weights) for _ in named],
        },
        schema_overrides={"target_weight": pl.Float64},
    )
    return {
        "weights": frame,
        "prices": {s: draw(prices) for s in SYMBOLS},
        "positions": {s: draw(positions) for s in draw(st.lists(st.sampled_from(SYMBOLS), unique=True))},
        "capital": draw(capitals),
        "max_position_share": draw(caps),
        "fractional": draw(fractional),
    }


def fill(positions, plan):
    "The positions after all orders are filled in the order given; also checks that none crosses zero."
    after = dict(positions)
    for o in (row for row in plan if row.side):
        before = after.get(o.symbol, Decimal(0))
        after[o.symbol] = before + (o.qty if o.side == "buy" else -o.qty)
        assert before * after[o.symbol] >= 0, "an order may not cross zero"
    return after


@given(mornings(fractional=st.booleans()))
def test_filling_all_orders_reaches_the_targets_within_the_cap(morning):
    plan = size_orders(**morning)
    after = fill(morning["positions"], plan)
    for row in plan:
        assert after.get(row.symbol, 0) == row.target_qty
        limit = morning["max_position_share"] * morning["capital"]
        assert abs(row.target_qty) * morning["prices"][row.symbol] <= limit
        wanted = Decimal(repr(row.target_weight)) * morning["capital"]
        assert abs(row.target_qty) * morning["prices"][row.symbol] <= abs(wanted)
        assert row.target_qty * wanted >= 0
        short_of = min(limit, abs(wanted)) - abs(row.target_qty) * morning["prices"][row.symbol]
        assert short_of < morning["prices"][row.symbol]


@given(mornings(fractional=st.booleans()))
def test_a_second_plan_after_the_fills_is_empty(morning):
    after = fill(morning["positions"], size_orders(**morning))
    assert [row for row in size_orders(**{**morning, "positions": after}) if row.side] == []


@given(mornings())
def test_sells_come_before_buys_and_the_closing_half_of_a_flip_before_its_opening(morning):
    orders = [row for row in size_orders(**morning) if row.side]
    assert [o.side for o in orders] == sorted((o.side for o in orders), reverse=True)
    for symbol in {o.symbol for o in orders}:
        assert [o.leg for o in orders if o.symbol == symbol] in ([0], [0, 1])


@given(mornings())
def test_every_name_comes_out_with_a_reason_and_what_is_held_beyond_the_signals_is_closed(morning):
    plan = size_orders(**morning)
    held = {s for s, q in morning["positions"].items() if q}
    assert {row.symbol for row in plan} == set(morning["weights"]["symbol"]) | held
    assert all(row.reason and (row.qty > 0) == (row.side is not None) for row in plan)
    assert all(row.target_qty == 0 for row in plan if row.rank is None)


@given(mornings(positions=st.decimals("-500", "500", places=3)))
def test_whole_mode_never_sends_a_fraction_and_ends_within_a_share(morning):
    plan = size_orders(**morning)
    after = fill(morning["positions"], plan)
    assert all(row.qty == row.qty.to_integral_value() for row in plan)
    for row in plan:
        wanted = max(-1, min(1, Decimal(repr(row.target_weight)) * morning["capital"]))
        if not wanted:
            assert abs(after.get(row.symbol, 0)) < 1


@given(mornings(fractional=st.just(True)))
def test_no_short_position_is_opened_with_a_fraction(morning):
    for row in size_orders(**morning):
        assert row.target_qty >= 0 or row.target_qty == row.target_qty.to_integral_value()


def one(weight, price="100", held="0", **kw):
    frame = pl.DataFrame({"symbol": ["KO"], "predicted_return": [0.01], "rank": [1], "target_weight": [weight]})
    given = {
        "prices": {"KO": Decimal(price)} if price else {},
        "positions": {"KO": Decimal(held)},
        "capital": Decimal(10_000),
    }
    return size_orders(frame, **{**given, **kw})


def test_a_long_to_short_flip_is_two_sells():
    legs = one(-0.5, held="30")
    assert [(o.leg, o.side, o.qty) for o in legs] == [(0, "sell", 30), (1, "sell", 50)]
    assert [o.reason for o in legs] == ["close long before the flip, rank 1", "open short, rank 1"]


def test_a_name_without_a_price_is_left_as_it_is_but_can_be_closed():
    (skipped,) = one(0.5, price=None, held="3")
    assert (skipped.side, skipped.target_qty, "no price" in skipped.reason) == (None, 3, True)
    (closed,) = one(0.0, price=None, held="3")
    assert (closed.side, closed.qty, closed.price) == ("sell", 3, None)


def test_the_cap_is_told_in_the_reason():
    (order,) = one(0.5, max_position_share=Decimal("0.1"))
    assert (order.qty, order.reason) == (10, "open long, rank 1 (capped at 1000.0)")


def test_a_target_under_one_share_is_skipped_with_the_numbers():
    (row,) = one(0.005)
    assert (row.side, row.reason) == (None, "skipped: 50.00 buys no whole share at 100")


@pytest.mark.parametrize(
    "bad", [{"capital": Decimal(0)}, {"max_position_share": Decimal(0)}, {"prices": {"KO": Decimal(0)}}]
)
def test_impossible_amounts_are_refused(bad):
    with pytest.raises(InputError):
        one(0.5, **bad)


def test_a_weight_that_is_not_finite_is_refused_by_name():
    with pytest.raises(InputError, match="KO"):
        one(float("nan"))


def test_a_plan_cannot_be_changed_afterwards():
    (order,) = one(0.5)
    with pytest.raises(FrozenInstanceError):
        order.qty = Decimal(1)
