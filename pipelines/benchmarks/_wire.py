"""A load generator in a process of its own, cheap enough not to be what is measured; and stock `alpaca-py` beside it.

usage: python -m pipelines.benchmarks._wire     a job per line on stdin, JSON; per job a line of what came of it. Requests are written before the watch starts, sent over plain sockets by one thread, each connection taking the next one when it is idle.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from tradenb.core.clock import Stopwatch

PROJECT = Path(__file__).parents[2]
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Ask:
    "One HTTP request."

    method: str
    path: str
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def wire(self, host: str) -> bytes:
        "As it goes over the socket."
        body, own = self.body.encode(), {"Content-Length": str(len(self.body.encode())), **self.headers}
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in own.items()), "", ""]).encode() + body


@dataclass(frozen=True)
class Job:
    "What to ask, and over how many connections; with keys: orders for stock `alpaca-py` to send one after the other."

    url: str
    asks: Sequence[Ask] = ()
    connections: int = 1
    keys: tuple[str, str] | None = None
    orders: Sequence[Mapping[str, str]] = ()


@dataclass
class Outcome:
    "What came of it: milliseconds of every answer in the order of the requests, and what was wrong with answers."

    seconds: float = 0.0
    ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds

    @property
    def p50(self) -> float:
        return median(self.ms)

    @property
    def p99(self) -> float:
        return sorted(self.ms)[min(len(self.ms) - 1, int(0.99 * len(self.ms)))]


def together(outcomes: Sequence[Outcome]) -> Outcome:
    "Several jobs as one."
    ms, failed = [ms for one in outcomes for ms in one.ms], [wrong for one in outcomes for wrong in one.failed]
    return Outcome(sum(one.seconds for one in outcomes), ms, failed)


class Connection:
    "A socket that sends a request and knows when its answer is whole."

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        self.socket = socket.create_connection((at.hostname or "", at.port or 80), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got, self.number, self.watch = b"", -1, Stopwatch()

    def send(self, number: int, request: bytes) -> None:
        self.got, self.number, self.watch = b"", number, Stopwatch()
        self.socket.sendall(request)

    def read(self) -> tuple[int, bytes] | None:
        "Status and body, once all of it is there."
        more = self.socket.recv(1 << 18)
        if not more:
            raise ConnectionError("the server hung up")
        self.got += more
        head, gap, body = self.got.partition(b"\r\n\r\n")
        if not gap:
            return None
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        return (int(head[9:12]), body) if len(body) >= length else None


def over_sockets(job: Job) -> Outcome:
    "All connections busy until every request is answered."
    host, outcome = urlsplit(job.url).netloc, Outcome(ms=[0.0] * len(job.asks))
    requests = iter([(number, ask.wire(host)) for number, ask in enumerate(job.asks)])
    connections = [Connection(job.url) for _ in range(job.connections)]
    with selectors.DefaultSelector() as ready:
        busy, watch = 0, Stopwatch()
        for connection in connections:
            ready.register(connection.socket, selectors.EVENT_READ, connection)
            busy += _next(connection, requests)
        while busy:
            events = ready.select(PATIENCE_S)
            assert events, f"no answer within {PATIENCE_S:.0f} s"
            for key, _ in events:
                one: Connection = key.data
                if (answer := one.read()) is not None:
                    outcome.ms[one.number] = one.watch.seconds * 1e3
                    if answer[0] >= 300:
                        outcome.failed.append(f"{answer[0]}: {answer[1][:300].decode(errors='replace')}")
                    busy += _next(one, requests) - 1
        outcome.seconds = watch.seconds
    for connection in connections:
        connection.socket.close()
    return outcome


def _next(connection: Connection, requests: Iterator[tuple[int, bytes]]) -> int:
    request = next(requests, None)
    if request:
        connection.send(*request)
    return int(request is not None)


def by_alpaca(job: Job) -> Outcome:
    "Stock `alpaca-py`, as its own documentation shows it, one order after the other."
    from alpaca.common.exceptions import APIError
    from alpaca.trading.client import TradingClient
    from alpaca.trading.requests import MarketOrderRequest

    assert job.keys
    outcome, client = Outcome(), TradingClient(*job.keys, url_override=job.url)
    requests: list[Any] = [MarketOrderRequest.model_validate(order) for order in job.orders]
    watch = Stopwatch()
    for request in requests:
        single = Stopwatch()
        try:
            client.submit_order(request)
        except APIError as error:
            outcome.failed.append(str(error))
        outcome.ms.append(single.seconds * 1e3)
    outcome.seconds = watch.seconds
    client._session.close()
    return outcome


class Load:
    "The generator's process, from the side of who gives it jobs."

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pipelines.benchmarks._wire"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, cwd=PROJECT, env=environment, **pipes)

    def run(self, job: Job) -> Outcome:
        "What came of a job; waits for it."
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(asdict(job)), file=self.process.stdin, flush=True)
        if line := self.process.stdout.readline():
            return Outcome(**json.loads(line))
        raise ChildProcessError("the load generator died; its last words are above")

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


def read_job(line: str) -> Job:
    given = json.loads(line)
    return Job(**given | {"asks": [Ask(**ask) for ask in given["asks"]]})


if __name__ == "__main__":
    for line in sys.stdin:
        job = read_job(line)
        print(json.dumps(asdict(by_alpaca(job) if job.keys else over_sockets(job))), flush=True)
