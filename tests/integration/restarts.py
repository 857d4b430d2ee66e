"Services that are killed at moments that are aimed at: their nursery, and the wire between gateway and exchange, on which the moments are seen."

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, select

from pipelines.benchmarks._servers import KEY, PAIR, free_port, place, write_market
from tradenb.core import db
from tradenb.core.calendar import session
from tradenb.core.clock import Stopwatch, SystemClock, sleep
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce, client_order_id
from tradenb.trading.orchestrator import planning_time

PROJECT = Path(__file__).resolve().parents[2]
NURSERY = Path(__file__).with_name("nursery.py")
DAYS = [date(2023, 8, 1), date(2023, 8, 2), date(2023, 8, 3), date(2023, 8, 4), date(2023, 8, 7), date(2023, 8, 8), date(2023, 8, 9), date(2023, 8, 10), date(2023, 8, 11), date(2023, 8, 14)]  # fmt: skip
PATIENCE_S = 60.0
HEADERS = {"X-API-Key": KEY, "Content-Type": "application/json"}


class Nursery:
    "Services that are born again whenever they die; `kill` one."

    def __init__(self, services: Mapping[str, Sequence[Any]], environment: Mapping[str, str]):
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, str(NURSERY)]
        self.process = subprocess.Popen(command, text=True, cwd=PROJECT, env={**environment, "PYTHONPATH": str(PROJECT)}, **pipes)  # fmt: skip
        self.pids: dict[str, int] = {}
        self.changed, self.kills = threading.Condition(), Counter[str]()
        assert self.process.stdin
        print(json.dumps(services), file=self.process.stdin, flush=True)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.wait(lambda: self.pids.keys() == services.keys())

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            name, pid = line.split()
            with self.changed:
                self.pids[name] = int(pid)
                self.changed.notify_all()

    def wait(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, PATIENCE_S), "the nursery does not answer"

    def kill(self, name: str, why: str) -> int:
        "`kill -9`; the process that died."
        pid = self.pids[name]
        os.kill(pid, signal.SIGKILL)
        self.kills[why] += 1
        return pid

    def reborn(self, name: str, dead: int) -> None:
        "Returns when another process has the name."
        self.wait(lambda: self.pids[name] != dead)

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_S) == 0
        self._thread.join()
        self.process.stdout.close()


@dataclass
class Aim:
    "One kill to come: what of, at which moment, how many moments later, and how long after it."

    moment: str
    victim: str
    skip: int = 0
    after_s: float = 0.0
    fired: threading.Event = field(default_factory=threading.Event)
    dead: int = 0


class Wire:
    "A gateway's way to the exchange: bytes pass unchanged both ways, and the moments at which they pass are told. Whatever is killed at one has not seen the bytes, unless the aim is later."

    def __init__(self, to_port: int, told: Callable[[str], bool]):
        self.to_port, self.told = to_port, told  # told: whether somebody was killed at once
        self.posts: Counter[str] = Counter()  # orders sent, by client_order_id
        self.duplicates = 0  # orders sent that the exchange had
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self._await(asyncio.start_server(self._pass, "127.0.0.1", 0))
        self.port: int = self.server.sockets[0].getsockname()[1]

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = ["?"]
        try:
            there = await asyncio.open_connection("127.0.0.1", self.to_port)
        except OSError:
            writer.close()
            return
        ways = [self._up(reader, there[1], asked), self._down(there[0], writer, asked)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for side in (writer, there[1]):
            side.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await reader.read(1 << 16):
            if data.startswith((b"GET ", b"POST ", b"DELETE ")):
                asked[0] = moment_of(data)
                while asked[0] == "POST order" and not data.endswith(b"}"):  # headers and body come apart
                    if not (more := await reader.read(1 << 16)):
                        return
                    data += more
                if asked[0] == "POST order":
                    self.posts[json.loads(data.partition(b"\r\n\r\n")[2])["client_order_id"]] += 1
                if self.told(f"{asked[0]} sent"):
                    return
            writer.write(data)

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await reader.read(1 << 16):
            self.duplicates += b"client_order_id must be unique" in data
            if self.told(f"{asked[0]} answered"):
                return
            writer.write(data)
            self.told(f"{asked[0]} heard")

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._await(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def moment_of(request: bytes) -> str:
    "What a request is about, in few words."
    method, path = request.split(b" ", 2)[:2]
    names = {b"/v2/orders": "order", b"/v2/account/activities": "activities", b"/stream": "stream"}
    place = path.partition(b"?")[0]
    about = names.get(place) or ("lookup" if place == b"/v2/orders:by_client_order_id" else "other")
    return f"{method.decode()} {about}"


@dataclass
class Arena:
    "An exchange, gateways on one database, wires between them, clients that repeat until they are answered, and somebody who kills."

    root: Path
    database: str
    gateways: int = 1
    seed: int = 7

    def __post_init__(self) -> None:
        self.rng, self.aim, self.guard = random.Random(self.seed), None, threading.Lock()
        self.repeats: Counter[str] = Counter()
        self.sent: dict[str, OrderIntent] = {}
        self.names = write_market(self.root / "state" / "feed", 60, date(2023, 6, 1), DAYS[-1])
        self.exchange_port, self.day = free_port(), 0
        victims = [f"gateway{number}" for number in range(self.gateways)]
        self.wires = {name: Wire(self.exchange_port, partial(self.told, name)) for name in victims}  # fmt: skip
        self.ports = {name: free_port() for name in victims}
        services: dict[str, list[Any]] = {name: ["execution", self.ports[name], self._place(wire.port), ""] for name, wire in self.wires.items()}  # fmt: skip
        services["exchange"] = ["exchange", self.exchange_port, self._place(self.exchange_port), planning_time(DAYS[0]).isoformat()]  # fmt: skip
        self.nursery = Nursery(services, services["exchange"][2])
        self.broker = Broker(alpaca_client(f"http://127.0.0.1:{self.exchange_port}", *PAIR), "exchange", 50, 0.02)
        for port in (self.exchange_port, *self.ports.values()):
            self.until(partial(self.answers, port), f"nobody answers on {port}")

    def _place(self, exchange_port: int) -> dict[str, str]:
        quick = {"execution__backoff_s": 0.01, "execution__lease_s": 1, "execution__timeout_s": 5}
        url = f"http://127.0.0.1:{exchange_port}"
        return place(self.root, self.database, services__exchange_url=url, **quick).environment

    def close(self) -> None:
        self.nursery.close()
        for wire in self.wires.values():
            wire.close()
        self.broker.close()

    # Killing

    def told(self, who: str, moment: str) -> bool:
        "A moment has come; whether the one who was to see the bytes is dead."
        with self.guard:
            aim = self.aim
            if aim is None or aim.moment != moment or aim.victim not in (who, "exchange"):
                return False
            if aim.skip:
                aim.skip -= 1
                return False
            self.aim = None
        if aim.after_s:
            threading.Timer(aim.after_s, self._strike, (aim,)).start()
            return False
        self._strike(aim)
        return True

    def _strike(self, aim: Aim) -> None:
        aim.dead = self.nursery.kill(aim.victim, f"{aim.victim.rstrip('0123456789')}: {aim.moment}" + (" and later" if aim.after_s else ""))  # fmt: skip
        aim.fired.set()

    def spend(self, aims: Sequence[Aim], over: Callable[[], bool]) -> list[Aim]:
        "Kill one after the other, each when its moment comes; those left when it is over."
        for number, aim in enumerate(aims):
            with self.guard:
                self.aim = aim
            while not aim.fired.wait(0.02):
                if over():
                    with self.guard:
                        missed, self.aim = self.aim is aim, None
                    if missed:
                        return list(aims[number:])
            self.nursery.reborn(aim.victim, aim.dead)
        return []

    def kill_now(self, aims: Sequence[Aim]) -> None:
        "What is left over: soon after birth, while the process starts and catches up."
        for aim in aims:
            sleep(self.rng.uniform(0.0, 0.25))
            aim.dead = self.nursery.kill(aim.victim, "soon after its birth")
            self.nursery.reborn(aim.victim, aim.dead)

    def aims(self, count: int, moments: Sequence[tuple[str, float]], skip: int, exchange: float = 0.0) -> list[Aim]:
        "Kills at random ones of some moments, each with the longest time after it, in s."
        return [self._aim(self.rng.choice(moments), skip, self.rng.random() < exchange) for _ in range(count)]

    def _aim(self, moment: tuple[str, float], skip: int, exchange: bool) -> Aim:
        victim = "exchange" if exchange else self.rng.choice(list(self.ports))
        name, longest = ("POST order sent", 0.004) if exchange else moment
        return Aim(name, victim, self.rng.randint(0, skip), self.rng.uniform(0, longest))

    # Asking

    def until(self, true: Callable[[], bool], otherwise: str) -> None:
        watch = Stopwatch()
        while not true():
            assert watch.seconds < PATIENCE_S, otherwise
            sleep(0.05)

    def answers(self, port: int) -> bool:
        return self.get(port, "/") is not None

    def get(self, port: int, path: str, **params: Any) -> Any:
        "An answer's JSON, None when there was none."
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", params=params, timeout=PATIENCE_S)
            return answer.json() if answer.is_success else None
        return None

    def ask(self, name: str, body: str) -> tuple[int, dict[str, Any]]:
        "A gateway's answer to an order."
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=PATIENCE_S)
        try:
            connection.request("POST", "/api/v1/orders", body, HEADERS)
            self.told(name, "asked")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def submit(self, intent: OrderIntent) -> None:
        "Ask, one gateway after the other, until the order is answered for."
        fields = ("strategy", "symbol", "side", "type", "time_in_force", "trade_date", "qty", "limit_price")
        body = json.dumps({name: str(value) for name in fields if (value := getattr(intent, name)) is not None})
        watch, names = Stopwatch(), self.rng.sample(list(self.ports), len(self.ports))
        while True:
            names.append(names.pop(0))
            try:
                status, answer = self.ask(names[0], body)
            except (OSError, http.client.HTTPException) as error:
                status, answer = 0, {"code": type(error).__name__}
            if status in (200, 201) and answer["status"] not in ("pending_new", "unknown"):
                return
            self.repeats[f"{status} {answer.get('code') or answer.get('status')}"] += 1
            assert status in (0, 200, 201, 409, 503), (status, answer)
            assert watch.seconds < PATIENCE_S, (status, answer)
            sleep(0.02)

    def step(self, to: datetime) -> None:
        "The exchange's time, whoever has to be asked again."
        headers = {"APCA-API-KEY-ID": PAIR[0], "APCA-API-SECRET-KEY": PAIR[1]}

        def stepped() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.post(f"http://127.0.0.1:{self.exchange_port}/admin/clock", json={"to": to.isoformat()}, headers=headers, timeout=PATIENCE_S)  # fmt: skip
                return answer.is_success
            return False

        self.until(stepped, f"the exchange does not step to {to}")

    def ended(self) -> bool:
        "Whether every order of the day is final, says a gateway."
        for port in self.ports.values():
            day = {"trade_date": str(DAYS[self.day]), "limit": 1}
            found = self.get(port, "/api/v1/orders", **day, status=["filled", "expired", "canceled", "rejected"])
            if found is None or found["total"] < self.of_day:
                return False
        return True

    # A day

    def intents(self, count: int) -> list[OrderIntent]:
        "Market orders for both auctions and the open market, every tenth a limit order that nobody meets; each name once, in and out again on the next day."
        return [self._intent(number) for number in range(count)]

    def _intent(self, number: int) -> OrderIntent:
        side = (Side.BUY, Side.SELL)[(number + self.day) % 2]
        force = (TimeInForce.CLS, TimeInForce.OPG, TimeInForce.DAY)[number % 3]
        order = ("killed", self.names[number], side, OrderType.MARKET, force, DAYS[self.day], Decimal(10 + number))
        if number % 10 != 9:
            return OrderIntent(*order)
        price = Decimal(round(20 + 100 * number / len(self.names), 1)) * (Decimal("0.9") if side is Side.BUY else Decimal("1.1"))  # fmt: skip
        return OrderIntent("killed", self.names[number], side, OrderType.LIMIT, TimeInForce.DAY, DAYS[self.day], Decimal(10), limit_price=round(price, 2))  # fmt: skip

    def trade(self, count: int, kills: int, exchange_kills: float = 0.1) -> None:
        "A day of orders in which so many processes die: most while orders go in, the others while fills come in."
        wanted = self.intents(count)
        self.of_day = count
        self.sent |= {client_order_id(intent): intent for intent in wanted}
        day, filling = session(DAYS[self.day]), 2 * (kills // 5)
        aims = self.aims(kills - filling, SENDING, 1, exchange_kills)
        left = self.during(lambda: self.send(wanted), aims)
        for at, share in ((day.open, filling // 2), (day.close, filling - filling // 2)):
            aims = self.aims(share, FILLING, 0)
            if aims:
                aims[0] = Aim("GET stream heard", aims[0].victim, 0, self.rng.uniform(0, 0.01))
            left += self.during(partial(self.pass_time, at, 0.3 * share), aims)
        self.kill_now(left)
        self.until(self.ended, f"orders of {DAYS[self.day]} do not end")
        self.day += 1
        if self.day < len(DAYS):
            self.step(planning_time(DAYS[self.day]))

    def pass_time(self, to: datetime, seconds: float) -> None:
        "A step of the exchange, and a while for what follows from it."
        self.step(to)
        sleep(seconds)

    def during(self, work: Callable[[], object], aims: Sequence[Aim]) -> list[Aim]:
        "Kill while the work is done; the aims that found nobody."
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            left = self.spend(aims, future.done)
            future.result()
        return left

    def send(self, wanted: Sequence[OrderIntent]) -> None:
        "Some clients at once: so many that writes are joined, so few that most kills meet their moment."
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(self.submit, wanted))

    # What is left when the dust has settled

    def check(self, engine: Engine) -> None:
        "Every intent once at the exchange, every fill once in the ledger, positions and cash folded, cached and the broker's the same; nothing halted, nothing to reconcile."
        for port in self.ports.values():
            self.until(partial(self.reconciled, port), "the gateway cannot reconcile")
        ledger, there = Ledger(engine, SystemClock()), self.broker.orders()
        assert sum(self.posts.values()) >= len(self.sent)
        assert there.keys() == self.sent.keys()
        assert self.duplicates == 0, f"{self.duplicates} orders were sent while the exchange had them"
        ours = {order.client_order_id: order for order in ledger.orders()}
        assert ours.keys() == self.sent.keys()
        for name, intent in self.sent.items():
            end = "expired" if intent.type is OrderType.LIMIT else "filled"
            assert (ours[name].status, there[name].status) == (end, end), ours[name]
            assert ours[name].filled_qty == (intent.qty if end == "filled" else 0)
            assert [row.kind for row in ledger.events(name)].count("intent") == 1
        with engine.connect() as connection:
            voided = set(connection.execute(select(db.fill_voids.c.execution_id)).scalars())
            booked = [row for row in connection.execute(select(db.fills)) if row.execution_id not in voided]
            assert not connection.execute(select(db.kill_switch)).all()
            assert not connection.execute(select(db.denials)).all()
        happened = [a for a in self.broker.activities() if a["activity_type"] == "FILL"]
        assert Counter(Decimal(row.qty) for row in booked) == Counter(Decimal(a["qty"]) for a in happened)
        assert Counter(row.broker_order_id for row in booked) == Counter(a["order_id"] for a in happened)
        assert ledger.check() == []
        held = {symbol: p.qty for symbol, p in ledger.positions().items() if p.qty}
        assert held == {symbol: p.qty for symbol, p in self.broker.positions().items()}
        assert ledger.account().cash == self.broker.account().cash

    def reconciled(self, port: int) -> bool:
        "Whether a gateway could compare the books, which then must match."
        url = f"http://127.0.0.1:{port}/api/v1/reconciliation"
        answer = httpx.post(url, json={}, headers=HEADERS, timeout=PATIENCE_S)
        assert answer.status_code in (200, 503), answer.text
        assert not answer.is_success or answer.json()["matched"], answer.json()
        return answer.is_success

    @property
    def posts(self) -> Counter[str]:
        return sum((wire.posts for wire in self.wires.values()), Counter())

    @property
    def duplicates(self) -> int:
        return sum(wire.duplicates for wire in self.wires.values())

    def story(self, seconds: float) -> str:
        "What happened, in numbers."
        again = sum(count - 1 for count in self.posts.values())
        return f"{self.nursery.kills.total()} kills in {seconds:.0f} s, {len(self.sent)} orders, {again} sent again after the exchange had been asked\n  kills: {dict(self.nursery.kills.most_common())}\n  repeats: {dict(self.repeats.most_common())}"  # fmt: skip


# The longest time between a moment and the death that follows it, in s; 0: the bytes are never seen.
SENDING = [
    ("asked", 0.006),  # before, while or after the intent is written down
    ("POST order sent", 0.0),  # the intent is there, the exchange never hears
    ("POST order answered", 0.0),  # the exchange has it, the gateway never hears
    ("POST order heard", 0.004),  # while the outcome is written down
    ("GET lookup answered", 0.0),  # while an order in doubt is asked for
]
FILLING = [
    ("GET stream heard", 0.01),
    ("GET activities answered", 0.0),
    ("GET activities heard", 0.03),  # while the fills that were missed are booked
]


@contextlib.contextmanager
def arena(root: Path, database: str, gateways: int = 1, seed: int = 7) -> Iterator[Arena]:
    "Everything ends with the block."
    one = Arena(root, database, gateways, seed)
    try:
        yield one
    finally:
        one.close()
