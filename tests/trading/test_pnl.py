"What the names earned is what the account earned, whatever happened on the day."

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.trading.pnl import AccountDay, day_pnl, pnl_frame

NAMES = ["AAA", "BBB", "CCC", "DDD"]
money = st.decimals(1, 500, places=2)
shares = st.integers(-1_000, 1_000).map(Decimal)
trades = st.fixed_dictionaries(
    {"symbol": st.sampled_from(NAMES), "side": st.sampled_from(["buy", "sell"]), "qty": st.integers(1, 500).map(Decimal),
     "price": money, "fee": st.decimals(0, 3, places=2)}
)  # fmt: skip
payments = st.fixed_dictionaries(
    {"symbol": st.sampled_from(NAMES), "kind": st.sampled_from(["dividend", "delisting", "fee"]),
     "amount": st.decimals(-900, 900, places=2)}
)  # fmt: skip


@given(
    st.fixed_dictionaries(dict.fromkeys(NAMES, st.tuples(shares, money, money))),
    st.lists(trades, max_size=10),
    st.lists(payments, max_size=5),
)
def test_the_names_add_up_to_the_change_in_equity(book, fills, paid):
    sign = {"buy": 1, "sell": -1}
    held = {s: qty for s, (qty, _, _) in book.items()}
    cash = Decimal(0)
    for fill in fills:
        held[fill["symbol"]] += sign[fill["side"]] * fill["qty"]
        cash -= sign[fill["side"]] * fill["qty"] * fill["price"] + fill["fee"]
    cash += sum((row["amount"] for row in paid), Decimal(0))
    start = {s: qty * last for s, (qty, last, _) in book.items() if qty}
    close = {s: price for s, (_, _, price) in book.items()}
    after = [dict(symbol=s, price=close[s], market_value=qty * close[s]) for s, qty in held.items() if qty]
    days = day_pnl(start, after, fills, paid)
    equity = sum((row["market_value"] for row in after), cash) - sum(start.values(), Decimal(0))
    assert sum((day.pnl for day in days), Decimal(0)) == equity
    for day in days:
        assert day.holding + day.trading + day.income - day.fees == day.pnl
    assert [day.symbol for day in days] == sorted({day.symbol for day in days})
    frame = pnl_frame(days)
    assert frame.height == len(days)
    assert frame["pnl"].is_sorted(descending=True)


def test_a_name_bought_at_the_close_earns_the_slippage_only():
    (day,) = day_pnl(
        {},
        [dict(symbol="AAA", price=Decimal(50), market_value=Decimal(500))],
        [dict(symbol="AAA", side="buy", qty=Decimal(10), price=Decimal("50.01"), fee=Decimal(0))],
        [],
    )
    assert (day.pnl, day.trading, day.holding) == (Decimal("-0.10"), Decimal("-0.10"), 0)


def test_a_dividend_is_earned_by_the_long_and_owed_by_the_short():
    days = day_pnl(
        {}, [], [], [dict(symbol=s, kind="dividend", amount=Decimal(a)) for s, a in (("AAA", 7), ("BBB", -7))]
    )
    assert [day.pnl for day in days] == [7, -7]


def test_cash_that_belongs_to_no_name_is_no_name_s_profit():
    assert day_pnl({}, [], [], [dict(symbol=None, kind="deposit", amount=Decimal(1_000))]) == []


@pytest.mark.parametrize(
    ("start", "end", "deposits", "pnl", "share"),
    [(0, 1_010, 1_000, 10, 0.01), (1_000, 900, 0, -100, -0.1), (0, 0, 0, 0, 0.0), (1_000, 1_600, 500, 100, 100 / 1500)],
)
def test_a_deposit_is_no_profit(start, end, deposits, pnl, share):
    day = AccountDay(Decimal(start), Decimal(end), Decimal(deposits))
    assert day.pnl == pnl
    assert day.daily_return == pytest.approx(share)
