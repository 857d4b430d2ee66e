"One world: an exchange, a database, two gateways and people, for some days; healed and audited every evening."

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tradenb.core.calendar import session
from tradenb.core.clock import Stopwatch, new_york
from tradenb.execution import commits
from tradenb.execution.entries import CashEvent

from .actors import Clients, Server, Wanted, Webhooks, limits_of_a_world
from .database import Database
from .exchange import Exchange
from .faults import CALM, Faults, weather
from .invariants import Violation, audit, auditor
from .market import SYMBOLS, market
from .monitors import Monitors
from .network import Network
from .operator import Operator
from .schedule import Schedule, Task
from .story import Story


@dataclass
class Result:
    "What a world came to."

    seed: int
    days: int = 0
    seconds: float = 0.0
    switches: int = 0
    crashes: int = 0
    orders: int = 0
    fills: int = 0
    hash: str = ""
    injected: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)  # the story's last lines


class World:
    "Everything that one seed decides."

    def __init__(
        self,
        seed: int,
        days: int,
        root: Path,
        database: Database,
        aloud: bool = False,
        calm: bool = False,
        drill: bool = False,
    ):
        self.seed, self.rng, self.calm = seed, random.Random(seed), calm
        self.market = market(root, seed % 16)
        first = self.rng.randrange(2, len(self.market.days) - days - 1)
        self.days = self.market.days[first : first + days]
        self.day = self.days[0]
        start = new_york(self.day, 8)
        self.story = Story(aloud)
        self.schedule = Schedule(random.Random(f"{seed} schedule"), start, self.story)
        self.schedule.before_point = self._before_point
        setattr(commits, "sleep", self.schedule.pause)  # noqa: B010 — a writer that waits for another process's
        self.faults = Faults(random.Random(f"{seed} faults"))
        for suffix in ("", "-wal", "-shm"):
            (root / f"exchange.db{suffix}").unlink(missing_ok=True)
        self.exchange = Exchange(self.market.folder, root / "exchange.db", start, self._heard)
        self.network = Network(self.schedule, self.exchange, self.faults, self.story)
        self.database = database
        database.fresh(self.schedule, self.faults)
        self.wanted: dict[str, Wanted] = {}
        self.held: dict[str, Decimal] = {}
        self.drill = drill  # the kill switch is used every day
        self.calm_day = self.tampered = False
        self.crashes = self.last_halt = 0
        self.by_hand: dict[str, str] = {}  # the broker's ids of orders that somebody placed there by hand
        self.guarded = self.rng.random() < 0.5
        self.limits = limits_of_a_world(self.rng)
        self.servers = [Server(self, "gateway A"), Server(self, "gateway B")]
        self.clients, self.webhooks, self.operator = Clients(self), Webhooks(self), Operator(self)
        self.monitors = Monitors(self)
        self.network.on_send, self.network.on_answer = self.monitors.on_send, self.monitors.on_answer
        self.result = Result(seed)

    @property
    def now(self) -> datetime:
        "The world's time."
        return self.schedule.now

    def price(self, symbol: str) -> float:
        "The last close that people know."
        earlier = [day for day in self.market.days if day < self.day and (symbol, day) in self.market.closes]
        return self.market.closes[symbol, earlier[-1]] if earlier else 50.0

    # ---- what happens to everybody
    def _heard(self, data: dict[str, Any]) -> None:
        for server in self.servers:
            if server.process.alive:
                server.stream.carry(data)
        self.webhooks.carry(data)

    def network_gone(self, server: Server) -> None:
        "A process that died hears nothing more."
        server.stream.connected = False

    def _before_point(self, task: Task, kind: str) -> None:
        process = task.process
        if not process.mortal:
            return
        if self.faults.strikes("crash"):
            self.schedule.kill(process, f"before {kind}" if kind != "committed" else "after commit")
        if kind != "commit" and self.faults.strikes("hang"):
            self.monitors.hung[process.name] = self.now + timedelta(seconds=150)
            self.schedule.pause(self.rng.choice((3, 30, 150)) * self.rng.random())
        if self.faults.strikes("clock_jump"):
            process.skew = timedelta(seconds=self.rng.choice((-90, -5, 0, 5, 90)))
            process.skewed = True
            self.story.tell(self.now, process.name, "clock jumps", off_by=process.skew)

    def _by_hand(self) -> None:
        name, symbol = f"by-hand-{len(self.by_hand)}", self.rng.choice(SYMBOLS)
        order = {
            "symbol": symbol,
            "side": "buy",
            "type": "market",
            "time_in_force": "day",
            "qty": "3",
            "client_order_id": name,
        }
        self.exchange.advance(self.now)
        status, body = self.exchange.call("POST", "/v2/orders", body=json.dumps(order).encode())
        if status == 200:
            self.by_hand[name] = json.loads(body)["id"]
            self.result.seen["trades by hand"] += 1
        self.story.tell(self.now, "somebody", "trades by hand", symbol=symbol, status=status)

    def _tamper(self) -> None:
        "What nobody can explain, on a world's last evening: money in our books that the broker never saw."
        self.result.seen["books tampered with"] += 1
        event = CashEvent("nobody-knows", "deposit", Decimal(1000), self.now)
        auditor(self).book_cash(event)
        self.story.tell(self.now, "somebody", "tampers with the ledger", amount=event.amount)

    # ---- a day
    def run(self) -> Result:
        "All days; stops at the first violation."
        watch = Stopwatch()
        try:
            for day in self.days:
                self.day = day
                self._session()
                self.result.days += 1
                if self.result.violations:
                    break
        finally:
            self._close()
        self.result.seconds, self.result.switches = watch.seconds, self.schedule.switches
        self.result.crashes, self.result.hash = self.crashes, self.story.hash
        self.result.injected = self.faults.injected
        self.result.tail = self.story.tail(30) if self.result.violations else []
        return self.result

    def _session(self) -> None:
        opens, closes = session(self.day).open, session(self.day).close
        self.story.page(f"{self.day} seed {self.seed}")
        self.schedule.at(new_york(self.day, 4), lambda: self.exchange.advance(self.now))
        self.schedule.run(new_york(self.day, 8, 20))
        self.calm_day = self.calm or self.rng.random() < 0.1
        self.faults.rates = CALM if self.calm_day else weather(self.rng)
        for server in self.servers:
            server.boot()
        for moment in (opens, closes):
            self.schedule.at(moment, lambda: self.exchange.advance(self.now))
        self.webhooks.on = self.rng.random() < 0.4
        for server in self.servers:
            wait = (opens - self.now).total_seconds() + self.rng.uniform(5, 1500)
            self.schedule.after(wait, server.look_once)
        self.clients.plan()
        self.operator.plan()
        if self.rng.random() < 0.06:
            self.schedule.at(opens + self.rng.random() * (closes - opens), self._by_hand)
        self.schedule.run(closes + timedelta(minutes=self.rng.uniform(2, 12)))
        self._heal()
        self.schedule.run(self.now + timedelta(minutes=12))
        self.tampered = not self.calm and self.day == self.days[-1] and self.rng.random() < 0.1
        if self.tampered:
            self._tamper()
        self._settle()
        self.result.violations += audit(self)
        self.held = self.exchange.positions()

    def _heal(self) -> None:
        self.story.tell(self.now, "world", "heals")
        self.faults.rates = CALM
        self.network.deliver_late()
        for server in self.servers:
            server.process.skew, server.process.skewed = timedelta(0), False
            self.schedule.after(self.rng.uniform(1, 10), server.boot)
            if server.process.alive and not server.stream.connected:
                continue

    def _settle(self) -> None:
        "The end of the run: one gateway reconciles until the books agree, a few times at most."
        self.settled: Any = None

        def work() -> None:
            for _ in range(3):
                self.settled = server.reconcile()
                if self.settled and self.settled.matched:
                    return
                self.schedule.pause(60)

        server = self.rng.choice(self.servers)
        task = self.schedule.spawn(server.process, "settle", work)
        self.schedule.run(self.now + timedelta(minutes=15))
        if not task.done:
            self.schedule.stray.append("the evening's reconciliation does not end")

    def _close(self) -> None:
        for process in [
            self.clients.process,
            self.webhooks.process,
            self.operator.process,
            *(server.process for server in self.servers),
        ]:
            process.on_death.clear()
            self.schedule.kill(process, "end of the world")
        self.exchange.close()
