"The account is the fold of its activities, and no rule of accounting is broken on the way."

from datetime import UTC, date, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tradenb.exchange.accounts import (
    Account,
    Activity,
    Kind,
    Position,
    account_id,
    deposit,
    fold,
)
from tradenb.exchange.corporate import Action, action_activities

ME = account_id("test")
AT = datetime(2024, 3, 4, 9, 0, tzinfo=UTC)
DAY = AT.date()
quantities = st.integers(-500, 500).filter(bool).map(Decimal)
prices = st.integers(100, 50_000).map(lambda n: Decimal(n) / 100)
trades = st.lists(st.tuples(quantities, prices), max_size=30)


def history(rows) -> list[Activity]:
    fills = [Activity(f"f{i}", Kind.FILL, AT, DAY, -q * p, "ACME", q, p) for i, (q, p) in enumerate(rows)]
    return [deposit(ME, Decimal(1_000_000), AT, DAY), *fills]


@given(trades, prices)
def test_profit_realised_and_unrealised_is_what_the_equity_gained(rows, price):
    account = fold(history(rows))
    held = account.positions.get("ACME") or Position("ACME", Decimal(0), Decimal(0))
    unrealised = held.qty * price - held.cost_basis
    gained = account.cash + held.qty * price - account.deposits
    assert abs(account.realised + unrealised - gained) < Decimal("0.000001")


@given(trades)
def test_a_position_is_the_sum_of_its_trades_and_disappears_at_zero(rows):
    account = fold(history(rows))
    assert account.qty("ACME") == sum(q for q, _ in rows)
    assert ("ACME" in account.positions) == (sum(q for q, _ in rows) != 0)


@given(trades, st.integers(0, 30))
def test_a_fold_may_be_continued_from_anywhere(rows, cut):
    lines = history(rows)
    assert fold(lines[cut:], fold(lines[:cut])) == fold(lines)


@given(quantities, prices, st.sampled_from([2, 3, 4, 7]))
def test_a_split_changes_shares_and_price_but_not_what_was_paid(qty, price, ratio):
    held = Position("ACME", qty, price)
    lines = action_activities(ME, held, Action("ACME", DAY, "split", Decimal(ratio)), AT)
    after = fold(lines, Account(positions={"ACME": held})).positions["ACME"]
    assert after.qty == qty * ratio
    assert abs(after.cost_basis - held.cost_basis) < Decimal("0.000001")


@given(quantities, st.integers(1, 500).map(lambda n: Decimal(n) / 100))
def test_who_is_long_gets_the_dividend_and_who_is_short_pays_it(qty, cash):
    (line,) = action_activities(ME, Position("ACME", qty, Decimal(50)), Action("ACME", DAY, "dividend", cash=cash), AT)
    assert line.amount == qty * cash
    assert line.qty == 0


def test_a_delisting_pays_the_final_value_and_ends_the_position():
    held = Position("ACME", Decimal(-30), Decimal(50))
    lines = action_activities(ME, held, Action("ACME", date(2024, 3, 4), "delisting", cash=Decimal("2.345")), AT)
    after = fold(lines, Account(positions={"ACME": held}))
    assert after.positions == {}
    assert after.cash == Decimal("-70.35")
