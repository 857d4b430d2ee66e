"Costs are never negative, grow with what is traded, and are what the formulas say."

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.core.settings import load
from tradenb.portfolio.costs import Costs, charges, overnight, participation

rates = st.floats(0, 100)
terms = st.builds(
    Costs,
    commission_per_share=st.floats(0, 1),
    buy_bps=rates,
    sell_bps=rates,
    min_commission=st.floats(0, 20),
    half_spread_bps=rates,
    impact=st.floats(0, 3),
)
orders = st.lists(
    st.tuples(
        st.booleans(), st.floats(0, 1e6), st.floats(0.01, 1e4), st.one_of(st.floats(0, 0.2), st.just(math.nan)), st.floats(0, 1e8)
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


def columns(rows):
    return [np.array(c) for c in zip(*rows, strict=True)]


@given(terms, orders)
def test_every_charge_is_finite_and_not_negative_and_nothing_traded_costs_nothing(costs, rows):
    buys, qty, price, volatility, volume = columns(rows)
    found = charges(costs, buys, qty, price, volatility, volume)
    for part in (found.commission, found.spread, found.impact):
        assert np.isfinite(part).all() and (part >= 0).all()
        assert (part[qty == 0] == 0).all()


@given(terms, orders, st.floats(1, 3))
def test_more_shares_never_cost_less(costs, rows, more):
    buys, qty, price, volatility, volume = columns(rows)
    less = charges(costs, buys, qty, price, volatility, volume).total
    assert (charges(costs, buys, qty * more, price, volatility, volume).total >= less * (1 - 1e-12)).all()


@given(terms, orders, st.floats(0, 10))
def test_a_multiple_of_the_terms_is_a_multiple_of_every_charge(costs, rows, multiple):
    buys, qty, price, volatility, volume = columns(rows)
    once = charges(costs, buys, qty, price, volatility, volume)
    many = charges(costs.times(multiple), buys, qty, price, volatility, volume)
    for part in ("commission", "spread", "impact"):
        np.testing.assert_allclose(getattr(many, part), multiple * getattr(once, part), rtol=1e-12, atol=1e-12)


@given(terms, orders)
def test_each_order_is_priced_for_itself(costs, rows):
    together = charges(costs, *columns(rows)).total
    alone = [charges(costs, *columns([row])).total[0] for row in rows]
    assert together.tolist() == alone


def test_impact_grows_with_the_root_of_the_share_of_volume():
    costs = Costs(impact=1.0)
    bps = [charges(costs, True, q, 10.0, 0.02, 1e6).impact / (q * 10.0) for q in (1e4, 4e4)]
    assert bps == pytest.approx([0.02 * 0.1, 0.02 * 0.2])


def test_without_a_known_volume_an_order_is_charged_as_if_it_were_all_of_it():
    assert participation([5, 5, 0], [0, math.nan, 0]).tolist() == [1.0, 1.0, 0.0]


def test_commission_is_the_larger_of_rate_and_minimum():
    costs = Costs(commission_per_share=0.01, sell_bps=1, min_commission=1)
    found = charges(costs, [True, False, True], [10, 1000, 1000], [10.0, 10.0, 10.0]).commission
    assert found == pytest.approx([1.0, 11.0, 10.0])


def test_a_year_of_nights_costs_the_yearly_rate():
    assert sum(overnight(0.05, 1e6, 1) for _ in range(365)) == pytest.approx(50_000)
    assert overnight(0.05, -1e6, 3) < 0


def test_the_settings_give_the_terms_and_nonsense_is_refused():
    assert Costs.of(load().costs).half_spread_bps == load().costs.half_spread_bps
    assert Costs().free and not replace(Costs(), impact=0.1).free
    for bad in ({"impact": -0.1}, {"borrow_annual": math.nan}, {"cash_annual": math.inf}):
        with pytest.raises(InputError):
            Costs(**bad)
