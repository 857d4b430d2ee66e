"""Labels: the return that can be traded, from the two prices it names and no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import ConfigError, InputError
from tradenb.core.settings import load
from tradenb.features.engine import compute
from tradenb.features.labels import PRICES, excess, label, label_expression, ranked, reach, standardised
from tradenb.features.panel import Panel, random_panel
from tradenb.features.processors import Peers
from tradenb.features.sets import FeatureSet

HORIZONS = st.integers(1, 12)


@given(HORIZONS, st.sampled_from(["open", "close"]))
def test_the_label_is_the_return_from_the_next_price_to_the_one_a_horizon_later(horizon: int, price: str) -> None:
    panel = random_panel(3, 40, 5)
    x, y = panel.fields[price], label(panel, horizon, price)
    for t in range(40 - reach(horizon)):
        expected = np.where(panel.listed[:, t], x[:, t + 1 + horizon] / x[:, t + 1] - np.float32(1), np.nan)
        np.testing.assert_array_equal(y[:, t], expected)
    assert np.isnan(y[:, 40 - reach(horizon) :]).all()


@settings(deadline=None)
@given(HORIZONS, st.integers(0, 25))
def test_no_other_day_changes_a_label(horizon: int, t: int) -> None:
    panel = random_panel(3, 40, 6)
    used = np.isin(np.arange(40), [t + 1, t + 1 + horizon])
    other = {f: np.where(used, x, x * np.float32(3)) for f, x in panel.fields.items()}
    changed = Panel(panel.symbols, panel.dates, other, panel.listed)
    assert label(panel, horizon)[:, t].tobytes() == label(changed, horizon)[:, t].tobytes()


@given(st.integers(0, 14), HORIZONS)
def test_a_panel_too_short_for_the_horizon_has_no_labels(sessions: int, horizon: int) -> None:
    y = label(random_panel(2, 14, 1).tail(sessions), horizon)
    assert y.shape == (2, sessions) and y.dtype == np.float32
    assert np.isnan(y[:, max(0, sessions - reach(horizon)) :]).all()


@pytest.mark.parametrize(
    ("horizon", "price", "message"), [(0, "close", "expected at least 1"), (1, "vwap", "expected one of open, close")]
)
def test_a_label_that_cannot_be_traded_is_refused(horizon: int, price: str, message: str) -> None:
    for ask in (lambda: label(random_panel(1, 5, 1), horizon, price), lambda: label_expression(horizon, price)):
        with pytest.raises(InputError, match=message):
            ask()


@given(HORIZONS, st.sampled_from(["open", "close"]))
def test_the_label_is_what_the_engine_makes_of_its_expression(horizon: int, price: str) -> None:
    panel = random_panel(3, 40, 8, suspended=0.1)
    asked = FeatureSet.of("any", {"Y": label_expression(horizon, price)})
    assert label(panel, horizon, price).tobytes() == compute(panel, asked).values[0].tobytes()
    assert reach(horizon) == asked.ahead == 1 + horizon


@pytest.mark.parametrize(("price", "trade_at"), [("open", "close"), ("close", "open")])
def test_settings_that_train_on_one_auction_and_trade_in_the_other_are_refused(price: str, trade_at: str) -> None:
    with pytest.raises(ConfigError, match=f"label.price={price} does not match execution.trade_at={trade_at}"):
        load({"label.price": price, "execution.trade_at": trade_at}, env={})
    assert load({"label.price": price, "execution.trade_at": price}, env={}).label.price in PRICES


def test_excess_returns_of_a_day_add_up_to_nothing() -> None:
    y = label(random_panel(20, 60, 3, suspended=0.1))
    over = excess(y)
    days = np.isfinite(y).any(axis=0)
    np.testing.assert_allclose(np.nansum(over, axis=0)[days], 0, atol=1e-5)
    np.testing.assert_allclose(over[:, days], y[:, days] - _mean(y[:, days]), atol=1e-6)


def _mean(y: np.ndarray) -> np.ndarray:
    return np.nansum(y, axis=0) / np.isfinite(y).sum(axis=0)


def test_excess_is_over_the_sector_where_sectors_are_given() -> None:
    y = np.float32([[0.01], [0.03], [0.10], [0.20]])
    over = excess(y, Peers(np.ones((4, 1), bool), np.array([0, 0, 1, 1])[:, None]))
    np.testing.assert_allclose(over[:, 0], [-0.01, 0.01, -0.05, 0.05], atol=1e-7)


@pytest.mark.parametrize("relative", [excess, standardised, ranked])
def test_a_relative_label_knows_no_other_day_and_no_one_who_is_no_peer(relative) -> None:
    y = label(random_panel(12, 50, 4, suspended=0.1))
    mask = np.isfinite(y) & (np.arange(12) != 5)[:, None]
    whole = relative(y, Peers(mask))
    assert np.isnan(whole[~mask]).all()
    for t in (0, 20, 40):
        other = y * np.float32(7)
        other[:, t] = y[:, t]
        other[5, t] = 99
        assert (
            np.ascontiguousarray(relative(other, Peers(mask))[:, t]).tobytes()
            == np.ascontiguousarray(whole[:, t]).tobytes()
        )


def test_a_ranked_label_minds_no_outlier() -> None:
    y = label(random_panel(12, 50, 4, suspended=0))
    wild = y.copy()
    at = np.nanargmax(y[:, :40], axis=0)
    wild[at, np.arange(40)] = 1e6
    np.testing.assert_array_equal(ranked(wild), ranked(y))
