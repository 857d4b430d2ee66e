"Companies stay one, and apart, whatever their tickers do."

from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.calendar import next_session
from tradenb.core.errors import DataError
from tradenb.market.actions import ACTION_SCHEMA, factors
from tradenb.market.tickers import from_lean_factors, from_lean_maps, identities, rename

START, SEASON, DAY = date(2000, 1, 3), timedelta(days=45), timedelta(days=1)
TICKERS = ["A", "B", "C", "D"]
turn = st.lists(
    st.tuples(st.sampled_from(["list", "change", "delist", "take_over", "swap"]), st.integers(0, 3), st.integers(0, 3)),
    max_size=3,
)


def actions_of(rows: list[tuple]) -> pl.DataFrame:
    "From (symbol, ex_date, kind, target) and, where it matters, ratio and cash."
    rows = [(s, d, kind, *(more or (1.0, 0.0)), None, "test", target) for s, d, kind, target, *more in rows]
    return pl.DataFrame(rows, schema=ACTION_SCHEMA, orient="row")


def bars_of(rows: list[tuple]) -> pl.DataFrame:
    "From (ticker, date, close, company)."
    return pl.DataFrame(
        rows, schema={"symbol": pl.String, "date": pl.Date, "close": pl.Float64, "company": pl.Int64}, orient="row"
    ).sort("symbol", "date")


class Exchange:
    "Companies that list, change, swap, delist and take over tickers; bars under the plate of the day."

    def __init__(self) -> None:
        self.plates: dict[str, int] = {"A": 0, "B": 1}
        self.companies, self.events, self.bars = 2, [], []

    def turn(self, day: date, moves: list[tuple[str, int, int]]) -> None:
        moved: set[str] = set()
        for move, i, j in moves:
            old, new = TICKERS[i], TICKERS[j]
            if not moved & {old, new} and getattr(self, move)(day, old, new):
                moved |= {old, new}
        for ticker, company in self.plates.items():
            self.bars += [(ticker, at, company + 1 + at.day / 100, company) for at in (day, day + SEASON - DAY)]

    def list(self, day: date, old: str, new: str) -> bool:
        if new in self.plates:
            return False
        self.plates[new], self.companies = self.companies, self.companies + 1
        return True

    def change(self, day: date, old: str, new: str) -> bool:
        return new not in self.plates and self.take_over(day, old, new)

    def take_over(self, day: date, old: str, new: str) -> bool:
        "Nobody tells of the company that had the plate until now."
        if old == new or old not in self.plates or day == START:
            return False
        self.plates[new] = self.plates.pop(old)
        self.events.append((old, day, "symbol_change", new))
        return True

    def swap(self, day: date, old: str, new: str) -> bool:
        if old == new or not {old, new} <= set(self.plates) or day == START:
            return False
        self.plates[old], self.plates[new] = self.plates[new], self.plates[old]
        self.events += [(old, day, "symbol_change", new), (new, day, "symbol_change", old)]
        return True

    def delist(self, day: date, old: str, new: str) -> bool:
        if old not in self.plates or day == START:
            return False
        del self.plates[old]
        self.events.append((old, day, "delisting", None))
        return True


@given(st.lists(turn, min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_every_company_has_one_identity_and_shares_it_with_none(turns, random):
    exchange = Exchange()
    for n, moves in enumerate(turns):
        exchange.turn(START + n * SEASON, moves)
    bars = bars_of(exchange.bars)
    table = identities(actions_of(random.sample(exchange.events, len(exchange.events))), bars)
    renamed = rename(bars, table)
    pairs = renamed.select("company", "symbol").unique()
    assert len(renamed) == len(bars) and renamed["ticker"].equals(bars["symbol"])
    assert pairs["company"].is_unique().all() and pairs["symbol"].is_unique().all()
    assert rename(renamed, table).equals(renamed)
    assert table.equals(identities(actions_of(exchange.events), bars))
    for _, uses in table.sort("ticker", "start").group_by("ticker"):
        ends, starts = uses["end"].head(-1).to_list(), uses["start"].tail(-1).to_list()
        assert all(end < start for end, start in zip(ends, starts, strict=True))
    alive = renamed.filter(pl.col("date") == bars["date"].max()).filter(pl.col("ticker") != pl.col("symbol"))
    assert alive.is_empty()  # Who trades today is called by today's ticker


def test_a_fund_that_left_and_came_back_is_one_company():
    changes = [("QQQ", date(2004, 12, 1), "symbol_change", "QQQQ"), ("QQQQ", date(2011, 3, 23), "symbol_change", "QQQ")]
    table = identities(actions_of(changes))
    assert table["symbol"].unique().to_list() == ["QQQ"]
    assert table.select("ticker", "start", "end").rows() == [
        ("QQQ", None, date(2004, 11, 30)),
        ("QQQQ", date(2004, 12, 1), date(2011, 3, 22)),
        ("QQQ", date(2011, 3, 23), None),
    ]


def test_stragglers_after_a_delisting_are_no_new_company_and_bars_much_later_are():
    gone = actions_of([("FB", date(2003, 3, 31), "delisting", None)])
    early, late = (bars_of([("FB", day, 1.0, 0)]) for day in (date(2003, 4, 30), date(2003, 5, 1)))
    assert identities(gone, early).is_empty() and identities(gone).is_empty()
    assert identities(gone, late).rows() == [
        ("FB", "FB", date(2003, 3, 31), None),
        ("FB-200303", "FB", None, date(2003, 3, 30)),
    ]


def test_the_same_change_told_by_two_vendors_and_one_to_itself_are_one_change():
    change = ("FB", date(2022, 6, 9), "symbol_change", "META")
    twice = actions_of([change, change, ("FB", date(2022, 6, 1), "symbol_change", "FB")])
    assert identities(twice).equals(identities(actions_of([change])))


def test_a_vendor_who_calls_the_old_ticker_delisted_on_the_day_of_its_change_is_not_believed():
    change = ("FB", date(2022, 6, 9), "symbol_change", "META")
    both = actions_of([change, ("FB", date(2022, 6, 9), "delisting", None)])
    assert identities(both).equals(identities(actions_of([change])))


def test_restated_history_wins_over_the_archive_and_duplicates_of_one_ticker_stay_for_the_gate():
    days = [date(2022, 6, d) for d in (6, 7, 8)]
    archive = [("FB", d, 190.0, 0) for d in days] + [("FB", days[0], 191.0, 0)]
    restated = [("META", d, 190.0, 0) for d in days[1:]]
    bars = bars_of([*archive, *restated, ("META", date(2022, 6, 9), 184.0, 0)])
    table = identities(actions_of([("FB", date(2022, 6, 9), "symbol_change", "META")]), bars)
    renamed = rename(bars, table)
    assert set(renamed["symbol"]) == {"META"}
    assert renamed.select("ticker", "date").rows() == [
        ("FB", days[0]), ("FB", days[0]), ("META", days[1]), ("META", days[2]), ("META", date(2022, 6, 9)),
    ]  # fmt: skip


def test_rows_without_a_day_or_of_other_tickers_pass_as_they_are():
    table = identities(actions_of([("FB", date(2022, 6, 9), "symbol_change", "META")]))
    bars = bars_of([("FB", None, 1.0, 0), ("IBM", date(2020, 1, 2), 2.0, 1)])
    assert rename(bars, table).drop("ticker").equals(bars) and rename(bars.clear(), table).is_empty()


def test_actions_go_to_whoever_carried_the_ticker_and_the_last_ones_to_whoever_gave_it_up():
    rows = [
        ("NWSA", date(2013, 3, 11), "dividend", None, 1.0, 0.09),
        ("NWSA", date(2013, 7, 1), "symbol_change", "FOXA"),
        ("NWSA", date(2013, 7, 1), "spin_off", "NWS", 0.25, 0.0),
        ("NWSA", date(2015, 9, 14), "dividend", None, 1.0, 0.1),
        ("FOXA", date(2019, 3, 19), "symbol_change", "TFCFA"),
        ("TFCFA", date(2019, 3, 21), "delisting", "TFCFA"),
        ("NWS", date(2016, 1, 4), "symbol_change", "NEWS"),
    ]
    told = actions_of(rows)
    renamed = rename(told, identities(told), "ex_date")
    assert renamed.select("symbol", "kind", "target").rows() == [
        ("TFCFA", "dividend", None),
        ("TFCFA", "symbol_change", "TFCFA"),
        ("TFCFA", "spin_off", "NEWS"),
        ("NWSA", "dividend", None),
        ("TFCFA", "symbol_change", "TFCFA"),
        ("TFCFA", "delisting", "TFCFA"),
        ("NEWS", "symbol_change", "NEWS"),
    ]
    assert rename(renamed, identities(told), "ex_date").equals(renamed)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.25]), st.sampled_from([1.0, 2.0, 1.5, 7.0, 0.1, 0.05])), max_size=6
    ),
    st.lists(st.floats(20, 400).map(lambda x: round(x, 2)), min_size=8, max_size=8),
)
def test_lean_factors_come_back_from_the_events_they_became(steps, closes):
    days = [date(2020, 1, 2)]
    while len(days) < 8:
        days.append(next_session(days[-1]))
    price, split, rows = 1.0, 1.0, [(date(2050, 12, 31), 1.0, 1.0, 0.0)]
    for at in range(len(steps), 0, -1):
        paid, shares = steps[at - 1]
        price, split = price * (1 - paid / closes[at]), split / shares
        rows.append((days[at], round(price, 7), round(split, 8), closes[at]))
    rows.append((days[0], rows[-1][1], rows[-1][2], 1.0))
    file = pl.DataFrame(
        [("KOVA", *row) for row in reversed(rows)],
        schema={"symbol": pl.String, "date": pl.Date, **dict.fromkeys(("price_factor", "split_factor", "ref_price"), pl.Float64)},
        orient="row",
    )  # fmt: skip
    bars = bars_of([("KOVA", day, close, 0) for day, close in zip(days, closes, strict=True)])
    ours = factors(bars, from_lean_factors(file), "prev_close")
    theirs = ours.select("date").join_asof(file.select("date", "price_factor", "split_factor"), on="date", strategy="forward")  # fmt: skip
    assert ours["price_factor"].to_list() == pytest.approx(theirs["split_factor"].to_list(), rel=1e-5, abs=1e-6)
    cash = ours["total_return_factor"] / ours["price_factor"]
    assert cash.to_list() == pytest.approx(theirs["price_factor"].to_list(), rel=1e-9)


def test_a_factor_file_that_no_event_explains_is_named():
    rows = {"symbol": "KOVA", "date": [date(2020, 1, 2), date(2020, 6, 1), date(2050, 12, 31)], "split_factor": 1.0}
    grows = pl.DataFrame(rows | {"price_factor": [1.01, 1.01, 1.0], "ref_price": [1.0, 50.0, 0.0]})
    priceless = pl.DataFrame(rows | {"price_factor": [0.99, 0.99, 1.0], "ref_price": [1.0, 0.0, 0.0]})
    for file in (grows, priceless):
        with pytest.raises(DataError, match="KOVA: the row of 2020-06-01"):
            from_lean_factors(file)


def test_a_map_file_becomes_changes_and_an_end_at_the_last_close():
    maps = pl.DataFrame(
        {
            "symbol": "TFCFA",
            "valid_through": [date(2004, 11, 12), date(2013, 6, 28), date(2019, 3, 18), date(2019, 3, 20)],
            "ticker": ["NWSA", "NWSA", "FOXA", "TFCFA"],
        }
    )
    assert from_lean_maps(maps).select("symbol", "ex_date", "kind", "target").rows() == [
        ("FOXA", date(2019, 3, 19), "symbol_change", "TFCFA"),
        ("NWSA", date(2013, 7, 1), "symbol_change", "FOXA"),
        ("TFCFA", date(2019, 3, 21), "delisting", "TFCFA"),
    ]
