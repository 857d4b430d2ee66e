"How a day is called when not every order fills, and that such a day is over all the same."

from datetime import date

import pytest

from tradenb.core import db

FIRST, SECOND = date(2020, 1, 3), date(2020, 1, 6)


@pytest.mark.long
def test_a_day_of_partial_fills_is_partially_completed_and_over(fresh):
    thin = {"exchange.volume_share": 0.0002}
    answer = fresh.day(FIRST, **thin)
    assert fresh.status(FIRST) == "partially_completed"
    assert "10 partially_filled" in answer.out
    fresh.check_books()
    before = fresh.counts()
    assert "nothing was changed" in fresh.day(FIRST, **thin).out
    assert fresh.counts() == before


UNGUARDED = {"limits.check_buying_power": "false", "limits.max_gross": 0, "limits.max_net": 0}


@pytest.mark.long
def test_a_day_whose_orders_are_all_denied_ends_as_failed_and_the_next_day_goes_on(fresh):
    poor = {"exchange.cash": 1}
    for _ in range(2):
        answer = fresh.tradenb("paper-run", "--date", str(FIRST), **poor)
        assert answer.code == 2, answer.err
        assert "books match" in answer.out
        assert fresh.status(FIRST) == "failed"
        assert fresh.rows(db.fills) == fresh.rows(db.orders) == []
        assert {denial["code"] for denial in fresh.rows(db.denials)} == {"GROSS_EXPOSURE"}
    assert "nothing was changed" in answer.out
    answer = fresh.tradenb("paper-run", **poor)
    assert str(SECOND) in answer.out


@pytest.mark.long
def test_what_the_limits_let_pass_the_broker_may_still_reject(fresh):
    answer = fresh.tradenb("paper-run", "--date", str(FIRST), **{"exchange.cash": 1}, **UNGUARDED)
    assert (answer.code, fresh.status(FIRST)) == (2, "failed"), answer.err
    assert "books match" in answer.out
    assert {order["status"] for order in fresh.rows(db.orders)} == {"rejected"}
    assert fresh.rows(db.fills) == []


@pytest.mark.long
def test_the_opening_auction_is_traded_on_a_label_of_open_prices(fresh):
    at_open = {"execution.trade_at": "open", "label.price": "open"}
    fresh.day(FIRST, **at_open)
    assert fresh.status(FIRST) == "completed"
    assert {(order["time_in_force"], order["status"]) for order in fresh.rows(db.orders)} == {("opg", "filled")}
    fresh.check_books()
