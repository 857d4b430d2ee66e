"The real exchange, called through its ASGI application without a socket or a thread."

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode

import fastapi.dependencies.utils
import fastapi.routing
import starlette.concurrency

from tradenb.exchange import venue as floor
from tradenb.exchange.service import create_app
from tradenb.exchange.wire import event_json

URL = "http://exchange"
KEY_ID, SECRET_KEY = "simulated", "simulated-secret"
KEYS = {"APCA-API-KEY-ID": KEY_ID, "APCA-API-SECRET-KEY": SECRET_KEY}


async def _inline(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return work(*args, **named)


@contextmanager
def one_thread() -> Iterator[None]:
    "Let the web framework run everything where it is called: a thread would be an actor that the seed does not rule."
    with ExitStack() as stack:
        for module in (starlette.concurrency, fastapi.routing, fastapi.dependencies.utils):
            stack.enter_context(patch.object(module, "run_in_threadpool", _inline))
        yield


class Exchange:
    "One paper account's exchange at the other end of the wire."

    def __init__(self, feed: Path, state: Path, start: datetime, heard: Callable[[dict[str, Any]], None]):
        self.loop = asyncio.new_event_loop()
        self.app: Any = create_app(
            feed, state, Decimal(200_000), 4, 2, 1, 0.10, KEYS["APCA-API-KEY-ID"], KEYS["APCA-API-SECRET-KEY"], start
        )
        self.venue = self.app.state.venue
        self.heard = heard
        self.venue.listeners.append(self._told)
        self.headers = [(name.lower().encode(), value.encode()) for name, value in KEYS.items()]

    def _told(self, *told: Any) -> None:
        for event in told[-1]:
            self.heard(event_json(event)["data"])

    def advance(self, now: datetime) -> None:
        "Bring the exchange's clock up to the world's, through whatever lies between."
        if now > self.venue.now:
            floor.step(self.venue, now)

    def call(self, method: str, path: str, query: str = "", body: bytes = b"") -> tuple[int, bytes]:
        "One request, answered."
        answer: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            answer.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
        }
        scope |= {"method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
        headers = [*self.headers, (b"content-type", b"application/json")]
        scope |= {"headers": headers, "server": ("exchange", 80), "client": ("gateway", 1)}
        self.loop.run_until_complete(self.app(scope, receive, send))
        return int(answer[0]["status"]), b"".join(message.get("body", b"") for message in answer[1:])

    def read(self, path: str, **query: Any) -> Any:
        "The exchange's own word on something, without a network in between."
        status, body = self.call("GET", path, urlencode(query))
        assert status == 200, (path, status, body)
        return json.loads(body)

    def pages(self, path: str, size: str, limit: int, token: str, key: Callable[[Any], str], **query: Any) -> list[Any]:
        "A whole list, page by page."
        found: list[Any] = []
        while True:
            page = self.read(
                path, **{size: limit, "direction": "asc"} | query, **({token: key(found[-1])} if found else {})
            )
            found += page
            if len(page) < limit:
                return found

    def orders(self) -> dict[str, Any]:
        "Every order that it ever took, by `client_order_id`."
        found = self.pages("/v2/orders", "limit", 500, "after_order_id", lambda o: o["id"], status="all")
        assert len({o["client_order_id"] for o in found}) == len(found)
        return {o["client_order_id"]: o for o in found}

    def activities(self) -> list[Any]:
        "The account's whole history."
        return self.pages("/v2/account/activities", "page_size", 100, "page_token", lambda a: a["id"])

    def positions(self) -> dict[str, Decimal]:
        "Shares held, signed."
        return {p["symbol"]: Decimal(p["qty"]) for p in self.read("/v2/positions")}

    def cash(self) -> Decimal:
        "Cash in the account."
        return Decimal(self.read("/v2/account")["cash"])

    def last_day(self) -> date:
        "The feed's last session."
        return self.venue.feed.last_date

    def close(self) -> None:
        "Let go of file and loop."
        self.venue.close()
        self.loop.close()
