"One plan per run, one order never stops the others, and the verdict follows from what became of them."

import threading
from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.clock import sleep
from tradenb.core.errors import BrokerUnavailable, DependencyError, OrderInvalid, RunFailed, ServiceUnavailable
from tradenb.portfolio.sizing import size_orders
from tradenb.trading.clients import AnswerUnclear
from tradenb.trading.orchestrator import (
    FINAL,
    GOOD,
    PATIENCE,
    Before,
    Leg,
    book_of,
    intent_of,
    keep_plan,
    make_plan,
    order_body,
    planning_time,
    read_plan,
    reference_prices,
    send_plan,
    settled_time,
    verdict,
    wait_until_final,
    waves,
)

DAY = date(2024, 1, 8)
NAMES = [f"N{i:02}" for i in range(12)]
shares = st.integers(-500, 500).map(Decimal)


def weights(values: list[float]) -> pl.DataFrame:
    rows = [
        dict(symbol=s, predicted_return=w / 10, rank=i, target_weight=w)
        for i, (s, w) in enumerate(zip(NAMES, values, strict=True), 1)
    ]
    return pl.DataFrame(rows)


def plan_for(values: list[float], held: dict[str, Decimal], trade_at: str = "close"):
    prices = {name: Decimal(20 + i) for i, name in enumerate(NAMES)}
    return make_plan(size_orders(weights(values), prices, held, Decimal(100_000)), "test", DAY, trade_at)


plans = st.builds(
    plan_for,
    st.lists(st.sampled_from([-0.2, -0.1, 0.0, 0.1, 0.2]), min_size=12, max_size=12),
    st.dictionaries(st.sampled_from([*NAMES, "OLD"]), shares.filter(bool), max_size=8),
)
some_plan = plan_for([0.2, 0.2, -0.2, -0.2] + [0.0] * 8, {"N00": Decimal(-7), "N05": Decimal(9), "OLD": Decimal(3)})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans)
def test_a_plan_is_read_back_as_it_was_made_in_sending_order(engine, plan):
    run = f"run-{hash(tuple(plan)):x}"
    kept = keep_plan(engine, run, plan)
    assert {(leg.order.symbol, leg.order.leg): leg for leg in kept} == {(x.order.symbol, x.order.leg): x for x in plan}
    sides = [leg.order.side for leg in kept if leg.order.side]
    assert sides == sorted(sides, key=["sell", "buy"].index)
    assert keep_plan(engine, run, []) == kept == read_plan(engine, run)


def test_a_second_plan_is_ignored_and_the_first_stands(engine):
    first = keep_plan(engine, "run", some_plan)
    other = plan_for([-0.1] * 6 + [0.1] * 6, {})
    assert keep_plan(engine, "run", other) == first
    assert keep_plan(engine, "another run", other) != first


@given(plan=plans)
def test_ids_are_unique_stable_and_given_to_orders_alone(plan):
    ids = [leg.client_order_id for leg in plan if leg.client_order_id]
    assert len(set(ids)) == len(ids)
    assert all((leg.client_order_id is None) == (leg.order.side is None) for leg in plan)
    again = make_plan([leg.order for leg in plan], "test", DAY, "close")
    assert again == plan
    elsewhere = make_plan([leg.order for leg in plan], "test", date(2024, 1, 9), "close")
    assert not set(ids) & {leg.client_order_id for leg in elsewhere if leg.client_order_id}


@pytest.mark.parametrize(("trade_at", "time_in_force"), [("close", "cls"), ("open", "opg")])
def test_orders_are_for_the_auction_that_the_strategy_trades_at(trade_at, time_in_force):
    for leg in plan_for([0.1] * 12, {}, trade_at):
        body = order_body(leg, "test", DAY, trade_at, "run")
        assert (body["type"], body["time_in_force"], body["trade_date"]) == ("market", time_in_force, "2024-01-08")
        assert intent_of(leg.order, "test", DAY, trade_at).client_order_id == leg.client_order_id


@given(plan=plans, refused=st.sets(st.sampled_from(NAMES)), kind=st.sampled_from([OrderInvalid, RunFailed]))
def test_a_refused_order_does_not_stop_the_others(plan, refused, kind):
    tried, seen = [], []

    def submit(body):
        tried.append(body["symbol"])
        if body["symbol"] in refused:
            raise kind(f"{body['symbol']} is refused")
        return {"status": "accepted"}

    sent = send_plan(plan, submit, lambda leg: {"symbol": leg.order.symbol}, lambda done, of: seen.append((done, of)))
    orders = [leg.order.symbol for leg in plan if leg.client_order_id]
    assert tried == orders
    assert seen == [(i, len(orders)) for i in range(1, len(orders) + 1)]
    assert [s.status for s in sent] == ["failed" if symbol in refused else "accepted" for symbol in orders]
    assert all("is refused" in s.detail for s in sent if s.status == "failed")


@settings(deadline=None)
@given(plan=plans, concurrency=st.integers(2, 9))
def test_a_wave_is_answered_before_the_next_one_leaves(plan, concurrency):
    log: list[tuple[str, int]] = []
    number = {leg: n for n, wave in enumerate(waves(plan)) for leg in wave}

    def submit(wave):
        log.append(("leaves", wave))
        sleep(0)
        log.append(("answered", wave))
        return {"status": "accepted"}

    sent = send_plan(plan, submit, number.__getitem__, concurrency=concurrency)
    assert [s.leg for s in sent] == [leg for leg in plan if leg.client_order_id]
    assert [wave for _, wave in log] == sorted(wave for _, wave in log)
    sides = [{leg.order.side for leg in wave} for wave in waves(plan)]
    assert all(len(side) == 1 for side in sides)
    assert {"buy"} not in sides or {"sell"} not in sides[sides.index({"buy"}) :]


@pytest.mark.parametrize("kind", [ServiceUnavailable, DependencyError, BrokerUnavailable])
def test_a_gateway_that_is_gone_and_a_broker_whom_nobody_reaches_end_the_sending(kind):
    def submit(body):
        raise kind("gone")

    for concurrency in (1, 8):
        with pytest.raises(kind, match="gone"):
            send_plan(some_plan, submit, lambda leg: {}, concurrency=concurrency)


outcomes = st.sampled_from(["accepted", "refused", "away", "unclear"])
FAILURES = {"refused": OrderInvalid, "away": BrokerUnavailable, "unclear": AnswerUnclear}


@settings(deadline=None)
@given(plan=plans, told=st.lists(outcomes, min_size=40, max_size=40), concurrency=st.sampled_from([1, 4]))
def test_orders_in_doubt_are_asked_for_once_more_when_all_have_left_and_stop_nobody(plan, told, concurrency):
    tried: list[Leg] = []
    heard: dict[Leg, str] = {}
    lock = threading.Lock()

    def submit(leg):
        with lock:
            outcome = told[len(tried)] if len(tried) else "accepted"  # the first gets through: the broker is there
            tried.append(leg)
            heard[leg] = outcome
        if outcome in FAILURES:
            raise FAILURES[outcome](f"{outcome} {leg.order.symbol}")
        return {"status": "accepted"}

    orders = [leg for leg in plan if leg.client_order_id]
    sent = send_plan(plan, submit, lambda leg: leg, concurrency=concurrency)
    assert [one.leg for one in sent] == orders
    assert sorted(map(id, tried[: len(orders)])) == sorted(map(id, orders))
    again = tried[len(orders) :]
    assert len(set(again)) == len(again)
    words = {"accepted": "accepted", "refused": "failed", "away": "unknown", "unclear": "unknown"}
    assert [one.status for one in sent] == [words[heard[one.leg]] for one in sent]
    assert all(one.leg.order.symbol in one.detail for one in sent if one.status != "accepted")


def test_after_so_many_orders_without_an_answer_no_more_are_sent():
    names = [f"S{i:03}" for i in range(200)]
    rows = [dict(symbol=s, predicted_return=0.1, rank=i, target_weight=0.1) for i, s in enumerate(names, 1)]
    prices = dict.fromkeys(names, Decimal(20))
    plan = make_plan(size_orders(pl.DataFrame(rows), prices, {}, Decimal(100_000)), "test", DAY, "close")
    for concurrency in (1, 4):
        tried = []

        def submit(body, tried=tried):
            tried.append(body)
            sleep(0.001)
            if len(tried) > 30:
                raise BrokerUnavailable("timed out")
            return {"status": "accepted"}

        with pytest.raises(BrokerUnavailable, match=f"the outcome of {PATIENCE} orders in a row is unknown"):
            send_plan(plan, submit, lambda leg: {}, concurrency=concurrency)
        assert len(tried) <= 30 + PATIENCE + 3 * concurrency


@given(st.lists(st.sampled_from([*FINAL, "failed", "accepted", "partially_filled", "unknown"])))
def test_the_verdict_is_completed_only_when_every_order_did_its_work(statuses):
    answer = verdict(statuses)
    assert (answer == "completed") == all(s in GOOD for s in statuses)
    if answer == "failed":
        assert not {*GOOD, "partially_filled"} & set(statuses)
    assert verdict(statuses[::-1]) == answer


ratios = st.sampled_from([2.0, 3.0, 0.25, 1.5, 0.1])


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(ratios, min_size=1, max_size=2), max_size=4))
def test_reference_prices_are_in_the_shares_of_the_trade_date(splits):
    bars = pl.DataFrame({"symbol": NAMES, "close": [10.0 + i for i in range(len(NAMES))]})
    rows = [(s, kind, r) for s, rs in splits.items() for kind, r in zip(("split", "stock_dividend"), rs, strict=False)]
    rows += [(NAMES[0], "dividend", 1.0), (NAMES[1], "special_dividend", 1.0)]
    actions = pl.DataFrame(rows, schema={"symbol": pl.String, "kind": pl.String, "ratio": pl.Float64}, orient="row")
    prices = reference_prices(bars, actions)
    for symbol, close in bars.iter_rows():
        expected = close
        for ratio in splits.get(symbol, []):
            expected /= ratio
        assert float(prices[symbol]) == pytest.approx(expected, abs=1e-6)


def test_prices_that_are_none_are_left_out():
    bars = pl.DataFrame({"symbol": ["A", "B", "C", "D"], "close": [0.0, -1.0, float("nan"), None]})
    none = pl.DataFrame(schema={"symbol": pl.String, "kind": pl.String, "ratio": pl.Float64})
    assert reference_prices(bars, none) == {}


def before(prices: dict[str, str], marks: dict[str, str] | None = None, gone: set[str] | None = None) -> Before:
    exact = {name: Decimal(price) for name, price in prices.items()}
    older = {name: Decimal(price) for name, price in (marks or {}).items()}
    return Before(exact, exact | older, dict.fromkeys(exact | older, 1e9), frozenset(gone or ()))


def test_a_name_that_leaves_today_or_was_silent_yesterday_gets_no_order():
    market = before({"GONE": "10", "GOOD": "20"}, {"SILENT": "5"}, {"GONE"})
    held = market.held({"SILENT": Decimal(100), "GONE": Decimal(50)}, Decimal(10_000))
    around = market.context(["GONE", "GOOD"], held)
    assert dict(zip(around.symbols, around.tradable.tolist(), strict=True)) == {
        "GONE": False,
        "GOOD": True,
        "SILENT": False,
    }
    assert dict(zip(around.symbols, around.held.tolist(), strict=True)) == {"GONE": 0.05, "GOOD": 0.0, "SILENT": 0.05}


def test_positions_that_the_market_has_no_price_of_have_no_weight():
    assert before({"A": "10"}).held({"MANUAL": Decimal(3), "A": Decimal(-1)}, Decimal(100)) == {"A": -0.1}


def test_the_book_holds_what_was_ranked_and_what_must_stay():
    signal = {"symbol": "A", "predicted_return": 0.01, "rank": 1, "target_weight": 1.0, "reason": None}
    stays = {"symbol": "B", "target_weight": -0.2, "reason": "NOT_TRADABLE"}
    frame = book_of({"signals": [signal], "kept": [stays]})
    assert frame.rows() == [("A", 0.01, 1, 1.0), ("B", None, None, -0.2)]
    assert book_of({"signals": [], "kept": []}).is_empty()


@pytest.mark.parametrize("day", [date(2024, 1, 8), date(2024, 7, 3), date(2024, 11, 29), date(2024, 3, 11)])
def test_planning_comes_before_the_open_and_settling_after_the_close(day):
    from tradenb.core.calendar import session

    assert planning_time(day) < session(day).open < session(day).close < settled_time(day)


def test_waiting_ends_with_the_last_order_or_with_the_time():
    states = iter([["accepted", "filled"], ["accepted", "filled"], ["filled", "filled"]])
    seen = wait_until_final(lambda: [{"status": s} for s in next(states)], 60, 0)
    assert [row["status"] for row in seen] == ["filled", "filled"]
    assert wait_until_final(lambda: [{"status": "accepted"}], 0, 0) == [{"status": "accepted"}]
    assert wait_until_final(list, 0, 0) == []
