"What the names earned is what the account earned, whatever happened on the day."

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.execution.entries import CashEvent, Fill, fold_account, fold_positions
from tradenb.execution.orders import Side
from tradenb.trading.pnl import CASH, AccountDay, by_cause, day_pnl, moved_in_kind, pnl_frame

NAMES = ["AAA", "BBB", "CCC", "DDD"]
AT = datetime(2024, 3, 11, 14, tzinfo=UTC)
ZERO = Decimal(0)
money = st.decimals(1, 500, places=2)


@st.composite
def entries(draw: st.DrawFn, size: int) -> list:
    "A day's entries of the ledger."
    found = []
    for number in range(draw(st.integers(0, size))):
        at, name = AT + timedelta(minutes=number), draw(st.sampled_from(NAMES))
        if draw(st.booleans()):
            qty, side = Decimal(draw(st.integers(1, 500))), draw(st.sampled_from(list(Side)))
            found.append(Fill(f"f{number}", name, side, qty, draw(money), at, fee=draw(st.decimals(0, 3, places=2))))
            continue
        kind = draw(st.sampled_from(["dividend", "borrow", "fee", "interest", "deposit", "split", "journal", "rename"]))
        amount = draw(st.decimals(-900, 900, places=2))
        if kind == "split":
            found.append(CashEvent(f"e{number}", kind, ZERO, at, name, ratio=Decimal(2)))
        elif kind == "journal":  # cash in lieu of a fraction, as the exchange says it
            detail = {"activity_type": "CIL", "price": "20.001"}
            found.append(CashEvent(f"e{number}", kind, Decimal("10.00"), at, name, Decimal("-0.5"), None, detail))
        elif kind == "rename":
            for sign, symbol in ((-1, name), (1, f"{name}2")):
                detail = {"activity_type": "NC", "price": "31.237"}
                found.append(
                    CashEvent(f"e{number}{symbol}", "journal", ZERO, at, symbol, Decimal(7 * sign), None, detail)
                )
        else:
            whose = draw(st.sampled_from([name, None])) if kind in ("fee", "interest") else name
            found.append(CashEvent(f"e{number}", kind, amount, at, None if kind == "deposit" else whose))
    return found


def snapshot(positions: dict, prices: dict) -> list[dict]:
    rows = [p for p in positions.values() if p.qty]
    return [
        {"symbol": p.symbol, "qty": p.qty, "avg_entry_price": p.avg_entry_price, "price": prices[p.symbol[:3]]}
        | {"market_value": p.qty * prices[p.symbol[:3]]}
        for p in rows
    ]


@given(entries(8), entries(12), st.tuples(*[st.tuples(money, money)] * 4))
def test_the_names_add_up_to_the_change_in_equity_less_deposits(past, today, prices):
    for number, entry in enumerate(past):
        object.__setattr__(entry, "at", AT - timedelta(days=1) + timedelta(minutes=number))
        object.__setattr__(entry, "event_id" if isinstance(entry, CashEvent) else "execution_id", f"p{number}")
    last, close = ({name: pair[i] for name, pair in zip(NAMES, prices, strict=True)} for i in (0, 1))
    before, after = snapshot(fold_positions(past), last), snapshot(fold_positions([*past, *today]), close)
    days = day_pnl(before, after, today, close)
    cash = fold_account(today)
    change = cash.cash - cash.deposits + sum((r["market_value"] for r in after), ZERO)
    assert sum((day.pnl for day in days), ZERO) == change - sum((r["market_value"] for r in before), ZERO)
    for day in days:
        rest = day.dividends - day.borrow + day.other - day.fees
        assert day.holding + day.trading + rest == day.pnl == day.realised + day.unrealised + rest
    assert sum(by_cause(days).values(), ZERO) == sum((day.pnl for day in days), ZERO)
    assert [day.symbol for day in days] == sorted({day.symbol for day in days})
    assert pnl_frame(days)["pnl"].is_sorted(descending=True)


def fill(symbol: str, side: str, qty: str, price: str, fee: str = "0") -> Fill:
    return Fill(f"{symbol}{side}{price}", symbol, Side(side), Decimal(qty), Decimal(price), AT, fee=Decimal(fee))


def held(symbol: str, qty: str, paid: str, price: str) -> dict:
    row = {"symbol": symbol, "qty": Decimal(qty), "avg_entry_price": Decimal(paid), "price": Decimal(price)}
    return row | {"market_value": Decimal(qty) * Decimal(price)}


def test_a_name_bought_at_the_close_earns_the_slippage_only():
    (day,) = day_pnl([], [held("AAA", "10", "50.01", "50")], [fill("AAA", "buy", "10", "50.01")])
    assert (day.pnl, day.trading, day.holding) == (Decimal("-0.10"), Decimal("-0.10"), 0)
    assert (day.realised, day.unrealised) == (0, Decimal("-0.10"))


@pytest.mark.parametrize(("side", "held_qty", "price"), [("sell", "10", "49.99"), ("buy", "-10", "50.01")])
def test_the_slippage_of_a_position_closed_today_is_not_held_overnight(side, held_qty, price):
    before = [held("AAA", held_qty, "40", "48")]
    (day,) = day_pnl(before, [], [fill("AAA", side, "10", price)], {"AAA": Decimal(50)})
    assert day.trading == Decimal("-0.10")
    assert day.holding == Decimal(held_qty) * 2
    assert day.realised == Decimal(held_qty) * 10 - Decimal("0.10")


def test_without_a_close_a_closed_position_counts_as_held():
    (day,) = day_pnl([held("AAA", "10", "40", "48")], [], [fill("AAA", "sell", "10", "49.99")])
    assert (day.trading, day.holding) == (0, Decimal("19.90"))


def test_a_dividend_is_earned_by_the_long_and_owed_by_the_short():
    paid = [CashEvent(s, "dividend", Decimal(a), AT, s) for s, a in (("AAA", 7), ("BBB", -7))]
    assert [(day.pnl, day.dividends) for day in day_pnl([], [], paid)] == [(7, 7), (-7, -7)]


def test_borrowed_shares_cost_and_interest_of_the_account_is_nobodys():
    paid = [CashEvent("b", "borrow", Decimal(-3), AT, "AAA"), CashEvent("i", "interest", Decimal(2), AT)]
    cash, name = day_pnl([], [], paid)
    assert (cash.symbol, cash.other, cash.pnl) == (CASH, 2, 2)
    assert (name.borrow, name.pnl) == (3, -3)


def test_a_delisting_is_a_sale_at_the_final_value():
    event = CashEvent("d", "delisting", Decimal(450), AT, "AAA", Decimal(-10))
    (day,) = day_pnl([held("AAA", "10", "40", "48")], [], [event])
    assert (day.sold, day.pnl, day.holding, day.other) == (450, -30, -30, 0)


def test_a_new_name_takes_over_what_the_old_one_cost_and_neither_loses_it_all():
    moves = [
        CashEvent(s, "journal", ZERO, AT, s, Decimal(q), None, {"activity_type": "NC", "price": "40"})
        for s, q in (("OLD", -10), ("NEW", 10))
    ]
    new, old = day_pnl([held("OLD", "10", "40", "48")], [held("NEW", "10", "40", "50")], moves)
    assert (new.symbol, new.pnl, old.pnl) == ("NEW", 100, -80)
    assert sum(moved_in_kind(moves).values(), ZERO) == 0


def test_a_deposit_is_no_name_s_profit():
    assert day_pnl([], [], [CashEvent("c", "deposit", Decimal(1_000), AT)]) == []


@pytest.mark.parametrize(
    ("start", "end", "deposits", "pnl", "share"),
    [(0, 1_010, 1_000, 10, 0.01), (1_000, 900, 0, -100, -0.1), (0, 0, 0, 0, 0.0), (1_000, 1_600, 500, 100, 100 / 1500)],
)
def test_a_deposit_is_no_profit(start, end, deposits, pnl, share):
    day = AccountDay(Decimal(start), Decimal(end), Decimal(deposits))
    assert day.pnl == pnl
    assert day.daily_return == pytest.approx(share)
