"Membership is answered for the day asked, filters know nothing of what comes after it, and a list of survivors says that it is one."

from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from tradenb.core.calendar import next_session, sessions
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import ConfigError, SourceError
from tradenb.core.settings import Settings, load
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import TABLES, open_lake
from tradenb.market.sources import DemoSource, known_by
from tradenb.market.tickers import identities
from tradenb.market.universe import (
    Liquidity,
    by_identity,
    eligible,
    ever_members,
    join_stays,
    liquid,
    members,
    membership_file,
    membership_warnings,
    point_in_time,
    read_membership,
    restricts,
    survivorship_warning,
    until_delisted,
    wanted_tickers,
)

START = date(2020, 1, 1)
SCHEMA = TABLES["universe"].schema
days = st.integers(0, 400).map(lambda n: START + timedelta(days=n))
intervals = st.lists(st.tuples(st.sampled_from("ABCDE"), days, st.none() | st.integers(0, 200)), max_size=12)
PLAIN = {"symbol": "symbol", "start": "start", "end": "end", "sector": "sector"}


def universe(rows: list[tuple[str, date, int | None]], has_history: bool = True) -> pl.DataFrame:
    ends = [None if n is None else start + timedelta(days=n) for _, start, n in rows]
    return pl.DataFrame(
        [("u", s, start, end, None, has_history) for (s, start, _), end in zip(rows, ends, strict=True)],
        schema=SCHEMA,
        orient="row",
    )


def written(folder: Path, *lines: str, head: str = "symbol,start,end,sector") -> Path:
    (file := folder / "index.csv").write_text("\n".join([head, *lines]) + "\n")
    return file


# Members of a day


@effort(deadline=None)
@given(intervals, days)
def test_members_are_those_with_an_interval_around_the_day(rows: list, day: date) -> None:
    inside = {s for s, start, n in rows if start <= day and (n is None or day <= start + timedelta(days=n))}
    assert members(universe(rows), day)["symbol"].to_list() == sorted(inside)


@effort(deadline=None, max_examples=60)
@given(intervals, st.integers(0, 280).map(lambda n: sessions(START, date(2021, 3, 1))[n]))
def test_joining_stays_changes_no_session_and_leaves_none_that_touch(rows: list, day: date) -> None:
    joined = join_stays(universe(rows))
    assert members(joined, day).equals(members(universe(rows), day))
    gaps = joined.with_columns(last=pl.col("end").fill_null(date.max).shift().over("symbol"))
    assert all(
        sessions(row["last"] + timedelta(days=1), row["start"] - timedelta(days=1))
        for row in gaps.filter(pl.col("last").is_not_null()).to_dicts()
    )


@effort(deadline=None, max_examples=60)
@given(intervals, days, days)
def test_what_a_day_knew_of_itself_and_of_earlier_days_never_changes(rows: list, as_of: date, later: date) -> None:
    "Cutting at a day and asking for any day up to it is asking the whole list; what was to come adds nothing."
    assume(as_of <= later)
    known = known_by(universe(rows), as_of)
    assert members(known, as_of).equals(members(universe(rows), as_of))
    assert members(known_by(known_by(universe(rows), later), as_of), as_of).equals(members(known, as_of))
    assert known.filter((pl.col("start") > as_of) | (pl.col("end") >= as_of)).is_empty()


# A membership file


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    text = written(tmp_path, "IBM,1996-01-02,,Tech", "BRK-B,2010-02-16,,Fin", "GE,1996-01-02,2018-06-25,Ind")
    pl.read_csv(text, try_parse_dates=True).write_parquet(tmp_path / "index.parquet")
    one, two = (read_membership([tmp_path / f"index.{kind}"], PLAIN, "index") for kind in ("csv", "parquet"))
    assert one.equals(two) and one.schema == pl.Schema(SCHEMA)
    assert one["symbol"].to_list() == ["BRK.B", "GE", "IBM"] and one["has_history"].all()


def test_the_first_day_out_is_told_from_the_last_day_in(tmp_path: Path) -> None:
    file = written(tmp_path, "GE,1996-01-02,2018-06-26,", "WBA,2018-06-26,,")
    for end_is, names in (("last_day", ["GE", "WBA"]), ("day_after", ["WBA"])):
        stays = read_membership([file], PLAIN, "dow", end_is=end_is)  # type: ignore[arg-type]
        assert members(stays, date(2018, 6, 26))["symbol"].to_list() == names
        assert members(stays, date(2018, 6, 25))["symbol"].to_list() == ["GE"]


@pytest.mark.parametrize(
    ("lines", "stays"),
    [
        (["A,2020-01-01,2020-03-31,", "A,2020-02-03,2020-06-30,"], [("2020-01-01", "2020-06-30")]),
        (["A,2020-01-01,2020-01-03,", "A,2020-01-06,,"], [("2020-01-01", None)]),
        (["A,2020-01-01,,", "A,2020-02-03,2020-06-30,"], [("2020-01-01", None)]),
        (["A,2020-01-01,2020-01-03,", "A,2020-01-07,,"], [("2020-01-01", "2020-01-03"), ("2020-01-07", None)]),
        (["A,2020-01-01,2020-06-30,", "A,2020-02-03,,IT"], [("2020-01-01", None)]),
        (
            ["A,2020-01-01,2020-06-30,IT", "A,2020-07-01,,Media"],
            [("2020-01-01", "2020-06-30"), ("2020-07-01", None)],
        ),
    ],
    ids=["overlap", "weekend between", "inside", "a session between", "one without a sector", "another sector"],
)
def test_stays_of_one_name_are_joined_where_no_session_lies_between(tmp_path, lines, stays) -> None:
    rows = read_membership([written(tmp_path, *lines)], PLAIN, "index")
    assert [(str(a), b and str(b)) for a, b in rows.select("start", "end").iter_rows()] == stays


@pytest.mark.parametrize(
    ("line", "end_is", "says"),
    [
        ("GE,2018-06-25,2018-06-20,", "last_day", "index.csv row 3: GE leaves on 2018-06-20, but joined on 2018-06-25"),
        ("GE,2018-06-25,2018-06-25,", "day_after", "row 3: GE leaves on 2018-06-25"),
        (
            "IBM,2000-01-03,,Media",
            "last_day",
            "row 3: IBM is in 'Media' from 2000-01-03 on, while row 2 has it in 'IT'",
        ),
        ("GE,,2018-06-25,", "last_day", "row 3: start is None, expected a date"),
        ("GE,soon,,", "last_day", "row 3: start is 'soon', expected a date"),
        (",1996-01-02,,", "last_day", "row 3: symbol is None"),
        ("GE,1996-01-02,,Ind,more", "last_day", "row 3 has more fields"),
    ],
)
def test_a_line_that_cannot_be_is_named_with_its_row(tmp_path: Path, line: str, end_is: str, says: str) -> None:
    file = written(tmp_path, "IBM,1996-01-02,,IT", line)
    with pytest.raises(SourceError) as error:
        read_membership([file], PLAIN, "index", end_is=end_is)  # type: ignore[arg-type]
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_empty_line_moves_no_rows_number(tmp_path: Path) -> None:
    file = written(tmp_path, "IBM,1996-01-02,,IT", ",,,", "GE,2018-06-25,2018-06-20,")
    with pytest.raises(SourceError, match="row 4: GE leaves"):
        read_membership([file], PLAIN, "index")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"ticker": "symbol"}, "ticker is no field of a membership"),
        ({"start": ""}, "start is empty, but a membership needs it"),
        ({"start": "since"}, "has no column 'since' for start; it has symbol, start, end, sector"),
    ],
)
def test_a_column_that_cannot_be_is_a_question_of_settings(tmp_path: Path, columns: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_membership([written(tmp_path, "IBM,1996-01-02,,IT")], columns, "index")


def test_the_settings_name_the_file_its_columns_and_its_dates(tmp_path: Path) -> None:
    file = written(tmp_path, "IBM,02.01.1996,", head="Name,Ein,Aus")
    chosen = load(
        {
            "universe.membership": str(file),
            "universe.name": "dow",
            "universe.columns": "symbol=Name, start=Ein, end=Aus, sector=",
            "universe.date_format": "%d.%m.%Y",
        },
        env={},
    )
    rows = point_in_time(DemoSource(), chosen, date(2020, 1, 2))
    assert rows.rows() == [("dow", "IBM", date(1996, 1, 2), None, None, True)]
    assert restricts(chosen.universe) and survivorship_warning(rows) is None
    with pytest.raises(ConfigError, match=r"universe\.membership=/no/such/file"):
        membership_file(chosen.universe.model_copy(update={"membership": "/no/such/file"}))


def test_without_a_file_the_source_says_who_belongs() -> None:
    demo, chosen = DemoSource(), load(env={})
    assert point_in_time(demo, chosen, date(2020, 1, 2)).equals(demo.universe(date(2020, 1, 2)))
    assert membership_file(chosen.universe) is None and not restricts(chosen.universe)


# Tickers and delistings


ACTIONS = {"symbol": pl.String, "ex_date": pl.Date, "kind": pl.String, "ratio": pl.Float64, "cash": pl.Float64, "declared_at": pl.Date, "source": pl.String, "target": pl.String}  # fmt: skip


def event(symbol: str, day: date, kind: str, target: str | None = None) -> tuple:
    return symbol, day, kind, 1.0, 0.0, None, "test", target


def actions(*rows: tuple) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ACTIONS, orient="row")


META = actions(event("FB", date(2022, 6, 9), "symbol_change", "META"))


@pytest.mark.parametrize(
    "lines",
    [["META,2013-12-23,,"], ["FB,2013-12-23,2022-06-08,", "META,2022-06-09,,"], ["FB,2013-12-23,,"]],
    ids=["the latest ticker", "the ticker of the time", "the first ticker"],
)
def test_however_a_list_writes_a_renamed_company_it_is_one_stay(tmp_path: Path, lines: list[str]) -> None:
    stays = read_membership([written(tmp_path, *lines)], PLAIN, "index")
    held = by_identity(stays, identities(META), date(2023, 6, 1))
    assert held.select("symbol", "start", "end").rows() == [("META", date(2013, 12, 23), None)]
    assert "META" in wanted_tickers(held, date(2020, 1, 2), ["FB", "META"], identities(META))
    assert "FB" in wanted_tickers(held, date(2020, 1, 2), ["FB", "META"], identities(META))


def test_a_ticker_that_passed_on_belongs_to_each_company_in_its_time(tmp_path: Path) -> None:
    passed = actions(event("S", date(2013, 7, 11), "delisting"), event("SENT", date(2021, 6, 30), "symbol_change", "S"))
    lines = ["S,2005-08-15,2013-07-08,", "S,2022-01-03,,"]
    stays = read_membership([written(tmp_path, *lines)], PLAIN, "index")
    held = by_identity(stays, identities(passed), date(2023, 6, 1))
    assert held["symbol"].to_list() == ["S", "S-201307"]
    assert members(held, date(2010, 1, 4))["symbol"].to_list() == ["S-201307"]


def test_a_delisting_ends_a_stay_that_the_list_still_has_open() -> None:
    rows = universe([("A", START, None), ("B", START, 30), ("A", date(2021, 3, 1), None)])
    ended = until_delisted(
        rows, actions(event("A", date(2020, 9, 8), "delisting"), event("B", date(2020, 9, 8), "delisting"))
    )
    assert ended["end"].to_list() == [date(2020, 9, 4), START + timedelta(days=30), None]


# What is asked for and what is missing


@effort(deadline=None, max_examples=60)
@given(intervals, days)
def test_bars_are_wanted_of_everyone_who_was_a_member_since_however_long_gone(rows: list, since: date) -> None:
    window = {s for s, start, n in rows if n is None or start + timedelta(days=n) >= since}
    assert ever_members(universe(rows), since) == sorted(window)
    assert wanted_tickers(universe(rows), since, ["A", "C", "Z"]) == sorted(window & {"A", "C"})


def test_members_without_bars_and_a_list_that_nobody_keeps_up_are_told() -> None:
    rows = universe([("A", START, None), ("B", START, 100), ("C", START, 5)])
    as_of = date(2020, 6, 1)
    assert membership_warnings(rows, ["A", "B", "C"], START, as_of) == ()
    (missing,) = membership_warnings(rows, ["A"], date(2020, 2, 3), as_of)
    assert missing.startswith("1 of the 2 members of 'u' since 2020-02-03 have no bars: B.")
    (stale,) = membership_warnings(rows, ["A", "B", "C"], START, date(2021, 1, 4))
    assert "tells of no change after 2020-04-10, 269 days before 2021-01-04" in stale
    (nobody,) = membership_warnings(rows.clear(), [], START, as_of)
    assert "has no member" in nobody


# Who could be traded


SESSIONS = sessions(date(2020, 1, 2), date(2020, 4, 30))
prices = st.floats(0.5, 40, allow_nan=False).map(lambda x: round(x, 2))


@st.composite
def markets(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame]:
    "Bars of some names with holes, and a universe with some of them."
    rows = []
    for name in draw(st.lists(st.sampled_from("ABCDE"), min_size=1, unique=True)):
        first = draw(st.integers(0, 40))
        for day in SESSIONS[first : first + draw(st.integers(1, 60))]:
            if draw(st.integers(0, 9)):
                rows.append((name, day, draw(prices), draw(st.integers(0, 3000))))
    bars = pl.DataFrame(
        rows, schema={"symbol": pl.String, "date": pl.Date, "close": pl.Float64, "volume": pl.Int64}, orient="row"
    )
    stays = st.tuples(st.sampled_from("ABCDE"), st.sampled_from(SESSIONS), st.none() | st.integers(0, 60))
    return bars.sort("symbol", "date"), universe(draw(st.lists(stays, max_size=8)))


filters = st.builds(Liquidity, st.sampled_from([0, 5, 20]), st.sampled_from([0, 10_000]), st.sampled_from([1, 4, 21]), st.sampled_from([0, 10]))  # fmt: skip


@effort(deadline=None, max_examples=60)
@given(markets(), filters, st.sampled_from(SESSIONS))
def test_all_days_at_once_are_what_each_day_says_by_itself(market, limits: Liquidity, day: date) -> None:
    bars, stays = market
    morning = (
        liquid(bars, day, limits).filter(pl.col("reason").is_null()).join(members(stays, day), on="symbol", how="semi")
    )
    assert eligible(stays, bars, limits).filter(date=day)["symbol"].to_list() == morning["symbol"].to_list()


@effort(deadline=None, max_examples=60)
@given(markets(), filters, st.sampled_from(SESSIONS))
def test_the_future_changes_nothing(market, limits: Liquidity, day: date) -> None:
    bars, stays = market
    past, known = bars.filter(pl.col("date") <= day), known_by(stays, day)
    assert liquid(bars, day, limits).equals(liquid(past, day, limits))
    whole = eligible(stays, bars, limits).filter(pl.col("date") <= day)
    cut = eligible(known, past, limits)
    assert cut.equals(whole)


@effort(deadline=None, max_examples=30)
@given(markets(), filters, st.sampled_from(SESSIONS))
def test_a_few_bars_and_a_count_are_enough_for_a_day(market, limits: Liquidity, day: date) -> None:
    bars, _ = market
    start = sessions(date(2019, 10, 1), day)[-limits.sessions]
    counts = bars.filter(pl.col("date") <= day).group_by("symbol").agg(history=pl.len())
    assert liquid(bars.filter(pl.col("date") >= start), day, limits, counts).equals(liquid(bars, day, limits))


@given(markets())
@effort(deadline=None, max_examples=30)
def test_without_limits_every_members_bar_counts(market) -> None:
    bars, stays = market
    always = universe([(name, START, None) for name in "ABCDE"])
    assert eligible(always, bars, Liquidity()).equals(bars.select("symbol", "date"))
    inside = [(s, d) for s, d in bars.select("symbol", "date").iter_rows() if s in members(stays, d)["symbol"]]
    assert eligible(stays, bars, Liquidity()).rows() == inside


def test_the_first_limit_that_fails_is_named_with_its_numbers() -> None:
    bars = pl.DataFrame({"symbol": ["P", "Q", "R", "S"], "date": [date(2020, 1, 2)] * 4, "close": [4.5, 9.0, 9.0, 9.0], "volume": [1, 10, 5000, 5000]})  # fmt: skip
    judged = liquid(
        bars,
        date(2020, 1, 2),
        Liquidity(5, 1000, 21, 2),
        pl.DataFrame({"symbol": ["P", "Q", "S"], "history": [9, 9, 9]}),
    )
    assert judged["reason"].to_list() == [
        "closed at 4.5 USD, below 5",
        "traded 90 USD in the median session, below 1,000",
        "has 0 bars, fewer than 2",
        None,
    ]


# Survivors


def test_a_list_of_survivors_says_so_and_a_real_history_is_silent() -> None:
    rows = [("A", START, None)]
    assert survivorship_warning(universe(rows)) is None
    said = str(survivorship_warning(universe([*rows, ("B", START, 40)], has_history=False)))
    assert "1 of 2 (50.0%) ended since 2020-01-01" in said and "'u'" in said


# Through the ETL


def test_the_etl_takes_in_whoever_was_a_member_and_knows_no_more_than_the_day(make_settings, tmp_path: Path) -> None:
    source = DemoSource(symbols := 20, date(2022, 1, 3), years=1, bad_rows=0)
    always, leaving, joining, coming = source.universe(date(2022, 1, 3))["symbol"].head(4)
    file = written(
        tmp_path,
        f"{always},2022-01-03,,IT",
        f"{leaving},2022-01-03,2022-08-31,IT",
        f"{joining},2022-09-12,,Media",
        f"{coming},2022-12-01,,Media",
        "GONE,2020-01-02,2022-03-31,IT",
    )
    chosen = {"demo.symbols": symbols, "demo.start": "2022-01-03", "demo.years": 1, "demo.bad_rows": 0}
    with_file = make_settings(**chosen, **{"universe.membership": str(file), "universe.name": "index"})
    lake = open_lake(with_file)

    def taken_in(settings: Settings, as_of: date) -> tuple[EtlReport, set[str], pl.DataFrame]:
        report = run_etl(settings, source, lake, as_of, SimulatedClock(new_york(next_session(as_of), 9)))
        return report, set(lake.read("bars")["symbol"]), lake.read("universe").drop("year", strict=False)

    summer, bars, known = taken_in(with_file, date(2022, 6, 30))
    assert bars == {always, leaving} and set(known["symbol"]) == {always, leaving, "GONE"}
    assert known.filter(symbol=leaving)["end"].to_list() == [None]
    assert any("1 of the 3 members of 'index' since 2022-01-03 have no bars: GONE." in said for said in summer.warnings)
    assert not any("Survivorship" in said for said in summer.warnings)

    autumn, bars, known = taken_in(with_file, date(2022, 10, 31))
    assert bars == {always, leaving, joining} and coming not in known["symbol"]
    rows = lake.read("bars")
    assert rows.filter(symbol=joining)["date"].min() == date(2022, 1, 3), "who joins brings the past along"
    assert rows.filter(symbol=leaving)["date"].max() == date(2022, 10, 31), "who left goes on being followed"
    allowed = eligible(known, rows, Liquidity())
    assert allowed.filter(symbol=joining)["date"].min() == date(2022, 9, 12)
    assert allowed.filter(symbol=leaving)["date"].max() == date(2022, 8, 31)

    _, bars, known = taken_in(make_settings(**chosen), date(2022, 11, 1))
    assert set(known["universe"]) == {"demo"} and len(bars) > 15, "the list of before has no say any more"
    assert lake.at(autumn.vintage).read("universe")["universe"].unique().to_list() == ["index"]
