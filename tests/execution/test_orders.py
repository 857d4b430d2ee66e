"An order's name, and its validation."

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import OrderInvalid
from tradenb.execution.orders import (
    OrderIntent,
    OrderType,
    Side,
    TimeInForce,
    canonical,
    client_order_id,
    problems,
    validate,
)

BASE = OrderIntent(
    "alpha158_ls", "AAPL", Side.BUY, OrderType.MARKET, TimeInForce.CLS, date(2017, 6, 1), qty=Decimal(100)
)
amounts = st.decimals(min_value="0.000000001", max_value=10**8, places=9)


def test_the_name_of_an_order_is_golden() -> None:
    assert BASE.client_order_id == "86bd20a50b2b4d12cfe8f39681845750"
    limit = replace(
        BASE, type=OrderType.LIMIT, limit_price=Decimal("153.25"), time_in_force=TimeInForce.DAY, sequence=2
    )
    assert limit.client_order_id == "8fdcc407bb0720f34ba799693d128e78"


@given(amounts, st.integers(0, 12))
def test_a_quantity_is_the_same_however_it_is_written(qty: Decimal, zeros: int) -> None:
    padded = Decimal(f"{qty:f}" + ("" if "." in f"{qty:f}" else ".") + "0" * zeros)
    assert canonical(padded) == canonical(qty.normalize()) == canonical(qty)
    assert Decimal(canonical(qty)) == qty


CHANGES = [
    {"strategy": "other"},
    {"symbol": "MSFT"},
    {"side": Side.SELL},
    {"qty": Decimal(101)},
    {"qty": None, "notional": Decimal(100)},
    {"type": OrderType.LIMIT},
    {"limit_price": Decimal(1)},
    {"stop_price": Decimal(1)},
    {"time_in_force": TimeInForce.DAY},
    {"trade_date": date(2017, 6, 2)},
    {"sequence": 1},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: "+".join(c))
def test_every_part_of_an_order_is_in_its_name(change: dict) -> None:
    assert client_order_id(replace(BASE, **change)) != BASE.client_order_id


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_no_text_makes_two_orders_read_alike(a: str, b: str, c: str, d: str) -> None:
    one, two = replace(BASE, strategy=a, symbol=b), replace(BASE, strategy=c, symbol=d)
    assert (one.client_order_id == two.client_order_id) == ((a, b) == (c, d))


WRONG = {
    "FRACTION_NEEDS_DAY": {"qty": Decimal("0.5")},
    "QTY_INVALID": {"qty": Decimal(0)},
    "SIZE_AMBIGUOUS": {"qty": None},
    "SYMBOL_MALFORMED": {"symbol": "A B"},
    "STRATEGY_MISSING": {"strategy": ""},
    "STRATEGY_RESERVED": {"strategy": "kill"},
    "LIMIT_PRICE_MISSING": {"type": OrderType.LIMIT},
    "LIMIT_PRICE_UNUSED": {"limit_price": Decimal(10)},
    "LIMIT_PRICE_INVALID": {"type": OrderType.LIMIT, "limit_price": Decimal("10.001")},
    "STOP_PRICE_MISSING": {"type": OrderType.STOP, "time_in_force": TimeInForce.DAY},
    "AUCTION_TYPE": {"type": OrderType.STOP, "stop_price": Decimal(10)},
    "STOP_TIME_IN_FORCE": {"type": OrderType.STOP, "stop_price": Decimal(10), "time_in_force": TimeInForce.IOC},
    "NOTIONAL_INVALID": {"qty": None, "notional": Decimal("1.001"), "time_in_force": TimeInForce.DAY},
    "NOTIONAL_NEEDS_MARKET": {"qty": None, "notional": Decimal(10), "type": OrderType.LIMIT, "limit_price": Decimal(5)},
    "SEQUENCE_INVALID": {"sequence": -1},
    "NOT_A_SESSION": {"trade_date": date(2017, 7, 4)},
}


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_order_is_refused_with_its_code(code: str) -> None:
    with pytest.raises(OrderInvalid, match=code):
        validate(replace(BASE, **WRONG[code]))


def test_sound_orders_of_every_type_pass() -> None:
    day = {"time_in_force": TimeInForce.DAY}
    sound = [
        {},
        {"time_in_force": TimeInForce.OPG},
        day | {"qty": Decimal("0.123456789")},
        day | {"qty": None, "notional": Decimal("500.25")},
        day | {"type": OrderType.LIMIT, "limit_price": Decimal("0.0123")},
        day | {"type": OrderType.STOP_LIMIT, "limit_price": Decimal("10.5"), "stop_price": Decimal("11")},
        {"type": OrderType.LIMIT, "limit_price": Decimal("153.25")},
        {"time_in_force": TimeInForce.FOK},
    ]
    assert [problems(replace(BASE, **change)) for change in sound] == [[] for _ in sound]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1E+20", "1E-12", "-1"])
def test_no_strange_number_gets_through(value: str) -> None:
    assert problems(replace(BASE, qty=Decimal(value)))
    assert problems(replace(BASE, type=OrderType.LIMIT, limit_price=Decimal(value)))
