"What the controls know: prices in the session's shares, losses that outlive the process, sums over several gateways; and unknown where nobody says."

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine

from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import BrokerUnavailable, OrderDenied
from tradenb.core.settings import Settings
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.controls import Allowed, Limits, Parent
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, Side, TimeInForce
from tradenb.execution.reference import Guard, Reference, closed_since, limits_of, remember, session_of
from tradenb.execution.switch import Level, Switch

from .conftest import DAY, MORNING, Market

D = Decimal
LIMITS = Limits(
    max_order_notional=D(100_000),
    max_gross=D(4),
    max_net=D(2),
    max_volume_share=D("0.2"),
    price_collar=D("0.2"),
    max_price_age_sessions=1,
    max_orders_per_minute=8,
    max_window_notional=D(60_000),
    max_daily_loss=D("0.1"),
    max_drawdown=D("0.3"),
    check_shorts=True,
    check_buying_power=True,
)


def desk(market: Market, engine: Engine, clock: SimulatedClock, limits: Limits = LIMITS, **options: Any) -> Gateway:
    "A gateway with controls, as the service has it."
    broker, switch = market.broker(), Switch(engine, clock)
    guard = Guard(clock, Reference(broker, engine, clock, limits), limits, switch)
    return Gateway(Ledger(engine, clock), broker, guard=guard, switch=switch, **options)


def outcome(gateway: Gateway, intent: OrderIntent, **options: Any) -> str:
    try:
        return str(gateway.submit(intent, **options)[0].status)
    except OrderDenied as denied:
        return str(denied).split(":")[0]


def test_an_order_that_passes_keeps_its_value_and_one_that_does_not_is_kept_as_a_denial(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway = desk(market, engine, clock)
    order, _ = gateway.submit(intent("S01", 100))
    assert order.reference_price and order.value == 100 * order.reference_price
    assert outcome(gateway, intent("S02", 10_000)) == "ORDER_NOTIONAL"
    (denial,) = gateway.ledger.denials(DAY)
    assert (denial.code, denial.symbol) == ("ORDER_NOTIONAL", "S02") and denial.numbers["limit"] == "100000"
    assert [o.symbol for o in gateway.ledger.orders()] == ["S01"]


def test_prices_and_volumes_are_in_the_shares_of_the_session(
    make_market: Callable[..., Market], engine: Engine, clock: SimulatedClock
) -> None:
    actions = [
        ("S01", DAY, "split", 0.1, 0.0),
        ("S02", DAY, "split", 3.0, 0.0),
        ("S03", DAY, "stock_dividend", 1.25, 0.0),
    ]
    market = make_market(actions)
    reference = Reference(market.broker(), engine, clock, LIMITS)
    reference.prepare(["S01"], DAY)
    plain = Reference(make_market().broker(), engine, clock, LIMITS)
    plain.prepare(["S01"], DAY)
    assert reference.facts and plain.facts
    for symbol, ratio in (("S01", D("0.1")), ("S02", D(3)), ("S03", D("1.25")), ("S04", D(1))):
        assert reference.facts.prices[symbol] == round(plain.facts.prices[symbol] / ratio, 9)
        assert reference.facts.volumes[symbol] == plain.facts.volumes[symbol] * ratio


def test_a_name_that_does_not_print_any_more_goes_stale_and_may_still_be_sold(
    make_market: Callable[..., Market], engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    market = make_market(ends={"S01": DAY, "S02": date(2017, 5, 26)})
    gateway = desk(market, engine, clock)
    assert gateway.guard and outcome(gateway, intent("S01", 100)) == "accepted"
    assert outcome(gateway, intent("S02", 10)) in ("PRICE_STALE", "SYMBOL_NOT_TRADABLE")
    reference = gateway.guard.reference
    assert closed_since(reference.facts.dates["S02"], MORNING) == 2
    assert closed_since(reference.facts.dates["S01"], MORNING) == 0


def test_an_order_of_another_session_stays_here_and_the_next_one_may_come_after_the_close(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway, yesterday, tomorrow = desk(market, engine, clock), date(2017, 5, 31), date(2017, 6, 2)
    for day in (yesterday, tomorrow):
        assert outcome(gateway, intent("S01", 10, trade_date=day)) == "OTHER_SESSION"
    assert {d.numbers["session"] for d in gateway.ledger.denials()} == {str(DAY)}
    assert not market.broker().orders()
    assert outcome(gateway, intent("S01", 10)) == "accepted"
    evening = new_york(DAY, 17)
    market.step(evening)
    clock.advance_to(evening)
    assert outcome(gateway, intent("S02", 10)) == "OTHER_SESSION"
    assert outcome(gateway, intent("S02", 10, trade_date=tomorrow, time_in_force=TimeInForce.DAY)) == "accepted"


def test_an_outage_is_told_as_such_and_an_order_that_no_limit_asks_about_passes(
    engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gone, switch = (
        Broker(alpaca_client("http://127.0.0.1:9", "K", "S", 1), "http://127.0.0.1:9", attempts=1),
        Switch(engine, clock),
    )

    def judged(limits: Limits) -> Any:
        guard = Guard(clock, Reference(gone, engine, clock, limits), limits, switch)
        guard.prepare([intent()])
        with engine.begin() as connection:
            return guard(connection, intent(), "x")

    asked = {"PRICE": LIMITS, "VOLUME": Limits(max_volume_share=D(1)), "EQUITY": Limits(max_daily_loss=D("0.1"))}
    for what, limits in asked.items():
        with pytest.raises(BrokerUnavailable, match=f"{what}_UNKNOWN.*nothing was stored"):
            judged(limits)
    assert isinstance(judged(Limits(max_orders_per_minute=5)), Allowed)


def test_an_outage_stays_one_while_somebody_else_asks_again(
    engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    asking, go_on = threading.Event(), threading.Event()
    go_on.set()

    class Slow(Broker):
        def now(self) -> datetime:
            asking.set()
            go_on.wait()
            return super().now()

    gone = Slow(alpaca_client("http://127.0.0.1:9", "K", "S", 1), "http://127.0.0.1:9", attempts=1)
    guard = Guard(clock, Reference(gone, engine, clock, LIMITS), LIMITS, Switch(engine, clock))
    guard.prepare([intent()])
    asking.clear()
    go_on.clear()
    other = threading.Thread(target=guard.prepare, args=([intent("S02")],))
    other.start()
    asking.wait()
    with pytest.raises(BrokerUnavailable, match="nothing was stored"), engine.begin() as connection:
        guard(connection, intent(), "x")
    go_on.set()
    other.join()


def test_a_database_that_fails_while_it_is_prepared_is_no_error_of_the_order(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    reference = Reference(market.broker(), engine, clock, LIMITS)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE risk_days RENAME TO away")
    reference.prepare(["S01"], DAY)
    assert reference.facts and reference.account is None
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO risk_days")
    reference.prepare(["S01"], DAY)
    assert reference.account is not None


def test_the_limits_of_two_gateways_on_one_database_are_one(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    "Eight orders a minute over both, whoever asks, at once."
    gateways, outcomes = [desk(market, engine, clock) for _ in range(2)], list[str]()

    def pour(gateway: Gateway, first: int) -> None:
        for n in range(first, first + 10):
            outcomes.append(outcome(gateway, intent(f"S{n:02}", 10, sequence=n)))

    threads = [threading.Thread(target=pour, args=(g, 10 * i)) for i, g in enumerate(gateways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("accepted"), outcomes.count("ORDER_RATE")) == (8, 12)
    assert outcome(desk(market, engine, clock), intent("S29", 10)) == "ORDER_RATE"  # nor does a restart forget
    clock.advance(timedelta(seconds=61))
    assert outcome(gateways[0], intent("S29", 10)) == "accepted"


def test_dollars_of_a_window_add_up(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway = desk(market, engine, clock)
    price = gateway.guard and (gateway.guard.prepare([intent()]), gateway.guard.reference.prices["S01"])[1]
    assert price
    qty = int(30_000 / price)
    assert [outcome(gateway, intent("S01", qty, sequence=n)) for n in range(3)] == [
        "accepted",
        "accepted",
        "WINDOW_NOTIONAL",
    ]
    clock.advance(timedelta(minutes=15, seconds=1))
    assert outcome(gateway, intent("S01", qty, sequence=2)) == "accepted"


def test_the_same_purpose_under_another_id_is_a_duplicate_until_the_first_has_ended(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway = desk(market, engine, clock)
    order, _ = gateway.submit(intent("S01", 10))
    assert outcome(gateway, intent("S01", 11)) == "DUPLICATE_ORDER"
    assert outcome(gateway, intent("S01", 10), client_order_id="another-name") == "DUPLICATE_ORDER"
    assert outcome(gateway, intent("S01", 11, sequence=1)) == "accepted"
    gateway.cancel(order.client_order_id)
    assert outcome(gateway, intent("S01", 12)) == "accepted"


def test_children_never_exceed_their_parent(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway = desk(market, engine, clock)
    children = [intent("S01", 40, sequence=n) for n in range(3)]
    parent = Parent("p1", D(100))
    assert [outcome(gateway, child, parent=parent) for child in children] == [
        "accepted",
        "accepted",
        "PARENT_QTY_EXCEEDED",
    ]
    larger = Parent("p1", D(1000))  # a parent does not grow by being told so
    assert outcome(gateway, children[2], parent=larger) == "PARENT_QTY_EXCEEDED"
    gateway.cancel(children[0].client_order_id)
    assert outcome(gateway, children[2], parent=parent) == "accepted"


def test_what_was_admitted_since_the_broker_was_asked_is_taken_off_the_buying_power(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    limits = Limits(check_buying_power=True)
    gateway = desk(market, engine, clock, limits)
    guard = gateway.guard
    assert guard
    guard.prepare([intent("S01")])
    account, price = guard.reference.account, guard.reference.prices["S01"]
    most = int(account.buying_power / price)
    half = most // 2 + 1
    assert outcome(gateway, intent("S01", half)) == "accepted"
    assert outcome(gateway, intent("S01", half, sequence=1)) == "BUYING_POWER"
    assert guard.reference.account is account
    clock.advance(timedelta(seconds=61))
    assert outcome(gateway, intent("S01", half, sequence=1)) == "BUYING_POWER"
    assert guard.reference.account is not account


def test_a_loss_halts_for_good_lets_out_and_outlives_the_process(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    limits = replace(LIMITS, max_window_notional=D(0), max_order_notional=D(0), max_volume_share=D(0))
    gateway = desk(market, engine, clock, limits)
    gateway.submit(intent("S01", 100))
    market.step(new_york(DAY, 20))
    clock.advance_to(new_york(DAY, 20))
    gateway.ledger.book_fill(_fill_of(market))
    after = date(2017, 6, 2)
    remember(engine, after, D(1_300_000), D(1_300_000), clock.now())  # the day began with more than there is
    fresh = desk(market, engine, clock, limits)
    buy, sell = intent("S02", 5, trade_date=after), intent("S01", 60, side=Side.SELL, trade_date=after)
    assert outcome(fresh, sell) == "accepted"
    assert outcome(fresh, buy) == "DAILY_LOSS"
    switch = Switch(engine, clock)
    assert switch.level("any", "S01") is Level.REDUCE and "DAILY_LOSS" in switch.state()[0].why
    assert outcome(desk(market, engine, clock, Limits()), replace(buy, sequence=1)) == "KILL_SWITCH"
    assert outcome(desk(market, engine, clock, Limits()), replace(sell, qty=D(40), sequence=1)) == "accepted"
    switch.release("*", "ann")
    assert fresh.guard and fresh.guard.watch(after)
    assert switch.level("any", "S01") is Level.REDUCE


def _fill_of(market: Market) -> Any:
    from tradenb.execution.broker import entry_of
    from tradenb.execution.entries import Fill

    return next(e for e in map(entry_of, market.broker().activities()) if isinstance(e, Fill))


def test_opening_equity_stands_and_peaks_only_rise(engine: Engine) -> None:
    def noted(day: date, *equities: int) -> Sequence[Decimal]:
        return [remember(engine, day, D(e), D(e), MORNING) for e in equities][-1]

    assert noted(DAY, 100, 120, 90) == (100, 120)
    assert noted(date(2017, 6, 2), 95, 110) == (95, 120)
    ends: list[Any] = []
    day = date(2017, 6, 5)
    threads = [threading.Thread(target=lambda n=n: ends.append(noted(day, 100 + n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = {opening for opening, _ in ends}
    assert len(opened) == 1 and noted(day, 1)[1] == 120


def test_a_block_in_force_denies_inside_the_admission(
    market: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway = desk(market, engine, clock)
    Switch(engine, clock).engage("symbol:S01", Level.BLOCK, "ann", "news")
    assert outcome(gateway, intent("S01", 1)) == "KILL_SWITCH"
    assert outcome(gateway, intent("S02", 1)) == "accepted"
    assert market.broker().open_orders()[0].symbol == "S02"


def test_a_reference_asks_in_bulk_and_only_when_it_must(market: Market, engine: Engine, clock: SimulatedClock) -> None:
    reference = Reference(market.broker(), engine, clock, LIMITS)
    reference.prepare(["S01"], DAY)
    facts, account = reference.facts, reference.account
    assert facts and len(facts.prices) == 30
    reference.prepare(["S05", "S09"], DAY)
    assert (reference.facts, reference.account) == (facts, account) and reference.facts is facts
    reference.prepare(["NEW"], DAY)
    known = reference.facts
    assert known is not facts and known and "NEW" not in known.prices
    reference.prepare(["NEW"], DAY)
    assert reference.facts is known
    clock.advance(timedelta(seconds=61))
    reference.prepare(["S01"], DAY)
    assert reference.facts is not known and reference.account is not account


def test_the_session_of_an_instant_runs_from_close_to_close() -> None:
    assert [session_of(new_york(DAY, hour)) for hour in (1, 9, 12, 16)] == [DAY, DAY, DAY, date(2017, 6, 2)]
    assert closed_since(DAY, MORNING) == 0


def test_limits_are_exactly_what_the_settings_say(make_settings: Callable[..., Settings]) -> None:
    limits = limits_of(make_settings(**{"limits.restricted": "AAPL, KO", "limits.max_volume_share": "0.07"}).limits)
    assert (limits.max_volume_share, limits.restricted) == (D("0.07"), frozenset({"AAPL", "KO"}))
    assert limits_of(make_settings().limits).max_order_notional == 500_000
