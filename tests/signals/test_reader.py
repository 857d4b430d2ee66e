"The reader never answers from an older lake than it was asked of, and works nothing out twice."

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core import calendar
from tradenb.core.errors import InputError
from tradenb.features.sets import feature_set
from tradenb.market.lake import Lake
from tradenb.portfolio.backtest import Morning, Plan, Run
from tradenb.portfolio.constructors import VolatilityScaled
from tradenb.portfolio.market import Market
from tradenb.signals.reader import MarketReader, Remembered, Tip, surroundings

from .conftest import AS_OF, House

FSET = feature_set("alpha158")


@pytest.fixture
def reader(house: House) -> MarketReader:
    return MarketReader(house.lake, house.settings.universe)


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 4))
def test_what_is_remembered_is_bounded_and_always_right(keys: list[int], limit: int) -> None:
    known: Remembered[int, int] = Remembered(limit)
    for key in keys:
        assert known.get(key, lambda key=key: key * key) == key * key
        assert len(known) <= limit


def test_many_who_ask_at_once_wait_for_one_result() -> None:
    known, made, all_there = Remembered[str, list[int]](8), [], threading.Barrier(8)

    def make() -> list[int]:
        made.append(1)
        threading.Event().wait(0.05)
        return [7]

    def ask(_: int) -> list[int]:
        all_there.wait()
        return known.get("day", make)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len(made) == 1 and all(answer is answers[0] for answer in answers)


def test_a_failure_is_told_and_not_remembered() -> None:
    known: Remembered[str, int] = Remembered(2)
    with pytest.raises(InputError):
        known.get("day", lambda: (_ for _ in ()).throw(InputError("no bars")))
    assert known.get("day", lambda: 3) == 3
    assert known.ready("other") is None


def test_weights_bound_what_is_kept_and_one_result_may_be_larger() -> None:
    known: Remembered[str, bytes] = Remembered(10, len)
    assert known.get("large", lambda: bytes(20)) == bytes(20)
    assert known.ready("large") == bytes(20)
    known.get("small", lambda: bytes(4))
    assert known.ready("large") is None and known.ready("small") == bytes(4)


def test_a_new_vintage_is_seen_by_the_next_question(house: House, reader: MarketReader) -> None:
    before = reader.view()
    assert reader.view() is before
    changed = house.bars.filter(pl.col("date") == AS_OF).with_columns(pl.col("close") * 1.25)
    house.write(changed)
    try:
        after = reader.view()
        assert after.vintage["bars"] > before.vintage["bars"]
        one, other = (reader.inputs(view, AS_OF, FSET) for view in (before, after))
        assert one.symbols == other.symbols and not np.array_equal(one.x, other.x, equal_nan=True)
        assert reader.inputs(reader.view(before.vintage), AS_OF, FSET) is one
    finally:
        house.write(house.bars.filter(pl.col("date") == AS_OF))


def test_a_lake_made_anew_is_not_taken_for_the_old_one(house: House, tmp_path) -> None:
    def write(bars: pl.DataFrame) -> None:
        with Lake(tmp_path / "lake").writing() as draft:
            draft.merge("bars", bars)
            draft.record(AS_OF, "test", house.clock.now())

    day = house.bars.filter(pl.col("date") == AS_OF)
    write(day.head(3))
    reader = MarketReader(Lake(tmp_path / "lake"), house.settings.universe)
    assert len(reader.view().index.first_bars) == 3
    tip = Tip.of(reader.lake.path("vintages"))
    assert tip is not None and tip.is_newest()
    (tmp_path / "lake").rename(tmp_path / "old")
    assert not tip.is_newest()
    write(day.head(4))
    assert not tip.is_newest()
    assert reader.newest().read("bars").height == 4


def test_nothing_is_warm_before_it_was_asked(house: House, reader: MarketReader) -> None:
    assert not reader.warm(None, FSET)
    view = reader.view()
    day = reader.inputs(view, AS_OF, FSET)
    assert not reader.warm(None, FSET)
    reader.membership(view, AS_OF)
    reader.around(view, day, frozenset(), {}, 1.0, 120)
    assert reader.warm(None, FSET) and reader.warm(AS_OF, FSET)
    assert not reader.warm(calendar.shift(AS_OF, -1), FSET)


def test_a_rule_is_told_what_the_backtest_tells_it_to_the_bit(house: House, reader: MarketReader) -> None:
    "Returns, traded values and sectors of the service's short tape and of the backtest's long one."
    view = reader.view()
    tape = Market.from_lake(house.lake.latest(), house.bars["date"].min(), AS_OF)
    day, t = reader.inputs(view, calendar.shift(AS_OF, -1), FSET), len(tape.dates) - 1
    scores = pl.DataFrame({"date": day.as_of, "symbol": day.symbols, "prediction": np.arange(len(day.symbols)) / 7})
    for sessions in (20, 120, 250):
        rule = replace(Plan(VolatilityScaled(3, 3, 0.1)), risk_sessions=sessions)
        needs = frozenset({"returns", "dollar_volume", "sectors"})
        object.__setattr__(rule, "constructor", type("Rule", (), {"needs": needs})())
        theirs = Morning(Run(scores, tape, rule), t).context
        ours = reader.around(view, day, needs, {}, theirs.cash, sessions)(day.symbols)
        assert ours.symbols == theirs.symbols and ours.sectors == theirs.sectors
        assert ours.returns.tobytes("A") == theirs.returns.tobytes("A")
        assert ours.returns.flags.c_contiguous == theirs.returns.flags.c_contiguous
        assert ours.dollar_volume.tobytes() == theirs.dollar_volume.tobytes()
        assert np.array_equal(ours.tradable, theirs.tradable) and np.array_equal(ours.held, theirs.held)


def test_a_name_delisted_on_the_next_session_cannot_be_traded(house: House, tmp_path) -> None:
    day = house.bars.filter(pl.col("date") <= AS_OF).tail(2000)
    gone, tomorrow = sorted(day.filter(date=AS_OF)["symbol"])[0], calendar.next_session(AS_OF)
    lake = Lake(tmp_path)
    with lake.writing() as draft:
        draft.merge("bars", day)
        ending = {"symbol": [gone], "ex_date": [tomorrow], "kind": ["delisting"], "ratio": [1.0], "cash": [12.5], "source": ["test"]}  # fmt: skip
        draft.merge("corporate_actions", pl.DataFrame(ending))
        draft.record(AS_OF, "test", house.clock.now())
    reader = MarketReader(lake, house.settings.universe)
    view = reader.view()
    known = reader.around(view, reader.inputs(view, AS_OF, FSET), frozenset(), {gone: 0.1}, 0.9, 20)([gone, "ZZZ"])
    assert known.tradable.tolist() == [False, True]


def test_a_name_held_that_was_never_seen_is_refused(house: House, reader: MarketReader) -> None:
    view = reader.view()
    with pytest.raises(InputError, match="unknown symbols held: NOPE"):
        reader.around(view, reader.inputs(view, AS_OF, FSET), frozenset(), {"NOPE": 0.1}, 0.9, 20)


def test_too_early_for_an_estimate_the_tape_begins_with_the_lake(house: House, reader: MarketReader) -> None:
    early = house.bars["date"].unique().sort()[5]
    assert surroundings(reader.view(), early, 120).returns.shape[1] == 6
