"Signals are a function of the model and the panel: the same for a batch, a day and any order of names."

import numpy as np
import polars as pl
import pytest

from tradenb.core.errors import InputError
from tradenb.features.engine import compute
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.portfolio.weights import LongShort
from tradenb.signals.generator import generate


@pytest.fixture(scope="module")
def panel(house):
    return Panel.from_bars(house.bars)


@pytest.fixture(scope="module")
def model(house):
    return house.registry.load(house.versions[0])


@pytest.mark.parametrize("back", [0, 1, 20, 150])
def test_a_days_signals_rank_exactly_like_the_batch_over_all_history(panel, model, back):
    stop = len(panel.dates) - back
    block = compute(panel, feature_set("alpha158"))
    today = np.zeros(panel.shape, bool)
    today[:, stop - 1] = panel.traded[:, stop - 1]
    batch = pl.DataFrame({"symbol": block.keys(today)["symbol"], "raw": model.predict(block.matrix(today))})
    day = generate(model, panel.sessions_between(0, stop).tail(61), LongShort(3, 3)).signals
    assert batch.sort(["raw", "symbol"], descending=[True, False])["symbol"].to_list() == day["symbol"].to_list()
    scaled = (batch["raw"] - batch["raw"].mean()) / batch["raw"].std(ddof=0) * 0.02
    expected = batch.with_columns(scaled.alias("scaled")).join(day, on="symbol")
    assert np.allclose(expected["scaled"], expected["predicted_return"], atol=1e-15)


def test_bars_after_the_day_change_nothing(panel, model):
    cut = len(panel.dates) - 30
    now = generate(model, panel.sessions_between(0, cut), LongShort(3, 3))
    assert generate(model, panel.until(panel.dates[cut - 1]), LongShort(3, 3)).signals.equals(now.signals)


def test_the_order_and_repetition_of_the_names_asked_for_do_not_matter(panel, model):
    names = list(panel.symbols[:12])
    assert generate(model, panel, LongShort(3, 3), names[::-1] + names[:2]).signals.equals(
        generate(model, panel, LongShort(3, 3), names).signals
    )


def test_every_name_asked_for_is_ranked_or_left_out_with_a_reason(panel, model):
    found = generate(model, panel, LongShort(3, 3), [*panel.symbols, "NEVER"])
    assert set(found.signals["symbol"]) | set(found.left_out["symbol"]) == {*panel.symbols, "NEVER"}
    assert not set(found.signals["symbol"]) & set(found.left_out["symbol"])
    assert found.left_out["reason"].str.len_chars().min() > 0


def test_a_day_on_which_nothing_traded_is_refused(panel, model):
    with pytest.raises(InputError, match="no bar of any"):
        generate(model, panel, LongShort(3, 3), ["NEVER"])


def test_an_empty_list_of_names_is_not_taken_for_all_of_them(panel, model):
    with pytest.raises(InputError, match="no symbols to rank"):
        generate(model, panel, LongShort(3, 3), [])


@pytest.mark.parametrize(("names", "message"), [(1, "too few symbols: 1"), (5, r"3 \+ bottom_n=3 = 6 of only 5")])
def test_too_few_names_are_refused_with_the_numbers(panel, model, names, message):
    traded = [s for s, t in zip(panel.symbols, panel.traded[:, -1], strict=True) if t]
    with pytest.raises(InputError, match=message):
        generate(model, panel, LongShort(3, 3), traded[:names])
