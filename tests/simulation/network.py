"The wire between a gateway and the broker: a requests adapter whose packets travel on simulated time."

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from .exchange import Exchange
from .faults import Faults
from .schedule import Process, Schedule
from .story import Story

BEFORE = (
    "lost_request",
    "reset_before",
    "late_request",
    "rate_limited",
    "server_error",
    "gateway_timeout_before",
    "garbled",
)
AFTER = ("lost_answer", "reset_after", "late_answer", "gateway_timeout_after")
PROXY = {
    "rate_limited": (429,),
    "server_error": (500, 502, 503),
    "gateway_timeout_before": (504,),
    "gateway_timeout_after": (504,),
}


@dataclass(frozen=True)
class Packet:
    "A request on its way."

    number: int
    sender: Process
    method: str
    path: str
    query: str
    body: bytes
    stood_still: timedelta  # between the sender's last look and the wire

    @property
    def label(self) -> str:
        "For the story."
        return f"{self.method} {self.path.removeprefix('/v2')}{'?' if self.query else ''}{self.query[:60]}"

    @property
    def order(self) -> dict[str, Any] | None:
        "What a POST of an order says."
        return json.loads(self.body) if self.method == "POST" and self.path == "/v2/orders" else None

    @property
    def asks_for(self) -> str | None:
        "The `client_order_id` that a look-up names."
        return self.query.partition("client_order_id=")[2] or None if "by_client_order_id" in self.path else None


@dataclass(frozen=True)
class Answer:
    "What comes back: a status with a body, or a broken connection."

    status: int
    body: bytes = b""
    retry_after: str | None = None

    @property
    def judged(self) -> bool:
        "Whether the broker itself, or a limiter before it, said so: nothing is in doubt after it."
        return self.status in (400, 403, 404, 409, 422, 429) or (
            self.status == 200 and b'"client_order_id"' in self.body
        )

    @property
    def broken(self) -> bool:
        "Whether there is nothing but a reset."
        return self.status == 0


class Network:
    "Carries packets, loses some, and tells who watches what was sent and what came of it."

    def __init__(self, schedule: Schedule, exchange: Exchange, faults: Faults, story: Story):
        self.schedule, self.exchange, self.faults, self.story = schedule, exchange, faults, story
        self.count = 0
        self.late: list[Callable[[], None]] = []  # deliveries that wait for the day's end
        self.on_send: Callable[[Packet], None] = lambda packet: None
        self.on_answer: Callable[[Packet, Answer | None], None] = lambda packet, answer: None

    def send(self, process: Process, request: Any, timeout: float) -> Answer | None:
        "Send a request and wait: its answer, or none after the timeout."
        schedule, faults = self.schedule, self.faults
        looked = schedule.now
        schedule.point("send")
        task = schedule.task
        assert task is not None, "the exchange is reached from within tasks only"
        parts = urlsplit(request.url)
        body = request.body or b""
        self.count += 1
        packet = Packet(
            self.count,
            process,
            request.method,
            parts.path,
            parts.query,
            body if isinstance(body, bytes) else body.encode(),
            schedule.now - looked,
        )
        self.on_send(packet)
        chances = 1 if packet.method == "GET" else 4  # what changes something is rarer, and matters more
        fault = next(filter(None, (faults.one_of(*BEFORE, *AFTER) for _ in range(chances))), None)
        slow = schedule.rng.uniform(1, timeout * 0.45) if faults.strikes("slow") else 0.0
        self.story.tell(schedule.now, process.name, packet.label, body=_told(packet), fault=fault)
        number = task.waiting + 1

        def answered(answer: Answer, seconds: float) -> None:
            schedule.after(seconds, lambda: schedule.wake(task, number, answer))

        self._carry(packet, fault, slow + schedule.rng.expovariate(1 / 0.02), timeout, answered)
        found: Answer | None = schedule.wait(timeout)
        self.on_answer(packet, found)
        told = None if found is None else found.status
        self.story.tell(
            schedule.now, process.name, "  answer" if told else "  no answer", status=told, to=packet.label[:40]
        )
        return found

    def _carry(
        self,
        packet: Packet,
        fault: str | None,
        flight: float,
        timeout: float,
        answered: Callable[[Answer, float], None],
    ) -> None:
        schedule, rng = self.schedule, self.schedule.rng
        back = rng.expovariate(1 / 0.02) + (timeout * 1.5 if fault == "late_answer" else 0.0)

        def deliver() -> None:
            answer = self._at_the_broker(packet)
            if fault == "reset_after":
                answered(Answer(0), back)
            elif fault == "gateway_timeout_after":
                answered(self._proxy(fault), back + rng.uniform(0, timeout / 2))
            elif fault not in ("lost_answer", "late_request"):
                answered(answer, back)

        if fault == "reset_before":
            answered(Answer(0), flight)
        elif fault == "garbled":
            answered(Answer(200, b'{"ok": true}'), flight)
        elif fault in PROXY and fault != "gateway_timeout_after":
            answered(self._proxy(fault), flight)
        elif fault == "late_request":
            self._belated(deliver, timeout)
        elif fault != "lost_request":
            schedule.after(flight, deliver)
        if fault != "lost_request" and packet.method != "GET" and self.faults.strikes("duplicate_request"):
            self._belated(lambda: self._again(packet), timeout)

    def _belated(self, deliver: Callable[[], None], timeout: float) -> None:
        "After the caller gave up: soon, much later, or after the close."
        rng = self.schedule.rng
        if rng.random() < 0.15:
            self.late.append(deliver)
        else:
            self.schedule.after(
                timeout + rng.choice((rng.uniform(0, 5), rng.uniform(5, 120), rng.uniform(120, 3600))), deliver
            )

    def _again(self, packet: Packet) -> None:
        self._at_the_broker(packet)

    def deliver_late(self) -> None:
        "Let what hung somewhere in the network arrive within minutes."
        for deliver in self.late:
            self.schedule.after(self.schedule.rng.uniform(0, 300), deliver)
        self.late.clear()

    def _at_the_broker(self, packet: Packet) -> Answer:
        self.exchange.advance(self.schedule.now)
        status, body = self.exchange.call(packet.method, packet.path, packet.query, packet.body)
        if packet.path.endswith("/activities") and status == 200 and self.faults.strikes("late_history"):
            since = (self.schedule.now - timedelta(minutes=20)).isoformat()
            lines = [a for a in json.loads(body) if a["activity_type"] != "FILL" or a["transaction_time"] < since]
            body = json.dumps(lines).encode()
        if packet.method != "GET":
            told = "" if status < 400 else body.decode()[:120]
            self.story.tell(
                self.schedule.now,
                "exchange",
                f"{status} {packet.label}",
                order=(packet.order or {}).get("client_order_id"),
                told=told,
            )
        return Answer(status, body)

    def _proxy(self, fault: str) -> Answer:
        status = self.schedule.rng.choice(PROXY[fault])
        retry_after = str(self.schedule.rng.choice((1, 3, 20))) if status == 429 else None
        if status == 429:
            return Answer(status, b'{"code": 42910000, "message": "rate limit exceeded"}', retry_after)
        return Answer(status, b"<html>upstream</html>" if self.schedule.rng.random() < 0.5 else b"", retry_after)


def _told(packet: Packet) -> str | None:
    if order := packet.order:
        words = (
            order.get(k)
            for k in ("side", "qty", "notional", "symbol", "type", "limit_price", "stop_price", "time_in_force")
        )
        return " ".join(str(word) for word in words if word) + f" {order.get('client_order_id', '')[:8]}"
    return None


class Wire(BaseAdapter):
    "What `alpaca-py`'s session sends through."

    def __init__(self, network: Network, process: Process, timeout_s: float = 10.0):
        super().__init__()
        self.network, self.process, self.timeout_s = network, process, timeout_s

    def send(
        self,
        request: Any,
        stream: Any = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Any:
        "One request; the errors that requests would raise."
        answer = self.network.send(self.process, request, self.timeout_s)
        if answer is None:
            raise requests.ReadTimeout(f"no answer within {self.timeout_s:g} s", request=request)
        if answer.broken:
            raise requests.ConnectionError("connection reset by peer", request=request)
        response = requests.Response()
        response.status_code, response._content, response.url, response.request = (
            answer.status,
            answer.body,
            request.url,
            request,
        )
        response.headers["Content-Type"], response.encoding = "application/json", "utf-8"
        if answer.retry_after:
            response.headers["Retry-After"] = answer.retry_after
        return response

    def close(self) -> None:
        "Nothing is open."
