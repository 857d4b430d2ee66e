"Positions and cash as counts of what happened, against a second bookkeeper who uses fractions."

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.clock import new_york
from tradenb.execution.entries import (
    MOVES_SHARES,
    Account,
    CashEvent,
    Entry,
    Fill,
    Position,
    applied,
    fold_account,
    fold_positions,
    in_order,
    inferred_fill,
    inferred_id,
    replaced,
    standing,
    symbols_of,
)
from tradenb.execution.orders import Side

MORNING = new_york(date(2017, 6, 1), 9)
SYMBOLS = ("AAPL", "GE", "KO")
quantities = st.decimals(min_value="0.001", max_value=1000, places=3) | st.integers(1, 1000).map(Decimal)
prices = st.decimals(min_value="0.01", max_value=500, places=2)
symbols = st.sampled_from(SYMBOLS)
sides = st.sampled_from(list(Side))
ratios = st.sampled_from(["2", "7", "0.5", "0.1", "1.05"])


def at(n: int) -> datetime:
    return MORNING + timedelta(minutes=n)


@dataclass
class Clerk:
    "A second bookkeeper: exact fractions, cost instead of averages, one case after the other."

    qty: dict[str, Fraction] = field(default_factory=dict)
    cost: dict[str, Fraction] = field(default_factory=dict)
    realised: dict[str, Fraction] = field(default_factory=dict)

    def trade(self, symbol: str, qty: Fraction, price: Fraction) -> None:
        held, cost = self.qty.get(symbol, Fraction(0)), self.cost.get(symbol, Fraction(0))
        closing = Fraction(0)
        if held * qty < 0:
            closing = qty if abs(qty) <= abs(held) else -held
            part = cost * -closing / held
            self.realised[symbol] = self.realised.get(symbol, Fraction(0)) - closing * price - part
            held, cost = held + closing, cost - part
        opening = qty - closing
        self.qty[symbol], self.cost[symbol] = held + opening, cost + opening * price

    def take(self, entry: Entry) -> None:
        symbol = entry.symbol or ""
        if isinstance(entry, Fill):
            return self.trade(symbol, Fraction(entry.side.sign * entry.qty), Fraction(entry.price))
        held, cost = self.qty.get(symbol, Fraction(0)), self.cost.get(symbol, Fraction(0))
        if entry.kind in ("split", "stock_dividend"):
            self.qty[symbol] = held * Fraction(entry.ratio or 1)
        elif entry.kind == "journal":
            self.trade(symbol, Fraction(entry.qty or 0), Fraction(entry.detail["price"]))
        elif entry.kind == "delisting":
            self.realised[symbol] = self.realised.get(symbol, Fraction(0)) + Fraction(entry.amount) - cost
            self.qty[symbol] = self.cost[symbol] = Fraction(0)
        elif entry.kind in ("spin_off", "symbol_change") and entry.into:
            moving = cost * Fraction(entry.cost_share)
            arriving = held * Fraction(entry.ratio or 1)
            self.cost[symbol] = cost - moving
            if entry.kind == "symbol_change":
                self.qty[symbol] = Fraction(0)
            if arriving:
                self.trade(entry.into, arriving, moving / arriving)


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    "Trades and corporate actions of three symbols, a minute apart."
    entries: list[Entry] = []
    kinds = st.sampled_from(["fill"] * 6 + sorted(MOVES_SHARES) + ["dividend", "fee", "interest", "borrow", "deposit"])
    for n in range(draw(st.integers(1, 14))):
        kind, symbol, when = draw(kinds), draw(symbols), at(n)
        ratio, into = Decimal(draw(ratios)), draw(st.sampled_from([s for s in SYMBOLS if s != symbol]))
        if kind == "fill":
            fee = draw(st.sampled_from(["0", "0.35"]))
            entries.append(
                Fill(f"x{n:02}", symbol, draw(sides), draw(quantities), draw(prices), when, fee=Decimal(fee))
            )
        elif kind in ("split", "stock_dividend"):
            entries.append(CashEvent(f"e{n:02}", kind, Decimal(0), when, symbol, ratio=ratio))
        elif kind == "delisting":
            entries.append(CashEvent(f"e{n:02}", kind, draw(prices), when, symbol))
        elif kind == "journal":
            qty = draw(quantities) * draw(st.sampled_from([1, -1]))
            worth = {"price": str(draw(prices))}
            entries.append(CashEvent(f"e{n:02}", kind, Decimal(0), when, symbol, qty=qty, detail=worth))
        elif kind in ("spin_off", "symbol_change"):
            detail = {"into": into} | ({"cost_share": "0.3"} if kind == "spin_off" else {})
            entries.append(CashEvent(f"e{n:02}", kind, Decimal(0), when, symbol, ratio=ratio, detail=detail))
        else:
            entries.append(CashEvent(f"e{n:02}", kind, draw(prices) * draw(st.sampled_from([1, -1])), when, symbol))
    return entries


def close(ours: Decimal, theirs: Fraction) -> bool:
    return abs(Fraction(ours) - theirs) < Fraction(1, 1000)


@given(histories())
@settings(max_examples=300, deadline=None)
def test_a_second_bookkeeper_counts_the_same(entries: list[Entry]) -> None:
    clerk = Clerk()
    for entry in entries:
        clerk.take(entry)
    for symbol, position in fold_positions(entries).items():
        assert close(position.qty, clerk.qty.get(symbol, Fraction(0))), symbol
        assert close(position.qty * position.avg_entry_price, clerk.cost.get(symbol, Fraction(0))), symbol
        assert close(position.realised_pnl, clerk.realised.get(symbol, Fraction(0))), symbol


@given(histories())
@settings(max_examples=200, deadline=None)
def test_cash_and_cost_are_what_came_in_and_what_was_earned(entries: list[Entry]) -> None:
    account, held = fold_account(entries), fold_positions(entries).values()
    cost = sum((p.qty * p.avg_entry_price for p in held), Decimal(0))
    realised = sum((p.realised_pnl for p in held), Decimal(0))
    came = account.deposits + account.dividends + account.interest - account.fees - account.borrow
    journals = [e for e in entries if isinstance(e, CashEvent) and e.kind == "journal"]
    in_kind = sum(((e.qty or 0) * Decimal(e.detail["price"]) for e in journals), Decimal(0))
    assert abs(account.cash + cost - came - realised - in_kind) < Decimal("0.001")
    assert account.cash == came + account.trades + account.other


@given(histories(), st.randoms())
@settings(deadline=None)
def test_the_order_of_arrival_does_not_matter(entries: list[Entry], rng: object) -> None:
    shuffled = list(entries)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fold_positions(shuffled) == fold_positions(entries)
    assert fold_account(shuffled) == fold_account(entries)


@given(histories())
@settings(deadline=None)
def test_one_entry_at_a_time_is_the_fold(entries: list[Entry]) -> None:
    positions: dict[str, Position] = {}
    for entry in in_order(entries):
        after = applied(positions, entry)
        assert set(after) == set(symbols_of(entry))
        positions |= after
    assert positions == fold_positions(entries)


@given(histories(), st.sets(st.integers(0, 13)))
@settings(deadline=None)
def test_a_voided_execution_counts_as_if_it_had_never_been(entries: list[Entry], chosen: set[int]) -> None:
    voided = {f"x{n:02}" for n in chosen}
    left = [e for e in entries if e.id not in voided]
    assert standing(entries, voided) == left
    assert fold_positions(entries, voided) == fold_positions(left)
    assert fold_account(entries, voided) == fold_account(left)


@given(st.lists(st.tuples(sides, quantities, prices), min_size=1, max_size=15))
def test_short_is_long_in_the_mirror(trades: list[tuple[Side, Decimal, Decimal]]) -> None:
    fills = [Fill(f"x{n:02}", "GE", *trade, MORNING) for n, trade in enumerate(trades)]
    mirrored = [replace(f, side=Side.SELL if f.side is Side.BUY else Side.BUY) for f in fills]
    one, other = fold_positions(fills)["GE"], fold_positions(mirrored)["GE"]
    assert other == replace(one, qty=-one.qty, realised_pnl=-one.realised_pnl)


def test_a_flip_closes_at_the_old_average_and_opens_at_the_new_price() -> None:
    trades = [("buy", 100, 10), ("sell", 150, 12), ("buy", 80, 11)]
    fills = [Fill(f"x{n}", "GE", Side(s), Decimal(q), Decimal(p), MORNING) for n, (s, q, p) in enumerate(trades)]
    assert fold_positions(fills)["GE"] == Position("GE", Decimal(30), Decimal(11), Decimal(250))


def test_who_is_short_pays_the_dividend_and_the_borrowing() -> None:
    sold = Fill("x", "GE", Side.SELL, Decimal(1000), Decimal(27), MORNING)
    paid = [
        CashEvent("v", "dividend", Decimal(-240), MORNING, "GE"),
        CashEvent("b", "borrow", Decimal("-18.75"), MORNING, "GE"),
        CashEvent("i", "interest", Decimal("2.5"), MORNING),
    ]
    account = fold_account([sold, *paid])
    expected = Account(
        cash=Decimal("26743.75"),
        dividends=Decimal(-240),
        borrow=Decimal("18.75"),
        interest=Decimal("2.5"),
        trades=Decimal(27000),
    )
    assert account == expected
    assert fold_positions([sold, *paid])["GE"].qty == -1000


def test_a_fraction_that_is_paid_out_is_sold() -> None:
    bought = Fill("x", "GE", Side.BUY, Decimal(100), Decimal(10), MORNING)
    split = CashEvent("s", "split", Decimal(3), at(1), "GE", Decimal(-67), Decimal(1) / Decimal(3))
    held = fold_positions([bought, split])["GE"]
    assert (held.qty, held.avg_entry_price, held.realised_pnl) == (33, 30, -7)
    account = fold_account([bought, split])
    assert account.cash + held.qty * held.avg_entry_price == held.realised_pnl


def test_a_symbol_change_goes_on_under_the_new_name_and_joins_what_is_there() -> None:
    entries: list[Entry] = [
        Fill("x1", "FB", Side.BUY, Decimal(10), Decimal(180), MORNING),
        Fill("x2", "META", Side.BUY, Decimal(10), Decimal(200), MORNING),
        CashEvent("c", "symbol_change", Decimal(0), at(1), "FB", detail={"into": "META"}),
        Fill("x3", "META", Side.SELL, Decimal(20), Decimal(190), at(2)),
    ]
    held = fold_positions(entries)
    assert held["FB"] == Position("FB")
    assert held["META"] == Position("META")


def test_a_spin_off_takes_its_share_of_the_cost_along() -> None:
    bought = Fill("x1", "EBAY", Side.BUY, Decimal(100), Decimal(60), MORNING)
    spun = CashEvent(
        "s", "spin_off", Decimal(0), at(1), "EBAY", Decimal(50), detail={"into": "PYPL", "cost_share": "0.5"}
    )
    held = fold_positions([bought, spun])
    assert (held["EBAY"].qty, held["EBAY"].avg_entry_price) == (100, 30)
    assert (held["PYPL"].qty, held["PYPL"].avg_entry_price) == (50, 60)
    free = replace(spun, detail={"into": "PYPL"})
    assert fold_positions([bought, free])["PYPL"].avg_entry_price == 0
    assert fold_positions([bought, free])["EBAY"].avg_entry_price == 60


def test_a_brokers_two_lines_move_shares_and_cost_without_a_profit() -> None:
    bought = Fill("x1", "FB", Side.BUY, Decimal(10), Decimal(180), MORNING)
    out = CashEvent("j1", "journal", Decimal(0), at(1), "FB", Decimal(-10), detail={"price": "180"})
    into = CashEvent("j2", "journal", Decimal(0), at(1), "META", Decimal(10), detail={"price": "180"})
    held = fold_positions([bought, out, into])
    assert held == {"FB": Position("FB"), "META": Position("META", Decimal(10), Decimal(180))}
    moved = CashEvent("j3", "journal", Decimal(0), at(2), "META", None, detail={"price": "0", "cost": "-300"})
    assert fold_positions([bought, out, into, moved])["META"].avg_entry_price == 150


def test_only_what_moves_shares_touches_positions() -> None:
    for kind in ("deposit", "dividend", "fee", "interest", "borrow", "other"):
        assert symbols_of(CashEvent("e", kind, Decimal(1), MORNING, "GE")) == ()
    assert symbols_of(CashEvent("e", "split", Decimal(0), MORNING, "GE")) == ("GE",)
    assert symbols_of(CashEvent("e", "spin_off", Decimal(0), MORNING, "GE", detail={"into": "KO"})) == ("GE", "KO")


ORDER = ("b-1", "GE", Side.BUY)


def average(fills: Sequence[Fill]) -> Decimal | None:
    qty = sum((f.qty for f in fills), Decimal(0))
    return sum((f.qty * f.price for f in fills), Decimal(0)) / qty if qty else None


def total(fills: Sequence[Fill]) -> Decimal:
    return sum((f.qty for f in fills), Decimal(0))


def infer(booked: Sequence[Fill], really: Sequence[Fill]) -> Fill | None:
    "What the broker's order says of the executions that there really are."
    return inferred_fill(booked, *ORDER, total(really), average(really), MORNING)


executions = st.lists(st.tuples(quantities, prices), min_size=1, max_size=8).map(
    lambda parts: [Fill(f"x{n}", "GE", Side.BUY, q, p, MORNING, None, "b-1") for n, (q, p) in enumerate(parts)]
)


@given(executions, st.data())
@settings(max_examples=300, deadline=None)
def test_inferred_executions_give_way_to_the_real_ones(real: list[Fill], data: st.DataObject) -> None:
    "The broker executes one by one; its order is looked at now and then, its history comes in any order and late."
    book: list[Fill] = []
    voided: set[str] = set()
    done, late = 0, list(range(len(real)))

    def counting() -> list[Fill]:
        return [f for f in book if f.id not in voided]

    while late:
        move = data.draw(st.sampled_from(["execute", "look", "hear"]))
        if move == "execute" and done < len(real):
            done += 1
        elif move == "look":
            if found := infer(counting(), real[:done]):
                assert found.id not in {f.id for f in book}, "a name is used once"
                book.append(found)
            assert infer(counting(), real[:done]) is None
            assert total(counting()) == total(real[:done])
        elif heard := [n for n in late if n < done]:
            n = data.draw(st.sampled_from(heard))
            late.remove(n)
            change = replaced(counting(), real[n])
            voided |= {v.execution_id for v in change.voids}
            book += change.booked
        else:
            done = min(done + 1, len(real))
        assert total(counting()) <= total(real[:done])
    assert {f.id for f in counting()} == {f.id for f in real}


@given(executions)
def test_the_missing_execution_has_the_missing_value(real: list[Fill]) -> None:
    booked, missing = real[: len(real) // 2], real[len(real) // 2 :]
    guess = infer(booked, real)
    assert guess is not None
    assert guess.qty == total(missing)
    worth = [sum((f.qty * f.price for f in fills), Decimal(0)) for fills in (real, [*booked, guess])]
    assert abs(worth[0] - worth[1]) <= Decimal("0.00001")


def test_whoever_infers_from_the_same_facts_finds_the_same_name() -> None:
    one = inferred_id("b-1", Decimal("100.0"), ["x2", "x1"])
    assert one == inferred_id("b-1", Decimal(100), ["x1", "x2"])
    assert one == "inferred-1295d7b8-4099-5d6a-86f4-4837be0f4cb7"
    facts = [(b, Decimal(c), known) for b in ("b-1", "b-2") for c in (10, 100) for known in ([], ["x1"], ["x1", "x2"])]
    assert len({inferred_id(*fact) for fact in facts}) == len(facts)


@pytest.mark.parametrize("average", [None, Decimal(0), Decimal(-1)])
def test_without_a_price_nothing_is_inferred(average: Decimal | None) -> None:
    assert inferred_fill([], *ORDER, Decimal(10), average, MORNING) is None


def test_a_rounded_average_never_makes_a_price_that_cannot_be() -> None:
    booked = [Fill("x1", "GE", Side.BUY, Decimal(1000), Decimal("10.01"), MORNING, None, "b-1")]
    guess = inferred_fill(booked, *ORDER, Decimal("1000.001"), Decimal("10.00"), MORNING)
    assert guess is not None
    assert guess.price == 10


def test_an_execution_of_an_order_without_guesses_is_simply_booked() -> None:
    real = Fill("x1", "GE", Side.BUY, Decimal(10), Decimal(5), MORNING, None, "b-1")
    assert replaced([], real).booked == (real,)
    assert replaced([replace(real, execution_id="x0")], real).voids == ()
