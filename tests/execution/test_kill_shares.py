"What a strategy's own shares are, after whatever befell the account."

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
from sqlalchemy import Engine

from tradenb.core.clock import SimulatedClock, new_york
from tradenb.execution.entries import CashEvent, Fill
from tradenb.execution.gateway import Gateway
from tradenb.execution.kill import Books, Kill, fitting, share_of
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, Side
from tradenb.execution.switch import Level
from tradenb.execution.updates import catch_up

from .conftest import DAY, Market, write_feed

NEXT, AFTER = date(2017, 6, 2), date(2017, 6, 5)
Make = Callable[..., OrderIntent]


def shares(ledger: Ledger, strategy: str) -> dict[str, int]:
    return {symbol: int(qty) for symbol, qty in share_of(ledger, strategy).items()}


def test_what_was_closed_for_everybody_is_no_strategys_any_more(
    market: Market, ledger: Ledger, clock: SimulatedClock, intent: Make
) -> None:
    gateway = Gateway(ledger, market.broker())
    flatten = lambda scope: Kill(market.broker(), Books(ledger.engine, clock), scope, looks=2).turn(
        Level.FLATTEN, "ann"
    )
    gateway.submit(intent("S01", 100, strategy="one"))
    market.step(new_york(NEXT, 8))
    flatten("*")
    market.step(new_york(NEXT, 20))
    gateway.submit(intent("S01", 70, strategy="two", trade_date=AFTER))
    market.step(new_york(AFTER, 20))
    assert flatten("strategy:one").sent == []
    assert (shares(ledger, "one"), shares(ledger, "two")) == ({}, {"S01": 70})


def test_what_a_company_became_belongs_to_whom_it_belonged(tmp_path: Path, engine: Engine, intent: Make) -> None:
    folder = write_feed(tmp_path / "feed", ends={"S01": DAY, "S02": DAY})
    actions = [
        ("S01", "symbol_change", 1.0, None, "S29"),
        ("S02", "delisting", 2.0, 1.0, "S28"),
        ("S03", "spin_off", 0.5, None, "S27"),
        ("S04", "split", 0.5, None, None),
    ]
    rows = [(symbol, NEXT, kind, ratio, cash, target) for symbol, kind, ratio, cash, target in actions]
    names = ["symbol", "ex_date", "kind", "ratio", "cash", "target"]
    pl.DataFrame(rows, names, orient="row").write_parquet(folder / "actions.parquet")
    market, ledger = Market(folder).up(), Ledger(engine, SimulatedClock(new_york(DAY, 9)))
    gateway = Gateway(ledger, market.broker())
    for symbol in ("S01", "S02", "S03", "S04"):
        gateway.submit(intent(symbol, 60, strategy="one"))
        gateway.submit(intent(symbol, 40, strategy="two", side=Side.BUY))
    market.step(new_york(NEXT, 9))
    catch_up(gateway)
    market.down()
    assert shares(ledger, "one") == {"S03": 60, "S04": 30, "S27": 30, "S28": 120, "S29": 60}
    assert shares(ledger, "two") == {"S03": 40, "S04": 20, "S27": 20, "S28": 80, "S29": 40}
    assert shares(ledger, "three") == {}


def test_lines_that_tell_nothing_of_each_other_make_nobody_an_owner(ledger: Ledger, intent: Make) -> None:
    noon = new_york(DAY, 12)
    order, _ = ledger.record_intent(intent("S01", 60, strategy="one"))
    ledger.book([Fill("x1", "S01", Side.BUY, Decimal(60), Decimal(20), noon, order.client_order_id)])
    moved = [("S01", -60), ("S02", 60), ("S03", 5)]
    ledger.book(CashEvent(f"e-{s}", "journal", Decimal(0), new_york(NEXT, 0), s, Decimal(q)) for s, q in moved)
    ledger.book([CashEvent("e-9", "split", Decimal(0), new_york(NEXT, 0), "S03", Decimal(5))])
    assert (shares(ledger, "one"), shares(ledger, "two")) == ({}, {})


def test_a_part_of_whole_shares_is_whole() -> None:
    assert fitting(Decimal(33), Decimal("13.2")) == 13
    assert fitting(Decimal("-33.5"), Decimal("-13.2")) == Decimal("-13.2")


def test_parts_of_a_share_that_a_strategy_bought_are_its_own(ledger: Ledger, intent: Make) -> None:
    for strategy, qty in (("one", "0.5"), ("two", "10.5"), ("three", "9")):
        order, _ = ledger.record_intent(intent("S01", qty, strategy=strategy))
        fill = Fill(strategy, "S01", Side.BUY, Decimal(qty), Decimal(20), new_york(DAY, 12), order.client_order_id)
        ledger.book([fill])
    assert [share_of(ledger, name) for name in ("one", "two", "three")] == [
        {"S01": Decimal("0.5")},
        {"S01": Decimal("10.5")},
        {"S01": Decimal(9)},
    ]
    ledger.book([Fill("k", "S01", Side.SELL, Decimal(7), Decimal(20), new_york(DAY, 13), "kill-20170601-S01-1")])
    assert share_of(ledger, "three") == {"S01": Decimal(5)} and share_of(ledger, "two") != {"S01": Decimal(6)}
