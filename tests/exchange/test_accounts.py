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
    maintenance,
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


ratios = st.sampled_from(["0.05", "0.125", "0.3333", "1.05", "1.5", "2", "4"]).map(Decimal)
amounts = st.integers(0, 3000).map(lambda n: Decimal(n) / 100)
ACTIONS = st.one_of(
    st.builds(lambda r, c: Action("ACME", DAY, "split", r, c), ratios, amounts),
    st.builds(lambda r, c: Action("ACME", DAY, "spin_off", cash=c, target="NEWCO", rate=r), ratios, amounts),
    st.builds(lambda r, c: Action("ACME", DAY, "delisting", cash=c, target="BIG", rate=r), ratios, amounts),
    st.builds(lambda c: Action("ACME", DAY, "delisting", cash=c), amounts),
    st.just(Action("ACME", DAY, "symbol_change", target="ACMX")),
)
PRICES = {"ACME": Decimal(60), "BIG": Decimal(160), "NEWCO": Decimal(24)}


@given(quantities, prices, ACTIONS, st.booleans())
def test_what_a_company_does_keeps_the_identity_of_profit(qty, price, action, known):
    "Realised profit and dividends are what came in cash less the cost of what is no longer held."
    held = Position("ACME", qty, price)
    lines = action_activities(ME, held, action, AT, PRICES if known else {}, known)
    after = fold(lines, Account(positions={"ACME": held}))
    kept = sum(p.cost_basis for p in after.positions.values())
    assert abs(after.realised + after.dividends - (after.cash + kept - held.cost_basis)) < Decimal("0.05")
    assert len({line.id for line in lines}) == len(lines)


@given(quantities, prices, ACTIONS)
def test_whole_shares_stay_whole_and_the_fraction_is_paid(qty, price, action):
    held = Position("ACME", qty, price)
    after = fold(action_activities(ME, held, action, AT, PRICES), Account(positions={"ACME": held}))
    assert all(p.qty == p.qty.to_integral_value() for p in after.positions.values())
    assert all((p.qty > 0) == (qty > 0) for p in after.positions.values())


@given(quantities, prices, ACTIONS)
def test_who_is_short_owes_what_who_is_long_gets(qty, price, action):
    long, short = (action_activities(ME, Position("ACME", q, price), action, AT, PRICES) for q in (qty, -qty))
    assert [(a.kind, a.symbol, -a.qty, -a.amount) for a in long] == [(a.kind, a.symbol, a.qty, a.amount) for a in short]


def test_maintenance_margin_is_a_third_or_so_and_more_for_cheap_shares():
    assert [maintenance(Decimal(q), Decimal(p)) for q, p in ((100, 2), (100, 50), (-100, 2), (-100, 4), (-100, 6), (-100, 50))] == [
        200, 1500, 250, 400, 500, 1500,
    ]  # fmt: skip
