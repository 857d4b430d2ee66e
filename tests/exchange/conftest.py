"An exchange of one's own: a feed written from rows, a venue on it, a server around it."

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from alpaca.trading.client import TradingClient
from fastapi import FastAPI

import tests.patience  # noqa: F401  (whoever asks a server waits)
from tradenb.core.clock import new_york
from tradenb.core.web import serving
from tradenb.exchange.feed import Feed, write_rows
from tradenb.exchange.matching import FillModel
from tradenb.exchange.service import create_app
from tradenb.exchange.store import Store
from tradenb.exchange.venue import Book, Venue, open_account

KEYS = ("PKTEST", "secret-of-the-test")
FRIDAY, MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)
ACME = [
    ("ACME", FRIDAY, 99.0, 101.0, 98.0, 100.0, 50_000),
    ("ACME", MONDAY, 100.0, 102.0, 98.0, 101.0, 50_000),
    ("ACME", TUESDAY, 101.0, 105.0, 100.0, 104.0, 50_000),
    ("ACME", WEDNESDAY, 104.0, 106.0, 103.0, 105.0, 50_000),
]
BETA = [
    ("BETA", FRIDAY, 20.0, 21.0, 19.0, 20.0, 1_000),
    ("BETA", MONDAY, 20.0, 22.0, 19.5, 21.0, 1_000),
    ("BETA", TUESDAY, 21.0, 22.0, 20.0, 21.5, 1_000),
]
BARS = ACME + BETA


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    "The usual feed, written to this test's folder."
    return write_rows(tmp_path / "feed", BARS)


@pytest.fixture
def open_book(tmp_path: Path) -> Callable[..., Book]:
    "Make or reopen an account on an exchange in a folder of this test."

    def make(
        bars: list[tuple] | None = BARS,
        actions: list[tuple] = (),
        start: datetime = new_york(MONDAY, 9),
        cash: int = 100_000,
        multiplier: int = 4,
        last_dates: dict[str, date] | None = None,
        hard_to_borrow: tuple[str, ...] = (),
        state: str | None = "exchange.db",
        name: str = "test",
        **model: Any,
    ) -> Book:
        if bars is not None:
            write_rows(tmp_path / "feed", bars, actions, last_dates, hard_to_borrow)
        terms = FillModel(**{name: Decimal(str(value)) for name, value in model.items()})
        venue = Venue(Feed(tmp_path / "feed"), Store(state and tmp_path / state), terms, start)
        return venue.books.get(name) or open_account(venue, name, Decimal(cash), Decimal(multiplier))

    return make


@dataclass
class Running:
    "A server with stock clients for it."

    url: str
    app: FastAPI
    http: httpx.Client
    trading: TradingClient

    def step(self, to: datetime) -> dict[str, Any]:
        "Move its clock."
        return self.http.post("/admin/clock", json={"to": to.isoformat()}).raise_for_status().json()


class Door:
    "An ASGI application that passes everything on to the exchange of the test that is running."

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            return await self.app(scope, receive, send)
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})


@pytest.fixture(scope="session")
def door() -> Iterator[tuple[Door, str]]:
    "One server for all tests: every test puts its own exchange behind it."
    door = Door()
    with serving(door) as url:
        yield door, url


@pytest.fixture
def serve(tmp_path: Path, door: tuple[Door, str]) -> Iterator[Callable[..., Running]]:
    "Open an exchange of one's own behind the session's server."
    front, url = door
    with ExitStack() as stack:

        def start(
            bars: list[tuple] = BARS, actions: list[tuple] = (), at: datetime = new_york(MONDAY, 9), **terms: Any
        ) -> Running:
            write_rows(tmp_path / "feed", bars, actions)
            app = front.app = create_app(
                tmp_path / "feed", tmp_path / "exchange.db", key_id=KEYS[0], secret_key=KEYS[1], start=at, **terms
            )
            stack.callback(app.state.venue.close)
            headers = {"APCA-API-KEY-ID": KEYS[0], "APCA-API-SECRET-KEY": KEYS[1]}
            http = stack.enter_context(httpx.Client(base_url=url, headers=headers))
            return Running(url, app, http, TradingClient(*KEYS, url_override=url))

        yield start
