"Pre-trade controls: exact at their boundaries, never kinder to a larger order, never in the way of getting out."

import re
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.settings import Limits as Section
from tradenb.execution.controls import (
    CONTROLS,
    LAST_HOP,
    LOSSES,
    WIRE,
    Allowed,
    Case,
    Denial,
    Limits,
    Parent,
    RiskState,
    as_wired,
    check,
    differs,
    halting,
)
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce

D = Decimal
DOCS = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "controls.md"
BUY = OrderIntent("s", "A", Side.BUY, OrderType.MARKET, TimeInForce.DAY, date(2017, 6, 1), qty=D(100))
SELL = replace(BUY, side=Side.SELL)
CALM = RiskState(
    price=D(50), price_age=0, usual_volume=D(100_000), tradable=True, shortable=True, equity=D(1_000_000),
    opening_equity=D(1_000_000), peak_equity=D(1_000_000), buying_power=D(4_000_000),
)  # fmt: skip
TIGHT = Limits(
    D(10_000), D(500), D(20_000), D(4), D(2), D("0.2"), D("0.2"), 1, 10, D(15), D(50_000), D("0.1"), D("0.3"),
    frozenset({"BAD"}), True, True,
)  # fmt: skip


def code(order: OrderIntent, state: RiskState = CALM, limits: Limits = TIGHT) -> str:
    answer = check(order, state, limits)
    return answer.code if isinstance(answer, Denial) else "allowed"


def test_without_limits_everything_passes_but_what_no_limit_is_needed_for() -> None:
    assert check(BUY, RiskState(), Limits()) == Allowed(None, None)
    assert code(BUY, RiskState(blocked="drill"), Limits()) == "KILL_SWITCH"
    assert code(BUY, RiskState(duplicate_of="x"), Limits()) == "DUPLICATE_ORDER"
    assert code(BUY, RiskState(tradable=False), Limits()) == "SYMBOL_NOT_TRADABLE"


CENT, SHARE = D("0.01"), D("0.000000001")
# the order or state exactly at its limit, and one unit beyond it
BOUNDARIES: dict[str, tuple[Callable[[Decimal], tuple[OrderIntent, RiskState]], Limits, Decimal, Decimal]] = {
    "ORDER_NOTIONAL": (lambda x: (replace(BUY, qty=None, notional=x), CALM), TIGHT, D(10_000), CENT),
    "ORDER_SHARES": (
        lambda x: (replace(BUY, qty=x), CALM),
        replace(TIGHT, max_order_notional=D(0)),
        D(400),
        D(0),
    ),
    "POSITION_NOTIONAL": (lambda x: (BUY, replace(CALM, held=x)), TIGHT, D(300), SHARE),
    "GROSS_EXPOSURE": (lambda x: (BUY, replace(CALM, gross=x)), TIGHT, D(3_995_000), CENT),
    "NET_EXPOSURE": (lambda x: (BUY, replace(CALM, net=x)), TIGHT, D(1_995_000), CENT),
    "VOLUME_SHARE": (lambda x: (BUY, replace(CALM, traded=x)), TIGHT, D(19_900), SHARE),
    "BUYING_POWER": (lambda x: (BUY, replace(CALM, committed=x)), TIGHT, D(3_995_000), CENT),
    "ORDER_RATE": (lambda x: (BUY, replace(CALM, orders_in_minute=int(x))), TIGHT, D(9), D(1)),
    "WINDOW_NOTIONAL": (lambda x: (BUY, replace(CALM, notional_in_window=x)), TIGHT, D(45_000), CENT),
    "DAILY_LOSS": (lambda x: (BUY, replace(CALM, equity=-x)), TIGHT, D(-900_000), CENT),
    "DRAWDOWN": (lambda x: (BUY, replace(CALM, peak_equity=x)), TIGHT, D(1_000_000) / D("0.7"), CENT),
    "PRICE_COLLAR": (lambda x: (replace(BUY, type=OrderType.LIMIT, limit_price=x), CALM), TIGHT, D(60), CENT),
    "PRICE_STALE": (lambda x: (BUY, replace(CALM, price_age=int(x))), TIGHT, D(0), D(1)),
    "PARENT_QTY_EXCEEDED": (
        lambda x: (BUY, replace(CALM, parent=Parent("p", D(1000)), parent_used=x)),
        TIGHT,
        D(900),
        SHARE,
    ),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_what_equals_a_limit_passes_and_one_unit_beyond_does_not(name: str) -> None:
    at, limits, edge, unit = BOUNDARIES[name]
    if name == "ORDER_SHARES":
        edge, unit = limits.max_order_shares - 100, SHARE
        limits = replace(limits, max_order_shares=edge)
    if name == "DRAWDOWN":
        edge = edge.quantize(CENT, "ROUND_FLOOR")
    order, state = at(edge)
    assert code(order, state, limits) == "allowed"
    order, state = at(edge + unit)
    assert code(order, state, limits) == name
    assert check(order, state, limits).numbers  # type: ignore[union-attr]


# What a number that nobody knows makes of an order, and the limits that do not need it.
UNKNOWN = {
    "price": ("PRICE_UNKNOWN", Limits(max_volume_share=D(1))),
    "usual_volume": ("VOLUME_UNKNOWN", replace(TIGHT, max_volume_share=D(0))),
    "equity": ("EQUITY_UNKNOWN", replace(TIGHT, max_gross=D(0), max_net=D(0), max_daily_loss=D(0), max_drawdown=D(0))),
    "buying_power": ("BUYING_POWER_UNKNOWN", replace(TIGHT, check_buying_power=False)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_knows_is_denied_unless_the_limit_that_needs_it_is_off(name: str) -> None:
    denial, without = UNKNOWN[name]
    blind = replace(CALM, **{name: None})
    assert (code(BUY, blind), code(BUY, blind, without)) == (denial, "allowed")


@pytest.mark.parametrize(
    ("day", "found"),
    [(date(2017, 5, 31), "OTHER_SESSION"), (date(2017, 6, 1), "allowed"), (date(2017, 6, 2), "OTHER_SESSION")],
)
def test_an_order_is_for_the_session_that_the_broker_trades_in(day: date, found: str) -> None:
    for order in (replace(BUY, trade_date=day), replace(SELL, trade_date=day)):
        assert code(order, replace(CALM, session=date(2017, 6, 1), held=D(100))) == found
    assert code(replace(BUY, trade_date=day), CALM) == "allowed"  # nobody asked


def test_a_short_sale_needs_the_word_that_shares_can_be_borrowed() -> None:
    assert code(SELL, replace(CALM, shortable=None)) == "SHORT_UNKNOWN"
    assert code(SELL, replace(CALM, shortable=False)) == "SHORT_UNAVAILABLE"
    assert code(SELL, replace(CALM, shortable=False), replace(TIGHT, check_shorts=False)) == "allowed"
    assert code(SELL, replace(CALM, shortable=False, held=D(100))) == "allowed"
    assert code(BUY, replace(CALM, shortable=False)) == "allowed"


def test_a_short_sale_binds_three_percent_more() -> None:
    tight = replace(CALM, buying_power=D(5149))
    assert (code(BUY, tight), code(SELL, tight)) == ("allowed", "BUYING_POWER")
    assert code(SELL, replace(CALM, buying_power=D(5150))) == "allowed"


def test_a_symbol_that_nobody_trades_is_not_sold_either() -> None:
    assert code(replace(SELL, symbol="BAD"), replace(CALM, held=D(100))) == "SYMBOL_RESTRICTED"


def test_reduce_only_lets_out_and_blocked_lets_nothing_pass() -> None:
    held = replace(CALM, held=D(100))
    assert code(SELL, replace(held, reduce_only="loss")) == "allowed"
    assert code(replace(SELL, qty=D(101)), replace(held, reduce_only="loss")) == "KILL_SWITCH"
    assert code(SELL, replace(held, blocked="drill")) == "KILL_SWITCH"
    assert code(SELL, replace(held, selling=D(1), reduce_only="loss")) == "KILL_SWITCH"


def test_an_order_is_valued_at_what_it_may_cost_at_most() -> None:
    limit = replace(BUY, type=OrderType.LIMIT, limit_price=D(55))
    assert check(limit, CALM, TIGHT) == Allowed(D(5500), D(50))
    assert check(replace(limit, limit_price=D(45)), CALM, TIGHT) == Allowed(D(5000), D(50))
    assert check(replace(BUY, qty=None, notional=D(777)), CALM, TIGHT) == Allowed(D(777), D(50))


AMOUNTS = st.decimals(0, 10**6, places=2)
SHARES = st.decimals("0.000000001", 10**6, places=9)


def maybe(values: st.SearchStrategy[Decimal]) -> st.SearchStrategy[Decimal | None]:
    return st.one_of(st.none(), values)


STATES = st.builds(
    RiskState,
    reduce_only=st.sampled_from(["", "", "loss"]),
    price=maybe(st.decimals("0.01", 10**4, places=2)),
    price_age=st.sampled_from([None, 0, 1, 3]),
    usual_volume=maybe(SHARES),
    traded=AMOUNTS,
    tradable=st.sampled_from([None, True, False]),
    shortable=st.sampled_from([None, True, False]),
    held=st.decimals(-(10**5), 10**5, places=3),
    buying=AMOUNTS,
    selling=AMOUNTS,
    gross=AMOUNTS,
    net=st.decimals(-(10**6), 10**6, places=2),
    equity=maybe(st.decimals(-(10**5), 10**7, places=2)),
    opening_equity=maybe(AMOUNTS),
    peak_equity=maybe(AMOUNTS),
    buying_power=maybe(AMOUNTS),
    committed=AMOUNTS,
    orders_in_minute=st.integers(0, 12),
    notional_in_window=AMOUNTS,
    parent=st.one_of(st.none(), st.builds(Parent, st.just("p"), SHARES)),
    parent_used=AMOUNTS,
)
SWITCHES = st.builds(
    lambda on: replace(TIGHT, **{f.name: f.default for f in fields(Limits) if f.name in on}),  # type: ignore[arg-type]
    st.sets(st.sampled_from([f.name for f in fields(Limits) if f.name != "restricted"])),
)
LOOSE = replace(TIGHT, max_order_notional=D(10**9), max_order_shares=D(10**9), max_window_notional=D(10**10))


@given(state=STATES, limits=SWITCHES, side=st.sampled_from(list(Side)), sizes=st.tuples(SHARES, SHARES))
def test_a_larger_order_never_passes_where_a_smaller_one_is_denied(
    state: RiskState, limits: Limits, side: Side, sizes: tuple[Decimal, Decimal]
) -> None:
    small, large = (replace(BUY, side=side, qty=qty) for qty in sorted(sizes))
    if code(small, state, limits) != "allowed":
        assert code(large, state, limits) != "allowed"


@given(state=STATES, limits=SWITCHES, side=st.sampled_from(list(Side)), sizes=st.tuples(AMOUNTS, AMOUNTS))
def test_nor_do_more_dollars(state: RiskState, limits: Limits, side: Side, sizes: tuple[Decimal, Decimal]) -> None:
    small, large = (replace(BUY, side=side, qty=None, notional=size + CENT) for size in sorted(sizes))
    if code(small, state, limits) != "allowed":
        assert code(large, state, limits) != "allowed"


OPENING = {control.code for control in CONTROLS if control.opening_only}


@given(state=STATES, limits=SWITCHES, side=st.sampled_from(list(Side)), qty=SHARES)
def test_no_limit_on_exposure_money_or_loss_stops_an_order_that_reduces(
    state: RiskState, limits: Limits, side: Side, qty: Decimal
) -> None:
    order = replace(BUY, side=side, qty=qty)
    case = Case(order, state, limits)
    closing = -side.sign * state.held - case.same_side
    assert case.reduces == (qty <= closing)
    if case.reduces:
        assert code(order, state, limits) not in OPENING | {"KILL_SWITCH"}
        after = state.held + side.sign * qty
        assert abs(after) < abs(state.held) and after * state.held >= 0


@given(state=STATES, limits=SWITCHES, qty=SHARES)
def test_the_answer_is_a_function_of_its_arguments(state: RiskState, limits: Limits, qty: Decimal) -> None:
    order = replace(BUY, qty=qty)
    assert check(order, state, limits) == check(order, state, limits)
    if isinstance(answer := check(order, state, limits), Denial):
        assert re.fullmatch(r"[A-Z_]+", answer.code) and len(answer.code) <= 40
        assert answer.line.startswith(answer.code + ": ") and all(isinstance(v, str) for v in answer.numbers.values())


def test_limits_that_are_wider_allow_more() -> None:
    assert code(replace(BUY, qty=D(300)), CALM, TIGHT) == "ORDER_NOTIONAL"
    assert code(replace(BUY, qty=D(300)), CALM, replace(TIGHT, max_order_notional=D(20_000))) == "allowed"


def test_every_limit_of_the_settings_belongs_to_a_control() -> None:
    ours = {f.name for f in fields(Limits)}
    assert ours == set(Section.model_fields)
    assert ours - {"window_minutes"} == {name for control in CONTROLS for name in control.limits}
    assert set(LOSSES) <= {control.code for control in CONTROLS}


def test_the_docs_list_the_codes_that_the_code_has() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|(.*)\|$", DOCS.read_text(), re.MULTILINE)
    told = dict(rows)
    assert list(told) == [control.code for control in CONTROLS] + [LAST_HOP]
    for control in CONTROLS:
        cells = [cell.strip() for cell in told[control.code].split("|")]
        assert control.rule in cells
        assert all(f"`{name}`" in cells[1] for name in control.limits)
        assert ("pass" in cells[2]) == control.opening_only


@given(state=STATES, limits=SWITCHES)
def test_a_loss_halts_without_an_order_exactly_when_it_denies_one_that_opens(state: RiskState, limits: Limits) -> None:
    denial = halting(state, limits)
    judged = code(BUY, replace(state, reduce_only="", held=D(0)), limits)
    assert (denial.code if denial else "") == (judged if judged in LOSSES else "")


WIRED = {name: as_wired(getattr(BUY, name)) for name in WIRE if getattr(BUY, name) is not None}


@given(name=st.sampled_from(sorted(WIRE)), value=st.text(min_size=1, max_size=8))
def test_whatever_word_of_an_order_changes_it_stays_here(name: str, value: str) -> None:
    denial = differs(BUY, WIRED | {name: value})
    if WIRED.get(name) == value:
        assert denial is None
    else:
        assert denial and denial.code == LAST_HOP and set(denial.numbers) == {name}


def test_a_word_that_is_missing_or_added_is_a_difference_too() -> None:
    assert differs(BUY, WIRED) is None
    assert differs(BUY, {name: word for name, word in WIRED.items() if name != "qty"})
    assert differs(BUY, WIRED | {"extended_hours": "true"})
