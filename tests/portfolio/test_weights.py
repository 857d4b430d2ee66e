"Weights: groups that sum to one and minus one, an order that any machine repeats."

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.portfolio.weights import LongOnly, LongShort, context, long_short, normalise, slope

values = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=60)


def day(values):
    return pl.DataFrame({"symbol": [f"S{i:02d}" for i in range(len(values))], "predicted_return": values})


@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2, max_size=60, unique=True), st.floats(1e-3, 1e3)
)
def test_normalised_predictions_have_mean_zero_and_the_stated_spread(values, scale):
    if np.std(values) < 1e-6:
        return
    x = normalise(np.array(values) * scale)
    assert abs(x.mean()) < 1e-12
    assert x.std() == pytest.approx(0.02)
    assert (np.diff(x[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize("bad", [[], [0.5], [0.1, 0.1, 0.1], [0.1, float("nan")], [0.1, float("inf")]])
def test_predictions_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(InputError):
        normalise(np.array(bad))


@given(values, st.data())
def test_longs_sum_to_one_and_shorts_to_minus_one(values, data):
    top = data.draw(st.integers(0, len(values)))
    bottom = data.draw(st.integers(0 if top else 1, len(values) - top)) if top < len(values) else 0
    weights = long_short(day(values), top, bottom)["target_weight"].to_numpy()
    assert weights[weights > 0].sum() == pytest.approx(1.0 if top else 0.0)
    assert weights[weights < 0].sum() == pytest.approx(-1.0 if bottom else 0.0)
    assert len(set(weights[weights > 0])) <= 1


@given(values, st.randoms())
def test_the_portfolio_does_not_depend_on_the_order_of_the_rows(values, random):
    rows = day(values).rows()
    random.shuffle(rows)
    shuffled = pl.DataFrame(rows, schema=day(values).schema, orient="row")
    assert long_short(shuffled, 1, 1).equals(long_short(day(values), 1, 1))


@given(values)
def test_no_long_is_predicted_below_a_short(values):
    weights = long_short(day(values), 1, 1)
    longs, shorts = (weights.filter(sign * pl.col("target_weight") > 0)["predicted_return"] for sign in (1, -1))
    assert longs.min() >= shorts.max()


@pytest.mark.parametrize(
    ("top", "bottom", "message"),
    [(3, 3, r"3 \+ bottom_n=3 = 6 of only 5"), (6, 0, "too few symbols: 5"), (0, 0, "not both 0"), (-1, 2, "top_n=-1")],
)
def test_impossible_groups_are_refused_with_their_numbers(top, bottom, message):
    with pytest.raises(InputError, match=message):
        long_short(day([0.1, 0.2, 0.3, 0.4, 0.5]), top, bottom)


def test_a_symbol_given_twice_is_refused():
    with pytest.raises(InputError, match="twice: A"):
        long_short(pl.DataFrame({"symbol": ["A", "A"], "predicted_return": [0.1, 0.2]}), 1, 1)


# --- the plain constructors


def test_the_constructor_gives_the_functions_values_to_the_last_bit():
    predictions = day([0.3, 0.1, -0.2, 0.05, 0.0, 0.7])
    table = LongShort(2, 1)(predictions, context(predictions["symbol"]))
    assert table.drop("reason").equals(long_short(predictions, 2, 1))


@given(st.integers(1, 50))
def test_falling_weights_sum_to_one_and_fall_by_equal_steps(names):
    weights = slope(names)
    assert weights.sum() == pytest.approx(1)
    assert np.diff(weights) == pytest.approx(-weights[-1])


def test_a_held_name_without_a_row_is_closed_and_one_that_cannot_be_traded_stays_at_the_end():
    predictions = day([0.3, 0.1, -0.2])
    now = context(predictions["symbol"], held={"Y": 0.2, "Z": -0.1}, untradable=["Z"])
    table = LongShort(1, 1)(predictions, now)
    assert table["symbol"].to_list() == ["S00", "S01", "S02", "Z"]
    assert table.row(3) == ("Z", None, None, -0.1, "NOT_TRADABLE: held=-0.1")
    assert table["target_weight"].to_list() == pytest.approx([1, 0, -0.9, -0.1])


def test_an_overfull_side_gets_nothing_new():
    predictions = day([0.3, 0.1, -0.2])
    now = context(predictions["symbol"], held={"Z": 1.2}, untradable=["Z"])
    assert LongOnly(1)(predictions, now)["target_weight"].to_list() == [0, 0, 0, 1.2]


def test_what_is_not_said_of_a_name_is_unknown():
    now = context(
        ["B", "A"], held={"C": 0.1, "D": 0.0}, sectors={"A": "X"}, returns={"A": [0.1, 0.2]}, dollar_volume={"B": 5.0}
    )
    assert now.symbols == ("A", "B", "C")
    assert now.sectors == ("X", None, None)
    np.testing.assert_array_equal(now.returns, [[0.1, np.nan, np.nan], [0.2, np.nan, np.nan]])
    np.testing.assert_array_equal(now.dollar_volume, [np.nan, 5.0, np.nan])
