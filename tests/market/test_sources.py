"Sources hand out rows as delivered, answer for any day without knowing the next, and refuse a symbol that they do not have."

from datetime import date

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tradenb.core.errors import InputError
from tradenb.market.sources import DemoSource, known_by, require_symbols

SMALL = DemoSource(count=30, start=date(2020, 1, 2), years=1)


@pytest.mark.parametrize("as_of", [date(2020, 3, 2), date(2021, 6, 30), date(2024, 1, 2)])
def test_membership_as_of_a_day_does_not_know_the_future(as_of):
    universe = SMALL.universe(as_of)
    assert universe["start"].max() <= as_of and (universe["end"].drop_nulls() < as_of).all()
    alive = universe.filter(pl.col("end").is_null())["symbol"].to_list()
    assert alive == SMALL.truth(as_of, as_of)["symbol"].to_list()


@pytest.mark.parametrize("as_of", [date(2020, 3, 2), date(2021, 6, 30), SMALL.last_date])
def test_membership_asked_for_without_prices_is_that_of_the_market_with_them(as_of):
    market = SMALL.market(as_of)
    assert_frame_equal(SMALL.universe(as_of), known_by(market.universe, as_of))
    assert_frame_equal(SMALL.assets(as_of), known_by(market.assets, as_of, "first_date", "last_date"))


def test_a_day_asked_for_alone_is_the_day_asked_for_among_years():
    day = date(2021, 3, 15)
    years = SMALL.bars(SMALL.first_date, date(2024, 6, 28))
    assert_frame_equal(SMALL.bars(day, day), years.filter(date=day), check_exact=True)


def test_the_demo_source_trades_on_after_its_history():
    assert SMALL.first_date == date(2020, 1, 2) and SMALL.first_trade_date == date(2021, 1, 4)
    assert SMALL.bars(SMALL.last_date, SMALL.last_date)["date"].to_list()[:1] == [SMALL.last_date]


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (date(2018, 1, 2), date(2020, 1, 3)),
        (date(2018, 8, 31), date(2020, 9, 1)),
        (date(2020, 2, 28), date(2022, 3, 1)),
        (date(2020, 2, 29), date(2022, 3, 1)),
    ],
)
def test_a_first_run_on_the_demo_market_comes_after_its_years_of_history(start: date, first: date):
    assert DemoSource(start=start, years=2).first_trade_date == first


def test_an_unknown_symbol_is_refused_with_what_it_may_have_meant():
    known = ["AAPL", "BRK.B", "MSFT"]
    assert require_symbols(None, known, "files") == require_symbols([], known, "files") == known
    with pytest.raises(InputError, match=r"unknown symbol MFST \(and 1 more\): .* did you mean MSFT\?"):
        require_symbols(["MFST", "AAPL", "X"], known, "files")
