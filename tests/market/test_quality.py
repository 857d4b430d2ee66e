"The gate finds what is wrong, says why, loses nothing, and lets real moves pass."

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.clock import new_york
from tradenb.core.errors import InputError, QualityError
from tradenb.core.settings import Settings
from tradenb.market import quality
from tradenb.market.demo import simulate
from tradenb.market.lake import Lake
from tradenb.market.quality import (
    GateResult,
    Limits,
    Rule,
    data_docs,
    observe_rows,
    release,
    row_checks,
    run_gate,
    sample_bars,
    sequence_checks,
    suite,
    validate,
    waiting,
)
from tradenb.market.tables import TABLES

DAYS = sessions(date(2024, 1, 2), date(2024, 3, 28))
CLEAN = sample_bars(DAYS, symbols=12, seed=5)
NO_ACTIONS = pl.DataFrame(schema=TABLES["corporate_actions"].schema)
PRICES = ("open", "high", "low", "close")
HIT = (pl.col("symbol") == "S004") & (pl.col("date") == DAYS[30])


def change(where: pl.Expr = HIT, rows: pl.DataFrame = CLEAN, **to: pl.Expr) -> pl.DataFrame:
    return rows.with_columns(
        pl.when(where).then(value).otherwise(pl.col(name)).alias(name) for name, value in to.items()
    )


def scaled(by: float, where: pl.Expr = HIT, rows: pl.DataFrame = CLEAN) -> pl.DataFrame:
    return change(where, rows, **{p: pl.col(p) * by for p in PRICES})


def gate(rows: pl.DataFrame, as_of: date = DAYS[-1], actions: pl.DataFrame = NO_ACTIONS, **more: object) -> GateResult:
    return run_gate(rows, as_of, actions, Limits(), **more)  # type: ignore[arg-type]


def verdicts(result: GateResult) -> list[tuple[str, date, str]]:
    return result.quarantined.select("symbol", "date", "check").rows()


def event(symbol: str, day: date, kind: str, ratio: float = 1.0, cash: float = 0.0) -> pl.DataFrame:
    row = {"symbol": symbol, "ex_date": day, "kind": kind, "ratio": ratio, "cash": cash}
    return pl.DataFrame([row], schema=TABLES["corporate_actions"].schema)


def test_plausible_bars_pass_every_check() -> None:
    result = gate(CLEAN)
    assert set(result.table["verdict"]) == {"passed"}
    assert result.good.equals(CLEAN)


@pytest.mark.parametrize(
    ("to", "check", "says"),
    [
        ({"close": pl.lit(None)}, "missing", "no close"),
        ({"low": pl.lit(float("nan"))}, "missing", "no low"),
        ({"volume": pl.lit(None)}, "missing", "no volume"),
        ({"close": pl.lit(0.0)}, "price", "close 0.0"),
        ({"open": pl.lit(-3.0)}, "price", "open -3.0"),
        ({"high": pl.lit(float("inf"))}, "price", "high inf"),
        ({"vwap": pl.lit(-1.0)}, "price", "not a positive number"),
        ({"volume": pl.lit(-5)}, "volume", "volume is -5"),
        ({"high": pl.col("low") * 0.99}, "ohlc", "outside low–high"),
        ({"close": pl.col("high") * 1.01}, "ohlc", "outside low–high"),
    ],
)
def test_a_bad_value_is_quarantined_under_its_check_with_words(to: dict[str, pl.Expr], check: str, says: str) -> None:
    result = gate(change(**to))
    assert verdicts(result) == [("S004", DAYS[30], check)]
    assert says in result.quarantined["reason"][0]


@pytest.mark.parametrize(
    ("day", "check", "says"),
    [
        (date(2024, 2, 17), "session", "is no session"),
        (date(2024, 3, 29), "session", "is no session"),
        (date(2024, 4, 1), "future", "4 days ahead"),
        (date(2024, 3, 30), "session", "is no session"),
        (date(2999, 1, 1), "future", "days ahead"),
        (date(1900, 1, 1), "session", "is no session"),
    ],
)
def test_a_row_on_a_closed_or_future_day_is_quarantined(day: date, check: str, says: str) -> None:
    result = gate(pl.concat([CLEAN, CLEAN.filter(HIT).with_columns(pl.lit(day).alias("date"))]))
    assert verdicts(result) == [("S004", day, check)]
    assert says in result.quarantined["reason"][0]


def test_an_identical_copy_leaves_one_row_and_different_copies_leave_none() -> None:
    same = gate(pl.concat([CLEAN, CLEAN.filter(HIT)]))
    assert verdicts(same) == [("S004", DAYS[30], "duplicate")]
    assert same.good.equals(CLEAN)
    other = gate(pl.concat([CLEAN, scaled(1.001).filter(HIT)]))
    assert verdicts(other) == [("S004", DAYS[30], "duplicate")] * 2
    assert len(other.good.filter(HIT)) == 0


def test_a_gap_is_reported_and_nothing_is_quarantined() -> None:
    result = gate(CLEAN.filter(~HIT))
    assert verdicts(result) == []
    assert result.reported.select("symbol", "date", "check").rows() == [("S004", DAYS[31], "gap")]


def test_a_day_whose_row_is_bad_is_no_gap() -> None:
    assert gate(change(close=pl.lit(None))).reported.is_empty()


def test_short_gaps_pass_where_the_settings_allow_them() -> None:
    short = CLEAN.filter(~HIT)
    assert run_gate(short, DAYS[-1], NO_ACTIONS, Limits(max_gap_sessions=1)).reported.is_empty()


def test_a_day_without_trades_is_reported_and_stays() -> None:
    result = gate(change(volume=pl.lit(0)))
    assert verdicts(result) == []
    assert result.reported.select("symbol", "date", "check").rows() == [("S004", DAYS[30], "untraded")]


@given(first=st.integers(1, 40), length=st.integers(2, 20))
@settings(max_examples=6, deadline=None)
def test_a_bar_that_repeats_for_too_long_is_stuck_but_for_its_first_day(first: int, length: int) -> None:
    frozen = CLEAN.filter(pl.col("symbol") == "S004").row(first, named=True)
    run = (pl.col("symbol") == "S004") & pl.col("date").is_in(DAYS[first : first + length])
    result = gate(change(run, **{p: pl.lit(frozen[p]) for p in PRICES}))
    expected = DAYS[first + 1 : first + length] if length >= Limits().stuck_sessions else []
    assert verdicts(result) == [("S004", day, "stuck") for day in expected]


@given(at=st.integers(1, len(DAYS) - 2), by=st.sampled_from([0.01, 0.1, 0.6, 1.5, 10, 1000]))
@settings(max_examples=6, deadline=None)
def test_a_print_that_the_next_close_takes_back_is_bad_wherever_it_stands(at: int, by: float) -> None:
    result = gate(scaled(by, (pl.col("symbol") == "S004") & (pl.col("date") == DAYS[at])))
    assert verdicts(result) == [("S004", DAYS[at], "move")]
    assert "took it back" in result.quarantined["reason"][0]


SPELL = st.integers(
    1, len(DAYS) - 9
)  # of up to seven sessions, and two after it: a newest one that jumps back has no witness


@given(at=SPELL, stays=st.integers(1, 7), by=st.sampled_from([0.02, 0.2, 0.5, 2.0, 9.0, 1000.0]))
@settings(max_examples=10, deadline=None)
def test_a_print_that_stands_for_a_few_days_is_bad_on_each_of_them(at: int, stays: int, by: float) -> None:
    days = DAYS[at : at + stays]
    result = gate(scaled(by, (pl.col("symbol") == "S004") & pl.col("date").is_in(days)))
    if stays <= Limits().bad_print_sessions:
        assert verdicts(result) == [("S004", day, "move") for day in days]
        assert result.reported.is_empty()
    else:
        assert verdicts(result) == []
        assert result.reported["date"].to_list() == [days[0], DAYS[at + stays]]


def test_a_violent_day_that_the_next_open_confirms_is_no_bad_print() -> None:
    panic = change(open=pl.col("open") * 0.95, high=pl.col("high") * 0.96, low=pl.col("low") * 0.5, close=pl.col("close") * 0.55)  # fmt: skip
    next_day = (pl.col("symbol") == "S004") & (pl.col("date") == DAYS[31])
    relief = change(next_day, panic, open=pl.col("open") * 0.6, low=pl.col("low") * 0.58)
    result = gate(relief)
    assert verdicts(result) == []
    assert result.reported["date"].to_list() == [DAYS[30], DAYS[31]]  # the fall, and the way back


def test_a_drift_back_is_no_bad_print() -> None:
    levels = dict(zip(DAYS[30:36], (1.45, 1.40, 1.32, 1.22, 1.12, 1.04), strict=True))
    rows = CLEAN
    for day, level in levels.items():
        rows = scaled(level, (pl.col("symbol") == "S004") & (pl.col("date") == day), rows)
    result = gate(rows)
    assert verdicts(result) == []
    assert result.reported["date"].to_list() == [DAYS[30]]


def test_after_a_gap_a_price_may_have_gone_further() -> None:
    away = (pl.col("symbol") == "S004") & pl.col("date").is_between(DAYS[20], DAYS[29])
    fallen = scaled(0.5, (pl.col("symbol") == "S004") & (pl.col("date") >= DAYS[30]))
    assert gate(fallen).reported["check"].to_list() == ["lasting_move"]
    assert gate(fallen.filter(~away)).reported["check"].to_list() == ["gap"]


def walks(seed: int, crash_days: list[int]) -> pl.DataFrame:
    "Bars of random walks whose market falls by a third or more on some days, and bounces on others."
    rng = np.random.default_rng(seed)
    rows = sample_bars(DAYS, symbols=15, seed=seed)
    for day in crash_days:
        rows = scaled(float(rng.choice([0.55, 0.65, 1.5])), pl.col("date") >= DAYS[day], rows)
    return rows


@given(
    seed=st.integers(0, 10**6),
    crash_days=st.lists(st.integers(2, len(DAYS) - 2), max_size=3, unique=True),
    prints=st.dictionaries(
        st.integers(0, 14),
        st.tuples(st.integers(1, len(DAYS) - 7), st.integers(1, 5), st.sampled_from([0.05, 0.2, 4.0, 10.0, 500.0])),
        max_size=5,
    ),
)
@settings(max_examples=25, deadline=None)
def test_every_bad_print_is_found_and_no_crash_day_is(seed: int, crash_days: list[int], prints: dict) -> None:
    rows, planted = walks(seed, crash_days), set()
    for symbol, (at, stays, by) in prints.items():
        if any(abs(day - k) <= 1 for day in crash_days for k in (at, at + stays)):
            continue  # a print that begins or ends on a crash day is another move than the one planted
        name = f"S{symbol:03d}"
        rows = scaled(by, (pl.col("symbol") == name) & pl.col("date").is_in(DAYS[at : at + stays]), rows)
        planted |= {(name, day, "move") for day in DAYS[at : at + stays]}
    result = gate(rows)
    assert set(verdicts(result)) == planted
    assert result.reported.is_empty()


def test_a_fall_that_lasts_waits_one_session_and_is_then_only_reported() -> None:
    fallen = scaled(0.5, (pl.col("symbol") == "S004") & (pl.col("date") >= DAYS[30]))
    on_the_day = gate(fallen.filter(pl.col("date") <= DAYS[30]), DAYS[30])
    assert verdicts(on_the_day) == [("S004", DAYS[30], "move")]
    assert "no later session confirms" in on_the_day.quarantined["reason"][0]
    next_day = gate(fallen.filter(pl.col("date") <= DAYS[31]), DAYS[31])
    assert verdicts(next_day) == []
    assert next_day.reported.select("symbol", "date", "check").rows() == [("S004", DAYS[30], "lasting_move")]


def test_a_crash_of_the_whole_market_is_nobodys_bad_print() -> None:
    crash = scaled(0.6, pl.col("date") == DAYS[-1])
    assert verdicts(gate(crash)) == []
    lone = scaled(0.6, (pl.col("date") == DAYS[-1]) & (pl.col("symbol") == "S004"))
    assert verdicts(gate(lone)) == [("S004", DAYS[-1], "move")]


def test_a_fall_of_the_sector_explains_its_members() -> None:
    names = [f"S{i:03d}" for i in range(5)]
    sectors = pl.DataFrame({"symbol": names, "sector": "Energy"})
    fallen = scaled(0.6, (pl.col("date") == DAYS[-1]) & pl.col("symbol").is_in(names))
    assert verdicts(gate(fallen, sectors=sectors)) == []
    assert len(verdicts(gate(fallen))) == 5


@pytest.mark.parametrize(
    ("by", "kind", "ratio", "cash"),
    [
        (0.5, "split", 2.0, 0.0),
        (10.0, "split", 0.1, 0.0),
        (0.5, "special_dividend", 1.0, None),
        (0.5, "spin_off", 1.0, None),
    ],
)
def test_a_corporate_action_explains_a_move_even_on_the_newest_day(
    by: float, kind: str, ratio: float, cash: float | None
) -> None:
    where = (pl.col("symbol") == "S004") & (pl.col("date") >= DAYS[30])
    before = CLEAN.filter((pl.col("symbol") == "S004") & (pl.col("date") == DAYS[29]))["close"].item()
    action = event("S004", DAYS[30], kind, ratio, before / 2 if cash is None else cash)
    rows = scaled(by, where).filter(pl.col("date") <= DAYS[30])
    assert verdicts(gate(rows, DAYS[30], action)) == []
    assert verdicts(gate(rows, DAYS[30])) != []


def test_a_split_that_the_price_did_not_follow_is_reported() -> None:
    result = gate(CLEAN, actions=event("S004", DAYS[30], "split", 2.0))
    assert result.reported.select("symbol", "date", "check").rows() == [("S004", DAYS[30], "lasting_move")]


SPOILS = st.sampled_from(["null", "spike", "stand", "cross", "copy", "drop", "weekend"])


def spoil(rows: pl.DataFrame, kind: str, symbol: int, day: int) -> pl.DataFrame:
    where = (pl.col("symbol") == f"S{symbol:03d}") & (pl.col("date") == DAYS[day])
    if kind == "copy":
        return pl.concat([rows, rows.filter(where).with_columns(pl.col("volume") + 1)])
    if kind == "weekend":
        return pl.concat([rows, rows.filter(where).with_columns(pl.col("date") + timedelta(days=5))])
    if kind == "drop":
        return rows.filter(~where)
    several = (pl.col("symbol") == f"S{symbol:03d}") & pl.col("date").is_in(DAYS[day : day + 3])
    return {
        "null": change(where, rows, close=pl.lit(None)),
        "spike": scaled(10, where, rows),
        "stand": scaled(0.2, several, rows),
        "cross": change(where, rows, high=pl.col("low") * 0.9),
    }[kind]


@given(st.lists(st.tuples(SPOILS, st.integers(0, 11), st.integers(1, len(DAYS) - 1)), max_size=8), st.randoms())
@settings(max_examples=8, deadline=None)
def test_no_row_is_lost_and_the_order_of_delivery_does_not_matter(spoils: list, random: object) -> None:
    rows = CLEAN
    for kind, symbol, day in spoils:
        rows = spoil(rows, kind, symbol, day)
    result = gate(rows)
    together = pl.concat([result.good, result.quarantined.select(rows.columns)])
    assert together.sort(rows.columns).equals(rows.sort(rows.columns))
    mixed = gate(rows.sample(fraction=1, shuffle=True, seed=random.randint(0, 9999)))  # type: ignore[attr-defined]
    assert mixed.good.equals(result.good)
    assert sorted(verdicts(mixed)) == sorted(verdicts(result))


@given(st.lists(st.tuples(SPOILS, st.integers(0, 11), st.integers(30, len(DAYS) - 1)), max_size=6))
@settings(max_examples=6, deadline=None)
def test_a_few_weeks_of_context_judge_the_last_days_as_the_whole_history_does(spoils: list) -> None:
    rows = CLEAN
    for kind, symbol, day in spoils:
        rows = spoil(rows, kind, symbol, day)
    late = rows.filter(pl.col("date") >= DAYS[-10])
    context = rows.filter(pl.col("date").is_between(DAYS[-30], DAYS[-11]))
    near, whole = gate(late, context=context), gate(rows)
    assert verdicts(near) == [v for v in verdicts(whole) if v[1] >= DAYS[-10]]
    assert near.good.equals(whole.good.filter(pl.col("date") >= DAYS[-10]))


def test_too_many_bad_rows_stop_the_run_with_counts_and_a_first_example() -> None:
    bad = gate(change(pl.col("symbol") == "S004", volume=pl.lit(-1)))
    with pytest.raises(QualityError, match=r"volume 61; first S004 2024-01-02: volume is -1"):
        bad.require(Limits())
    assert bad.require(Limits(max_bad_share=0.1)) is bad


def test_a_handful_of_bad_rows_does_not_stop_a_small_delivery_but_all_bad_does() -> None:
    two = CLEAN.filter(pl.col("date") == DAYS[30], pl.col("symbol").is_in(["S003", "S004"]))
    assert len(gate(change(rows=two, volume=pl.lit(-1))).require(Limits()).good) == 1
    with pytest.raises(QualityError):
        gate(change(pl.lit(True), two, volume=pl.lit(-1))).require(Limits())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (CLEAN.drop("low"), "low is missing"),
        (CLEAN.cast({"close": pl.String}), "close is String"),
        (CLEAN.cast({"date": pl.String}), "date is String"),
    ],
)
def test_a_delivery_without_the_columns_of_bars_is_refused_whole(rows: pl.DataFrame, says: str) -> None:
    with pytest.raises(QualityError, match=says):
        gate(rows)


NUMBERS = st.sampled_from([None, float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-7, 5.0, 100.0, 101.0])
ODD_ROWS = st.lists(st.tuples(*[NUMBERS] * 4, st.sampled_from([None, -1, 0, 7]), NUMBERS), min_size=1, max_size=8)


@given(ODD_ROWS)
@settings(max_examples=8, deadline=None)
def test_a_rule_as_an_expression_breaks_where_great_expectations_breaks_it(odd: list[tuple]) -> None:
    days = {"symbol": pl.lit("S004"), "date": pl.Series(DAYS[: len(odd)])}
    values = pl.DataFrame(
        odd, schema=dict.fromkeys(PRICES, pl.Float64) | {"volume": pl.Int64, "vwap": pl.Float64}, orient="row"
    )
    rows = observe_rows(values.with_columns(**days), DAYS[-1])
    verdict = validate(rows, row_checks(Limits()), "agreement")  # raises when the two disagree
    for check in verdict.checks:
        broken = rows.filter(pl.any_horizontal(rule.broken() for rule in check.rules))["row"]
        assert broken.to_list() == verdict.failing[check.name].to_list(), check.name


class Deaf(Rule):
    "A rule whose expression is wrong."

    def broken(self) -> pl.Expr:
        return pl.lit(False).repeat_by(1).list.first() & pl.col(self.column).is_null()


def test_the_gate_stops_when_its_two_judges_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [quality.Check("volume", "volume is not negative", (Deaf("volume", 0),), pl.lit(""))]
    monkeypatch.setattr(quality, "row_checks", lambda limits: wrong)
    with pytest.raises(
        QualityError, match=r"check volume \(volume\) disagree: Great Expectations finds 1 rows, polars 0"
    ):
        gate(change(volume=pl.lit(-1)))


def test_great_expectations_own_results_are_kept_and_rendered_as_a_page_that_loads_nothing() -> None:
    results = gate(scaled(10)).results
    assert [one["success"] for one in results] == [True, False]
    assert all(one["statistics"]["evaluated_expectations"] for one in results)
    page = data_docs(results)
    assert "suspect_move" in page and "less than or equal to" in page
    assert not any(word in page for word in ("http://", "https://", "<script", "<link", "src="))


def test_great_expectations_does_not_talk_of_itself_on_our_screen(caplog: pytest.LogCaptureFixture) -> None:
    quality._context.cache_clear()  # it spoke when its context was made
    assert gate(CLEAN).results
    assert caplog.messages == []


def test_every_threshold_of_the_gate_comes_from_the_settings(make_settings: Callable[..., Settings]) -> None:
    assert Limits.of(make_settings().quality) == Limits()
    own = make_settings(**{"quality.max_move": "0.5", "quality.bad_print_sessions": "2"})
    limits = Limits.of(own.quality)
    assert (limits.max_move, limits.bad_print_sessions) == (0.5, 2)
    assert suite(limits).filter(check="move")["most"].to_list() == [0.5]
    assert {check.name for check in (*row_checks(limits), *sequence_checks(limits))} == set(suite(limits)["check"])


def test_a_release_is_recorded_and_must_name_one_row(tmp_path: Path) -> None:
    lake, now = Lake(tmp_path), new_york(DAYS[-1], 18)
    both = gate(pl.concat([CLEAN, scaled(1.001).filter(HIT)]))
    with lake.writing() as draft:
        draft.merge("quarantine", both.quarantined.with_columns(pl.lit(now).alias("found_at")))
        draft.record(DAYS[-1], "test", now)
    assert len(waiting(lake)) == 2
    with pytest.raises(InputError, match="2 rows wait"):
        release(lake, "S004", DAYS[30], "ada", now)
    with pytest.raises(InputError, match="none waits"):
        release(lake, "S005", DAYS[30], "ada", now)
    right = both.quarantined["close"][0]
    released = release(lake, "S004", DAYS[30], "ada", now, close=right)
    kept = lake.read("quarantine").filter(pl.col("released_at").is_not_null())
    assert kept.select("close", "released_by", "released_at").rows() == [(right, "ada", now)]
    assert waiting(lake)["close"].to_list() == [both.quarantined["close"][1]]
    assert lake.vintages()["source"].to_list() == ["test", "released by ada"]
    freed = gate(pl.concat([CLEAN, scaled(1.001).filter(HIT)]), released=released)
    assert freed.good.filter(HIT)["close"].to_list() == [right]


@pytest.mark.parametrize("seed", [3, 11])
def test_every_bad_row_planted_in_the_simulated_market_is_found_and_nothing_else(seed: int) -> None:
    market = simulate(60, date(2018, 1, 2), date(2020, 6, 30), seed=seed, bad_rows=400)
    result = run_gate(market.delivered, date(2020, 6, 30), market.actions, Limits())
    planted = market.planted.filter(pl.col("check") != "gap")
    assert set(verdicts(result)) == set(planted.rows())
    assert len(planted) > 100
    gaps = market.planted.filter(pl.col("check") == "gap")
    assert result.reported["check"].to_list() == ["gap"] * len(gaps)
