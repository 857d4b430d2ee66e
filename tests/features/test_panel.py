"""Panels: every bar at its symbol and session, once, and nothing known before its day."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import DataError, InputError
from tradenb.features.panel import FIELDS, Panel, panels, random_panel
from tradenb.market.lake import Lake


def bars_of(panel: Panel, prefix: str = "adj_") -> pl.DataFrame:
    "The lake's long frame of a panel: a row where a close is known."
    row, column = np.nonzero(panel.traded)
    values = {prefix + f: panel.fields[f][row, column].astype(float) for f in FIELDS}
    return pl.DataFrame({"symbol": [panel.symbols[i] for i in row], "date": panel.dates[column]} | values).cast(
        {"date": pl.Date}
    )


def same(a: Panel, b: Panel) -> bool:
    axes = a.symbols == b.symbols and (a.dates == b.dates).all() and (a.listed == b.listed).all()
    return bool(axes) and all(a.fields[f].tobytes() == b.fields[f].tobytes() for f in FIELDS)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_bars_in_any_order_give_back_the_panel_they_came_from(symbols: int, sessions: int, seed: int, random) -> None:
    panel = random_panel(symbols, sessions, seed, suspended=0.1)
    bars = bars_of(panel)
    order = list(range(bars.height))
    random.shuffle(order)
    days = [d.item() for d in panel.dates]
    assert same(Panel.from_bars(bars[order], sessions=days), panel)


def test_the_sessions_are_those_of_the_exchange_when_none_are_given() -> None:
    ends = pl.DataFrame({"symbol": ["KO"] * 2, "date": [date(2024, 3, 27), date(2024, 4, 1)]})
    bars = ends.with_columns(pl.lit(60.0).alias(f) for f in FIELDS)
    assert Panel.from_bars(bars, adjusted=False).dates.astype(str).tolist() == [
        "2024-03-27",
        "2024-03-28",
        "2024-04-01",
    ]


def test_a_missing_vwap_is_the_typical_price_of_its_own_bar() -> None:
    bars = bars_of(random_panel(1, 3, 1, suspended=0.0))
    holes = bars.with_columns(adj_vwap=pl.when(pl.int_range(pl.len()) != 1).then(pl.col("adj_vwap")))
    days = bars["date"].to_list()
    full, filled = Panel.from_bars(bars, sessions=days), Panel.from_bars(holes, sessions=days)
    typical = np.float32(sum(bars[c][1] for c in ("adj_high", "adj_low", "adj_close")) / 3)
    assert filled.fields["vwap"][0].tolist() == [full.fields["vwap"][0, 0], typical, full.fields["vwap"][0, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.clear(), "no bars to make a panel of"),
        (lambda b: pl.concat([b, b[-1:]]), r"S0001 has two bars on 2018-01-04"),
        (
            lambda b: b.with_columns(pl.col("date").dt.offset_by("1d")),
            "S0000 has a bar on 2018-01-05, which is not among",
        ),
    ],
)
def test_bars_that_cannot_be_placed_are_refused_by_name(change, message: str) -> None:
    panel = random_panel(2, 3, 2, suspended=0.0)
    every = Panel(panel.symbols, panel.dates, panel.fields, np.ones(panel.shape, bool))
    bars = bars_of(every).sort("symbol", "date")
    with pytest.raises(DataError, match=message):
        Panel.from_bars(change(bars), sessions=[d.item() for d in panel.dates])


def test_listed_begins_with_the_first_bar_and_knows_no_end() -> None:
    panel = random_panel(5, 60, 3, suspended=0.3)
    seen = np.logical_or.accumulate(panel.traded, axis=1)
    assert (panel.listed == seen).all()
    cut = Panel.from_bars(bars_of(panel.until(panel.dates[30])), sessions=[d.item() for d in panel.dates[:31]])
    rows = [panel.symbols.index(s) for s in cut.symbols]
    assert (cut.listed == panel.listed[rows, :31]).all()


def test_until_a_day_between_sessions_holds_what_was_known_then() -> None:
    panel = random_panel(2, 10, 1)
    assert panel.until(date(2018, 1, 7)).dates[-1] == np.datetime64("2018-01-05")
    assert panel.until(date(2017, 1, 1)).shape == (2, 0)
    assert panel.tail(99).shape == panel.shape


def test_an_unknown_symbol_is_named() -> None:
    with pytest.raises(InputError, match="no bars for XYZ"):
        random_panel(2, 3, 1).select(["S0000", "XYZ"])


def test_an_empty_calendar_is_refused() -> None:
    with pytest.raises(InputError, match="no sessions to make a panel of"):
        Panel.from_bars(bars_of(random_panel(1, 3, 1)), sessions=[])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 90), st.integers(0, 10_000))
def test_a_panel_goes_to_a_long_table_and_back(symbols: int, sessions: int, seed: int) -> None:
    panel = random_panel(symbols, sessions, seed, suspended=0.1)
    back = Panel.from_bars(panel.frame(), sessions=panel.dates, adjusted=False)
    assert same(back, panel)
    assert panel.frame().select("symbol", "date").equals(bars_of(panel).select("symbol", "date"))


@pytest.mark.parametrize("suspended", [0.0, 0.01, 0.5])
def test_sorted_by_date_or_by_symbol_a_panel_is_the_same(suspended: float) -> None:
    panel = random_panel(5, 200, 11, suspended=suspended)
    bars = bars_of(panel)
    days = [d.item() for d in panel.dates]
    for order in (["date", "symbol"], ["symbol", "date"]):
        assert same(Panel.from_bars(bars.sort(order), sessions=days), panel)
    pieces = pl.concat([bars[:100], bars[100:]], rechunk=False)
    assert same(Panel.from_bars(pieces, sessions=days), panel)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: b.drop("adj_low"), DataError, "no column adj_low, expected symbol, date, adj_open"),
        (lambda b: b.with_columns(pl.col("adj_open").cast(pl.String)), DataError, "column adj_open is String"),
        (lambda b: b.with_columns(pl.col("date").cast(pl.Datetime)), DataError, "dates of type Datetime"),
        (lambda b: b.with_columns(date=pl.lit(None, pl.Date)), DataError, "a row without symbol or date"),
        (lambda b: b.with_columns(symbol=pl.lit(None, pl.String)), DataError, "a row without symbol or date"),
    ],
)
def test_a_frame_that_is_no_bars_is_refused_by_its_column(change, error: type, message: str) -> None:
    panel = random_panel(2, 5, 2)
    with pytest.raises(error, match=message):
        Panel.from_bars(change(bars_of(panel)), sessions=panel.dates)


def test_sessions_that_go_back_are_refused() -> None:
    with pytest.raises(InputError, match="2018-01-02 comes after 2018-01-03"):
        Panel.from_bars(bars_of(random_panel(1, 3, 1)), sessions=[date(2018, 1, 3), date(2018, 1, 2)])


def test_integers_missing_values_and_infinities_become_floats() -> None:
    days = [date(2024, 1, 2), date(2024, 1, 3)]
    bars = pl.DataFrame({"symbol": ["A", "A"], "date": days} | {f: [1.5, None] for f in FIELDS})
    bars = bars.with_columns(volume=pl.Series([2**40 + 1, None], dtype=pl.Int64), high=pl.Series([np.inf, 2.0]))
    panel = Panel.from_bars(bars, sessions=days, adjusted=False)
    assert panel.fields["volume"].tolist()[0][0] == np.float32(2**40 + 1)
    assert np.isnan(panel.fields["close"][0, 1])
    assert panel.fields["high"].tolist() == [[np.inf, 2.0]]


def test_panels_of_a_few_symbols_are_rows_of_the_panel_of_all(tmp_path: Path) -> None:
    panel = random_panel(10, 50, 5)
    bars = panel.frame()
    bars.write_parquet(tmp_path / "all.parquet")
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    bars.sort("date")[:200].write_parquet(tmp_path / "parts" / "1.parquet")
    bars.sort("date")[200:].write_parquet(tmp_path / "parts" / "deep" / "2.parquet")

    def read(names: list[str]) -> pl.DataFrame:
        return bars.filter(pl.col("symbol").is_in(list(names)))

    ways = {"symbols_per_chunk": 3, "sessions": panel.dates, "adjusted": False}
    for source in (tmp_path / "all.parquet", str(tmp_path / "parts"), bars.lazy()):
        parts = list(panels(source, **ways))
        assert [part.shape[0] for part in parts] == [3, 3, 3, 1]
        for n, part in enumerate(parts):
            assert same(part, panel.select(panel.symbols[3 * n : 3 * n + 3]))
    assert [p.symbols for p in panels(read, symbols=("S0001", "S0004"), **ways)] == [("S0001", "S0004")]
    assert [p.symbols for p in panels(bars.lazy(), symbols=("S0001", "S0004"), **ways)] == [("S0001", "S0004")]


def test_an_empty_list_of_symbols_is_not_taken_for_all_of_them(tmp_path: Path) -> None:
    random_panel(3, 20, seed=1).frame().write_parquet(file := tmp_path / "bars.parquet")
    assert list(panels(file, symbols=[], adjusted=False)) == []


def test_panels_of_one_source_have_the_same_sessions(tmp_path: Path) -> None:
    early = {"symbol": "A", "date": date(2024, 3, 27)}
    late = {"symbol": "B", "date": date(2024, 4, 1)}
    bars = pl.DataFrame([row | dict.fromkeys(FIELDS, 5.0) for row in (early, late)])
    both = list(panels(bars.lazy(), symbols_per_chunk=1, adjusted=False))
    assert [p.dates.astype(str).tolist() for p in both] == [["2024-03-27", "2024-03-28", "2024-04-01"]] * 2


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nowhere", {}, DataError, "no Parquet file at nowhere"),
        (lambda names: pl.DataFrame(), {}, InputError, "give it symbols and sessions"),
        (random_panel(2, 9, 1).frame().lazy(), {}, DataError, "no column adj_open"),
        (random_panel(2, 9, 1).frame().lazy(), {"adjusted": False, "symbols": ["X"]}, InputError, "no bars for X"),
        (random_panel(2, 9, 1).frame().lazy(), {"symbols_per_chunk": 0}, InputError, "expected at least 1"),
        (random_panel(2, 9, 1).frame().clear().lazy(), {"adjusted": False}, DataError, "no bars to make panels of"),
    ],
)
def test_a_source_that_gives_no_panels_says_why(source, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        list(panels(source, **options))


def test_groups_of_symbols_come_from_the_lake_and_from_sql_too(tmp_path: Path) -> None:
    days = [date(2024, 1, d) for d in (2, 3, 4, 5)]
    rows = [{"symbol": s, "date": d} for s in ("A", "B", "C") for d in days if (s, d) != ("B", days[1])]
    prices = {f: pl.Series(10.0 + np.arange(len(rows))) for f in FIELDS}
    bars = pl.DataFrame(rows).with_columns(**prices).cast({"volume": pl.Int64})
    lake = Lake(tmp_path)
    with lake.writing() as draft:
        draft.merge(
            "bars", bars.with_columns(source=pl.lit("vendor"), ingested_at=pl.lit(datetime(2024, 1, 6, tzinfo=UTC)))
        )
        draft.record(days[-1], "vendor", datetime(2024, 1, 6, tzinfo=UTC))
    whole = Panel.from_bars(lake.read("bars"), sessions=days)
    options = {"symbols_per_chunk": 2, "sessions": days, "symbols": whole.symbols}
    query = "SELECT * FROM bars WHERE symbol IN ({}) ORDER BY symbol, date"
    for read in (
        lambda names: lake.read("bars", symbols=names),
        lambda names: lake.sql(query.format(", ".join(f"'{name}'" for name in names))),
    ):
        parts = list(panels(read, **options))
        assert [part.symbols for part in parts] == [("A", "B"), ("C",)]
        assert all(same(part, whole.select(part.symbols)) for part in parts)
