"What a model may learn from, and what it must say about it, through training and the pages that show it."

from collections.abc import Callable
from datetime import date

import polars as pl
import pytest

from tests.trading.short_training import SHORT
from tradenb.core.clock import new_york
from tradenb.core.settings import Settings
from tradenb.market.actions import place_events
from tradenb.market.demo import simulate
from tradenb.market.lake import Lake, open_lake
from tradenb.market.universe import Liquidity, eligible
from tradenb.trading.modelling import survivorship_of, train_model
from tradenb.trading.pages.common import worst
from tradenb.trading.pages.report import universe_text
from tradenb.trading.pages.signals import SignalPage, findings
from tradenb.trading.stages import Signals

AS_OF = date(2023, 6, 30)
EVENING = new_york(AS_OF, 18)


@pytest.fixture
def lake(make_settings: Callable[..., Settings]) -> Lake:
    demo = simulate(symbols=24, start=date(2022, 1, 3), end=AS_OF, seed=5, bad_rows=0)
    lake = open_lake(make_settings())
    with lake.writing() as draft:
        draft.merge("bars", demo.truth)
        draft.merge("adjustments", place_events(demo.actions, demo.truth))
        draft.merge("universe", demo.universe)
        draft.record(AS_OF, "test", EVENING)
    return lake


def test_a_model_is_judged_only_where_the_settings_would_have_let_it_hold(make_settings, lake: Lake) -> None:
    chosen = make_settings(**SHORT, **{"universe.min_price": 40})
    bars = lake.read("bars", end=AS_OF)
    allowed = eligible(lake.read("universe"), bars, Liquidity(min_price=40))
    judged = train_model(chosen, lake.latest(), AS_OF, ()).predictions
    assert 0 < allowed.height < bars.height
    assert judged.join(allowed, on=["symbol", "date"], how="anti").is_empty()
    tested = allowed.filter(pl.col("date") >= judged["date"].min())
    assert judged.height == tested.height


def test_a_list_of_survivors_is_told_to_the_model_and_to_the_days_page(lake: Lake) -> None:
    assert survivorship_of(lake.latest()) is None
    assert universe_text(lake.latest()) == "with its history: those who left are on it"
    survivors = lake.read("universe").with_columns(has_history=False)
    with lake.writing() as draft:
        draft.merge("universe", survivors)
        draft.record(AS_OF, "test", EVENING)
    said = str(survivorship_of(lake.latest()))
    assert said.startswith("Survivorship: the symbols of 'demo' have no membership history")
    assert universe_text(lake.latest()) == said


def test_names_barred_by_the_settings_do_not_alarm_while_missing_ones_do() -> None:
    frame = pl.DataFrame(
        {"symbol": ["A", "B"], "predicted_return": [0.01, -0.01], "rank": [1, 2], "target_weight": [1.0, -1.0]}
    )
    for by_settings, verdict in ((True, "green"), (False, "amber")):
        left_out = pl.DataFrame({"symbol": ["C"], "reason": ["…"], "by_settings": [by_settings]})
        signals = Signals(frame, left_out, {"model_version": 1})
        page = SignalPage(signals, frame.with_columns(new=False), False, pl.DataFrame(), pl.DataFrame())
        assert worst([how for how, _ in findings(page, AS_OF)]) == verdict
