"The tape holds what was printed and what companies did, and what is known at a close comes from no later day."

from dataclasses import fields, replace
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from tradenb.core.errors import DataError, InputError
from tradenb.features.panel import Panel, random_panel
from tradenb.market.actions import ACTION_SCHEMA, adjust, final_returns
from tradenb.market.demo import simulate
from tradenb.market.lake import Lake
from tradenb.market.tables import TABLES
from tradenb.portfolio.market import SILENT, Known, Market, reference_price

DAYS = [date(2024, 6, d) for d in (3, 4, 5, 6, 7)]


def bars(closes: dict[str, list[float | None]], days=DAYS) -> pl.DataFrame:
    rows = [(s, d, c, c, 1000) for s, row in closes.items() for d, c in zip(days, row, strict=True) if c is not None]
    schema = {"symbol": pl.String, "date": pl.Date, "open": pl.Float64, "close": pl.Float64, "volume": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def action(symbol: str, day: date, kind: str, ratio: float = 1.0, cash: float = 0.0, target: str | None = None) -> dict:
    return {"symbol": symbol, "ex_date": day, "kind": kind, "ratio": ratio, "cash": cash, "declared_at": None, "source": "t", "target": target}  # fmt: skip


def events(*rows: dict) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ACTION_SCHEMA)


@pytest.fixture(scope="module")
def demo():
    return simulate(symbols=40, start=date(2018, 1, 2), end=date(2020, 12, 31))


def test_a_holders_return_is_that_of_the_adjusted_series(demo):
    market = Market.from_frames(demo.truth, demo.actions)
    known = Known(market)
    adjusted = Panel.from_bars(adjust(demo.truth, demo.actions, "total_return", "ex_close"))
    close = adjusted.fields["close"].astype(float)
    theirs = close[:, 1:] / close[:, :-1] - 1
    both = np.isfinite(theirs) & np.isfinite(known.returns[:, 1:])
    assert both.sum() > 20_000
    np.testing.assert_allclose(known.returns[:, 1:][both], theirs[both], atol=3e-7)


def test_a_delisting_pays_its_final_value(demo):
    market, told = Market.from_frames(demo.truth, demo.actions), final_returns(demo.truth, demo.actions)
    known = Known(market)
    assert told.height
    for symbol, ex_date, gain in told.select("symbol", "ex_date", "final_return").iter_rows():
        row, column = market.symbols.index(symbol), market.dates.tolist().index(ex_date)
        assert known.returns[row, column] == pytest.approx(gain)
        assert np.isnan(known.marks[row, column:]).all()


def test_splits_and_cash_of_one_day_are_told_in_the_final_shares():
    market = Market.from_frames(
        bars({"A": [100, 100, 49, 49, 49]}),
        events(action("A", DAYS[2], "split", 2.0), action("A", DAYS[2], "dividend", cash=1.0)),
    )
    assert (market.ratio[0, 2], market.cash[0, 2]) == (2.0, 1.0)
    assert Known(market).returns[0, 2] == pytest.approx(0.0)


def test_an_event_on_a_day_without_session_acts_on_the_next():
    days = [date(2024, 6, 7), date(2024, 6, 10)]
    market = Market.from_frames(bars({"A": [10, 5]}, days), events(action("A", date(2024, 6, 8), "split", 2.0)))
    assert market.ratio.tolist() == [[1.0, 2.0]]


def test_a_spin_off_pays_its_value_on_the_day_it_is_known():
    market = Market.from_frames(
        bars({"A": [100, 90, 90, 90, 90], "B": [None, None, 20, 20, 20]}),
        events(action("A", DAYS[1], "spin_off", ratio=0.5, target="B")),
    )
    assert market.cash[0].tolist() == [0, 0, 10, 0, 0]


def test_a_merger_for_shares_pays_what_they_closed_at_and_an_unknown_value_the_own_last_close():
    market = Market.from_frames(
        bars({"A": [10, 11, None, None, None], "B": [50, 52, 60, 60, 60], "C": [7, 8, None, None, None]}),
        events(action("A", DAYS[2], "delisting", ratio=0.25, cash=1.0, target="B"), action("C", DAYS[2], "delisting", ratio=1.0, target="C")),
    )  # fmt: skip
    assert market.final[[0, 2], 2].tolist() == [14.0, 8.0]


def test_a_silent_symbol_is_written_off_at_its_last_close_after_so_many_sessions():
    n = SILENT + 5
    days = np.busday_offset("2024-01-02", np.arange(n)).tolist()
    gone = [10.0, 12.0] + [None] * (n - 2)
    market = Market.from_frames(bars({"A": gone, "B": [1.0] * n}, days), sessions=days)
    assert np.flatnonzero(np.isfinite(market.final[0])).tolist() == [1 + SILENT + 1]
    assert market.final[0, 2 + SILENT] == 12.0
    before = Market.from_frames(
        bars({"A": gone[: 2 + SILENT], "B": [1.0] * (2 + SILENT)}, days[: 2 + SILENT]), sessions=days[: 2 + SILENT]
    )
    assert np.isnan(before.final).all()


def test_what_is_known_at_a_close_does_not_change_with_later_bars(demo):
    market = Market.from_frames(demo.truth, demo.actions, demo.universe)
    known, day = Known(market), date(2019, 5, 6)
    past = market.until(day)
    n = len(past.dates)
    then = Known(past)
    for name in ("marks", "returns", "overnight", "volatility", "dollar_volume"):
        np.testing.assert_array_equal(getattr(then, name), getattr(known, name)[:, :n])


def test_the_frame_cut_short_is_the_tape_cut_short(demo):
    day = date(2019, 5, 6)
    cut = Market.from_frames(demo.truth, demo.actions, demo.universe).until(day)
    known = demo.actions.filter(pl.col("ex_date") <= day)
    short = Market.from_frames(demo.truth.filter(pl.col("date") <= day), known, demo.universe)
    rows = [cut.symbols.index(s) for s in short.symbols]
    for f in ("open", "close", "volume", "ratio", "cash", "final", "sector"):
        np.testing.assert_array_equal(getattr(short, f), getattr(cut, f)[rows])


def test_sectors_follow_the_stays_of_the_universe():
    stays = pl.DataFrame(
        [("A", DAYS[0], DAYS[1], "Energy"), ("A", DAYS[2], None, "Utilities")],
        schema={"symbol": pl.String, "start": pl.Date, "end": pl.Date, "sector": pl.String},
        orient="row",
    )
    market = Market.from_frames(bars({"A": [1.0] * 5, "B": [1.0] * 5}), None, stays)
    assert market.sector is not None
    assert [market.sectors[c] for c in market.sector[0]] == ["Energy"] * 2 + ["Utilities"] * 3
    assert market.sector[1].tolist() == [-1] * 5


def test_the_lake_gives_the_tape_that_its_tables_give(tmp_path, demo):
    start, end = date(2018, 1, 2), date(2020, 12, 31)
    wanted = sorted(
        {*demo.actions.filter(pl.col("kind") == "delisting")["symbol"], *demo.truth["symbol"].unique().sort()[:5]}
    )
    some = demo.truth.filter(pl.col("symbol").is_in(wanted))
    acts = demo.actions.filter(pl.col("symbol").is_in(wanted))
    lake = Lake(tmp_path / "lake")
    with lake.writing(5) as draft:
        from tradenb.market.actions import place_events

        draft.merge("bars", some.select(TABLES["bars"].schema.keys()).cast(dict(TABLES["bars"].schema)))
        draft.merge("corporate_actions", acts)
        draft.merge("adjustments", place_events(acts, some))
        draft.merge("universe", demo.universe.filter(pl.col("symbol").is_in(wanted)))
        draft.record(end, "test", datetime(2021, 1, 4, 12, tzinfo=UTC))
    ours = Market.from_lake(lake, start, end)
    theirs = Market.from_frames(some, acts, demo.universe)
    assert (ours.symbols, ours.sectors) == (theirs.symbols, tuple(sorted(set(theirs.sectors) & set(ours.sectors))))
    for f in ("open", "close", "volume", "ratio", "cash", "final"):
        np.testing.assert_array_equal(getattr(ours, f), getattr(theirs, f))
    assert Market.from_lake(lake, start, end, wanted[:2]).symbols == tuple(wanted[:2])


def test_a_panel_is_taken_as_it_is():
    panel = random_panel(10, 60, 3)
    market = Market.from_panel(panel)
    np.testing.assert_array_equal(market.close.astype(np.float32), panel.fields["close"])
    assert (market.ratio == 1).all() and not market.cash.any()


def test_parts_of_a_tape_are_the_same_tape():
    market = Market.from_panel(random_panel(10, 60, 3))
    assert market.select(["S0004", "S0002"]).symbols == ("S0002", "S0004")
    np.testing.assert_array_equal(market.select(["S0004"]).close[0], market.close[4])
    assert market.since(market.dates[10]).until(market.dates[20]).shape == (10, 11)
    with pytest.raises(InputError, match="ZZZ"):
        market.select(["ZZZ"])


def test_nonsense_is_refused():
    with pytest.raises(DataError, match="two bars"):
        Market.from_frames(pl.concat([bars({"A": [1.0] * 5})] * 2))
    with pytest.raises(DataError, match="not positive"):
        Market.from_frames(bars({"A": [1.0, 0.0, 1.0, 1.0, 1.0]}))
    with pytest.raises(DataError, match="2024-06-08"):
        Market.from_frames(bars({"A": [1.0] * 2}, [date(2024, 6, 7), date(2024, 6, 8)]))
    with pytest.raises(DataError, match="no bars"):
        Market.from_frames(bars({}))
    market = Market.from_panel(random_panel(3, 20, 3))
    with pytest.raises(InputError, match="shape"):
        replace(market, close=market.close[:2])
    with pytest.raises(InputError, match="sorted"):
        replace(market, symbols=market.symbols[::-1])
    assert {f.name for f in fields(market)} >= {"open", "close", "volume", "ratio", "cash", "final"}


def test_the_reference_price_is_the_last_close_in_the_trade_dates_shares():
    assert reference_price(400.0, 4.0) == Decimal("100.0")
    assert reference_price(10.0, 3.0) == Decimal("3.333333")
    assert [reference_price(x) for x in (float("nan"), 0.0, float("inf"))] == [None] * 3


@pytest.mark.parametrize("sessions", [7, 8, 9])
def test_a_tape_with_as_many_symbols_as_sessions_is_not_turned_on_its_side(sessions):
    market = Market.from_panel(random_panel(8, 40, 3, suspended=0.0)).until(np.datetime64("2018-03-01"))
    cut = market.until(market.dates[sessions - 1])
    value = np.nan_to_num(cut.close * cut.volume)
    expected = [[np.median(row[: t + 1]) for t in range(sessions)] for row in value]
    np.testing.assert_allclose(Known(cut).dollar_volume, expected)
