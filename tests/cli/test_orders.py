"`tradenb orders` from the command line: every order for a program, and for a person what a terminal holds."

import csv
import io
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tradenb.cli.main import run
from tradenb.cli.screen import SHOWN
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect, default_url, migrate
from tradenb.core.errors import OrderDenied
from tradenb.execution import listings
from tradenb.execution.controls import Denial
from tradenb.execution.entries import Fill
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
from tradenb.execution.states import OrderStatus

DAY = date(2017, 6, 1)
BUY = OrderIntent("alpha158_ls", "AAPL", Side.BUY, OrderType.MARKET, TimeInForce.CLS, DAY, qty=Decimal(100))


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(tmp_path / "data"))
    return Ledger(migrate(connect(default_url(tmp_path / "data"))), SimulatedClock(new_york(DAY, 9)))


def test_a_pipe_gets_every_order_however_many_there_are(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1_050):
        ledger.admit(replace(BUY, sequence=number))
    assert run(["orders", "list"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len({row["client_order_id"] for row in rows}) == 1_050
    assert {(row["strategy"], row["trade_date"]) for row in rows} == {("alpha158_ls", "2017-06-01")}


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    "Standard output is a terminal of 80 columns."
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def test_eighty_columns_hold_an_order_in_a_line_and_an_id_that_can_be_shown(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, _ = ledger.admit(BUY)
    name = stored.client_order_id
    ledger.record(name, "confirmed", OrderStatus.SUBMITTED, OrderStatus.ACCEPTED, broker_order_id="b-1")
    ledger.book([Fill("e-1", "AAPL", Side.BUY, Decimal(100), Decimal("153.1844"), new_york(DAY, 16), name, "b-1")])
    at_a_terminal(monkeypatch)
    assert run(["orders", "list"]) == 0
    title, heads, line = capsys.readouterr().out.splitlines()
    assert "1 in all" in title and "session" in heads and "100 at 153.1844" in line and "alpha158_ls" in line
    start = line.split()[0]
    assert name.startswith(start) and start != name
    assert run(["orders", "show", start]) == 0 and name in capsys.readouterr().out


def test_a_closing_order_is_listed_by_its_whole_name_and_a_refused_one_with_its_reason(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.admit(BUY, "kill-20170601-AAPL-1")
    ledger.record("kill-20170601-AAPL-1", "rejected", OrderStatus.REJECTED, reason="403: potential wash trade")
    at_a_terminal(monkeypatch)
    assert run(["orders", "list"]) == 0
    told = capsys.readouterr().out
    assert "kill-20170601-AAPL-1" in told and "wash" in told and len(told.splitlines()) <= 6


def test_eighty_columns_hold_the_words_of_a_denial(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "buy AAPL 2017-06-01 of alpha158_ls: price=153.18, found=3063600, limit=500000; expected a smaller order"
    with pytest.raises(OrderDenied):
        ledger.admit(BUY, guard=lambda *_: Denial("ORDER_NOTIONAL", words, {}))
    at_a_terminal(monkeypatch)
    assert run(["orders", "denials"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 5 and "ORDER_NOTIONAL" in lines[2] and "found=3063600" in " ".join(lines)


def test_an_id_of_nothing_is_refused_in_words(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        ledger.admit(replace(BUY, sequence=number))
    assert run(["orders", "show", ""]) == 3
    assert "'' is not enough: several orders begin with it" in capsys.readouterr().err


def test_a_terminal_is_told_how_many_there_are_and_reads_a_screenful(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        with pytest.raises(OrderDenied):
            ledger.admit(replace(BUY, sequence=number), guard=lambda *_: Denial("ORDER_NOTIONAL", "too large", {}))
        ledger.admit(replace(BUY, sequence=number))
    at_a_terminal(monkeypatch)
    read: list[int] = []
    for name, page in (("orders", listings.orders_page), ("denials", listings.denials_page)):

        def counted(*args: Any, page: Any = page, **wanted: Any) -> listings.Page:
            found: listings.Page = page(*args, **wanted)
            read.append(len(found.rows))
            return found

        monkeypatch.setattr(listings, f"{name}_page", counted)
    for words in (["list"], ["denials"], ["list", "--limit", "5"]):
        assert run(["orders", *words]) == 0
        told = capsys.readouterr().out
        assert "(50 in all)" in told and f"{read[-1]} of 50 rows: --limit shows more" in told
    assert read == [SHOWN, SHOWN, 5]
