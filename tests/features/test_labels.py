"""Labels: the return that can be traded, from the two prices it names and no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.features.labels import label, label_expression, reach
from tradenb.features.panel import Panel, random_panel

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
