"Who acts in a world: gateways, clients that ask, repeat and cancel, the stream, reconcilers."

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tradenb.core.calendar import session
from tradenb.core.errors import OrderConflict, OrderDenied, OrderInvalid, TradenbError
from tradenb.core.settings import load
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.commits import Work, Writer
from tradenb.execution.controls import Limits
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger, StoredOrder
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
from tradenb.execution.reconcile import Reconciliation, reconcile
from tradenb.execution.reference import Guard, Reference, limits_of
from tradenb.execution.switch import Switch
from tradenb.execution.updates import Listener
from tradenb.execution.webhooks import SIGNATURE, TIMESTAMP, Receiver, sign
from tradenb.execution.webhooks import Refused as WebhookRefused

from .exchange import KEY_ID, SECRET_KEY, URL
from .market import SYMBOLS
from .network import Wire
from .schedule import Lock, Process, ProcessClock, Task

if TYPE_CHECKING:
    from .world import World

SECRET = "webhook-secret"
SETTINGS = Path(__file__).resolve().parents[2] / "settings.ini"
ANSWERED = (OrderInvalid, OrderConflict, OrderDenied)  # the gateway's own word: asking again gives the same


@dataclass
class Wanted:
    "An order as somebody asked for it, and every answer that they got."

    name: str
    intent: OrderIntent
    asked: int = 0
    told: list[StoredOrder] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    cancel_asked: bool = False


@dataclass
class Reply:
    "What a client hears: a value, the gateway's error, or nothing."

    value: Any = None
    error: Exception | None = None
    silent: bool = False


def limits_of_a_world(rng: random.Random) -> Limits:
    "The platform's own, one of them now and then narrow; volume is thin here, so its share is not limited."
    defaults = limits_of(load({}, env={}, file=SETTINGS).limits)
    narrow = {"max_order_notional": Decimal(9000), "max_orders_per_minute": 2, "max_position_notional": Decimal(15000)}
    narrow |= {
        "max_order_shares": Decimal(100),
        "max_window_notional": Decimal(20000),
        "price_collar": Decimal("0.015"),
    }
    name = rng.choice([*narrow, None, None])
    changed: dict[str, Any] = {name: narrow[name]} if name else {}
    return replace(defaults, max_volume_share=Decimal(0), **changed)


class Pen(Writer):
    "The real writer for tasks that share a process: one transaction after the other."

    def __init__(self, engine: Any, lock: Lock):
        super().__init__(engine, alone=True)
        self.lock = lock

    def write(self, work: Work[Any], durable: bool = True) -> Any:
        "As the writer above, when it is our turn."
        with self.lock:
            return super().write(work, durable)


class Server:
    "A gateway process that dies and comes back on the same database."

    def __init__(self, world: "World", name: str):
        self.world, self.name, self.boots = world, name, 0
        self.process = Process(name, alive=False)

    def boot(self) -> None:
        "A new process: nothing in memory, everything in the database."
        if self.process.alive:
            return
        world, self.boots = self.world, self.boots + 1
        self.process = process = Process(self.name, mortal=True)
        process.on_death.append(self._died)
        self.gateway = self.make_gateway(process)
        self.stream = Stream(self)
        clock = ProcessClock(world.schedule, process)
        self.receiver = Receiver(self.gateway.ledger, SECRET, 300.0, clock, self.stream.ear.doubt)
        world.story.tell(world.now, self.name, "boots", boot=self.boots)
        world.schedule.spawn(process, f"{self.name} stream", self.stream.serve)
        world.schedule.spawn(process, f"{self.name} reconciler", self._reconciles, world.rng.uniform(0, 10) * 3600)

    def make_gateway(self, process: Process) -> Gateway:
        "The real one, on the simulated edges."
        world, schedule = self.world, self.world.schedule
        client = alpaca_client(URL, KEY_ID, SECRET_KEY)
        client._session.mount("http://", Wire(world.network, process))
        broker = Broker(
            client,
            URL,
            attempts=3,
            backoff_s=2.0,
            rng=random.Random(f"{world.seed} {self.name} {self.boots}"),
            sleep=schedule.pause,
        )
        engine, clock = world.database.engine(self.name), ProcessClock(schedule, process)
        writer = Pen(engine, Lock(schedule))
        process.on_death.append(lambda: world.database.bury(self.name))
        locks = lambda: Lock(schedule)
        switch, guard = Switch(engine, clock), None
        if world.guarded:
            reference = Reference(broker, engine, clock, world.limits, locks=locks)
            guard = Guard(clock, reference, world.limits, switch)
        return Gateway(Ledger(engine, clock, writer), broker, guard=guard, switch=switch, owner=self.name, locks=locks)

    def _died(self) -> None:
        self.world.crashes += 1
        self.world.network_gone(self)
        wait = self.world.rng.choice((0.5, 5, 40, 400)) * self.world.rng.uniform(0.5, 1.5)
        self.world.schedule.after(wait, self.boot)

    def _reconciles(self) -> None:
        world = self.world
        while True:
            if session(world.day).open <= world.now <= session(world.day).close:
                self.reconcile()
            world.schedule.pause(world.rng.uniform(1, 12) * 3600)

    def look_once(self) -> None:
        "Somebody asks for a comparison soon after the open, when there is much to see and not all of it shows."
        if self.process.alive and self.world.rng.random() < 0.5:
            self.world.schedule.spawn(self.process, f"{self.name} look", self.reconcile)

    def reconcile(self) -> Reconciliation | None:
        "Compare the books, as the service does on a schedule."
        world = self.world
        try:
            result = reconcile(self.gateway, world.day, self.gateway.switch)
        except Exception as error:
            world.story.tell(
                world.now, self.name, "cannot reconcile", error=f"{type(error).__name__}: {str(error)[:120]}"
            )
            return None
        world.story.tell(
            world.now, self.name, "reconciled", matched=result.matched, differences=len(result.differences)
        )
        for d in result.differences:
            world.story.tell(
                world.now, self.name, "  differs", kind=d.kind, key=d.key, ours=d.ours, broker=d.broker, cause=d.cause
            )
        return result

    def ask(self, what: str, work: Callable[[Gateway], Any], patience: float = 45.0) -> Reply:
        "A client's request to this gateway over a network of its own; called from a client's task."
        world, schedule = self.world, self.world.schedule
        schedule.pause(world.rng.expovariate(1 / 0.01))
        if not self.process.alive:
            return Reply(silent=True)
        task = schedule.task
        assert task is not None
        number, gateway = task.waiting + 1, self.gateway

        def handle() -> None:
            try:
                reply = Reply(work(gateway))
            except Exception as error:
                if not isinstance(error, TradenbError):
                    world.story.tell(
                        world.now, self.name, "error", of=what, error=f"{type(error).__name__}: {str(error)[:160]}"
                    )
                reply = Reply(error=error)
            schedule.after(world.rng.expovariate(1 / 0.01), lambda: schedule.wake(task, number, reply))

        schedule.spawn(self.process, f"{self.name} {what}", handle)
        return schedule.wait(patience) or Reply(silent=True)


class Stream:
    "One gateway's end of `trade_updates`: the real listener, on a connection that breaks."

    def __init__(self, server: Server):
        self.server, self.world = server, server.world
        self.connected, self.ear = False, Listener(server.gateway)
        self._sleeper: tuple[Task, int] | None = None

    def serve(self) -> None:
        "Connect, take in what comes, connect again after a cut."
        world, schedule, ear = self.world, self.world.schedule, self.ear
        while True:
            schedule.pause(world.rng.uniform(0.2, 3))
            self.connected = True
            ear.listening()
            world.story.tell(world.now, self.server.name, "listens")
            while self.connected:
                ear.work()
                self._idle(45.0 if ear.behind else 7200.0)
            ear.lost()

    def _idle(self, seconds: float) -> None:
        task = self.world.schedule.task
        assert task is not None
        if self.connected and not self.ear.inbox:
            self._sleeper = task, task.waiting + 1
            self.world.schedule.wait(seconds)

    def _stir(self) -> None:
        if self._sleeper:
            task, number = self._sleeper
            self.world.schedule.wake(task, number, True)

    def cut(self) -> None:
        "The connection breaks."
        self.connected = False
        self.world.schedule.after(0.01, self._stir)

    def carry(self, data: dict[str, Any]) -> None:
        "The exchange says something to this listener."
        world, faults = self.world, self.world.faults
        if not self.connected or faults.strikes("dropped_event"):
            return
        if faults.strikes("disconnect"):
            self.cut()
            world.story.tell(world.now, self.server.name, "loses the stream")
            return
        delay = world.rng.uniform(0.02, 0.05)
        if faults.strikes("late_event"):
            delay = world.rng.choice((20, 400, 2000)) * world.rng.random()
        elif faults.strikes("reordered_event"):
            delay = world.rng.uniform(0.02, 3)
        process = self.server.process
        for _ in range(2 if faults.strikes("duplicate_event") else 1):
            world.schedule.after(delay, lambda: self._arrive(data, process))
            delay += world.rng.choice((0.01, 2, 600)) * world.rng.random()

    def _arrive(self, data: dict[str, Any], process: Process) -> None:
        if not (self.connected and process.alive):
            return
        world, order = self.world, data["order"]
        world.story.tell(
            world.now, self.server.name, f"hears {data['event']}", order=order["client_order_id"],
            qty=data.get("qty"), price=data.get("price"), execution=data["execution_id"][:8],
        )  # fmt: skip
        self.ear.heard(data)
        self._stir()


class Webhooks:
    "Somebody who calls us for every event: signed, sometimes twice, sometimes late, sometimes forged."

    def __init__(self, world: "World"):
        self.world, self.rng, self.process, self.on = world, world.rng, Process("webhooks"), False

    def carry(self, data: dict[str, Any]) -> None:
        "An event happened: call one of the gateways."
        world, faults = self.world, self.world.faults
        if not self.on or faults.strikes("dropped_event"):
            return
        body = json.dumps(data).encode()
        delay = world.rng.uniform(0.1, 2) + (world.rng.uniform(5, 900) if faults.strikes("late_event") else 0)
        for _ in range(2 if faults.strikes("duplicate_event") else 1):
            world.schedule.spawn(self.process, "webhook", lambda: self._call(body), delay)
            delay += world.rng.uniform(0, 30)
        if world.rng.random() < 0.05:
            forged = json.dumps(data | {"event": "fill", "execution_id": "forged", "qty": "1", "price": "1"}).encode()
            world.schedule.spawn(self.process, "forger", lambda: self._call(forged, forged=True), delay)

    def _call(self, body: bytes, forged: bool = False) -> None:
        for _ in range(3):
            reply = self._posted(self.rng.choice(self.world.servers), body, "guessed" if forged else SECRET)
            if reply.value is not None or isinstance(reply.error, WebhookRefused):
                self.world.result.seen["webhooks taken" if reply.value else "webhooks refused"] += 1
                return
            self.world.schedule.pause(self.rng.uniform(1, 30))

    def _posted(self, server: Server, body: bytes, secret: str) -> Reply:
        headers = sign(secret, self.world.now, body)
        return server.ask("webhook", lambda _: server.receiver.receive(headers[TIMESTAMP], headers[SIGNATURE], body))


class Clients:
    "People and strategies who want orders."

    def __init__(self, world: "World"):
        self.world, self.rng = world, world.rng
        self.process = Process("clients")

    def plan(self) -> None:
        "The orders of a day."
        self.rng = random.Random(f"{self.world.seed} {self.world.day} clients")
        world, rng, opens, closes = self.world, self.rng, session(self.world.day).open, session(self.world.day).close
        for number in range(rng.randint(3, 9)):
            at = rng.choice(
                (
                    opens - timedelta(minutes=rng.uniform(3, 50)),
                    opens - timedelta(minutes=rng.uniform(3, 50)),
                    opens - timedelta(seconds=rng.uniform(-60, 60)),
                    opens + rng.random() * (closes - opens),
                    closes - timedelta(seconds=rng.uniform(-30, 900)),
                )
            )
            wanted = self._wanted(number)
            world.wanted[wanted.name] = wanted
            seconds = (at - world.now).total_seconds()
            world.schedule.spawn(self.process, f"client {number}", partial(self._pursue, wanted), seconds)
            if rng.random() < 0.3:
                world.schedule.spawn(
                    self.process,
                    f"twin {number}",
                    partial(self._pursue, wanted),
                    seconds + rng.choice((0, 0.02, 3, 3, 11)),
                )

    def _wanted(self, number: int) -> Wanted:
        rng, day = self.rng, self.world.day
        symbol, side = rng.choice(SYMBOLS), rng.choice(list(Side))
        price = self.world.price(symbol)
        kind = rng.choice((OrderType.MARKET, OrderType.MARKET, OrderType.LIMIT, OrderType.STOP, OrderType.STOP_LIMIT))
        times = [TimeInForce.DAY, TimeInForce.GTC]
        if kind in (OrderType.MARKET, OrderType.LIMIT):
            times += [TimeInForce.OPG, TimeInForce.CLS, TimeInForce.IOC, TimeInForce.FOK, TimeInForce.DAY]
        near = lambda: Decimal(str(max(1.0, round(price * rng.uniform(0.97, 1.03), 2))))
        held = self.world.held.get(symbol, Decimal(0))
        closing = held and held * side.sign < 0 and rng.random() < 0.8
        qty = min(abs(held), Decimal(rng.randint(1, 300))) if closing else Decimal(rng.choice((1, 10, 60, 200, 500)))
        intent = OrderIntent(
            f"s{rng.randint(1, 2)}", symbol, side, kind, rng.choice(times), day,
            qty=qty,
            limit_price=near() if kind in (OrderType.LIMIT, OrderType.STOP_LIMIT) else None,
            stop_price=near() if kind in (OrderType.STOP, OrderType.STOP_LIMIT) else None,
            sequence=number,
        )  # fmt: skip
        if kind is OrderType.MARKET and side is Side.BUY and held >= 0 and rng.random() < 0.15:
            intent = replace(intent, qty=None, notional=Decimal(rng.randint(100, 9000)), time_in_force=TimeInForce.DAY)
        return Wanted(intent.client_order_id, intent)

    def _pursue(self, wanted: Wanted) -> None:
        rng, world = self.rng, self.world
        for _ in range(rng.choice((1, 2, 6, 6, 6))):
            if self._submit(wanted) and rng.random() > 0.1:
                break
            world.schedule.pause(rng.choice((0.5, 15, 200)) * rng.uniform(0.5, 1.5))
        if rng.random() < 0.25:
            world.schedule.pause(rng.choice((0.1, 30, 3000)) * rng.uniform(0.5, 1.5))
            self._cancel(wanted)

    def _submit(self, wanted: Wanted) -> bool:
        wanted.asked += 1
        server = self.rng.choice(self.world.servers)
        reply = server.ask("submit", lambda gateway: gateway.submit(wanted.intent))
        if reply.value is not None:
            order, created = reply.value
            wanted.told.append(order)
            self._tell("told", wanted, status=order.status, new=created)
            return True
        if reply.error is not None:
            wanted.refused.append(f"{type(reply.error).__name__}: {reply.error}")
            self._tell("told", wanted, error=wanted.refused[-1][:140])
        else:
            self._tell("hears nothing", wanted)
        if self.world.calm_day and not isinstance(reply.error, ANSWERED):
            self.world.monitors.tell("NOT_ANSWERED", f"{wanted.name}: {reply.error} on a day without faults")
        return isinstance(reply.error, ANSWERED)

    def _cancel(self, wanted: Wanted) -> None:
        wanted.cancel_asked = True
        reply = self.rng.choice(self.world.servers).ask("cancel", lambda gateway: gateway.cancel(wanted.name))
        self._tell(
            "cancels",
            wanted,
            status=reply.value and reply.value.status,
            error=reply.error and f"{type(reply.error).__name__}: {str(reply.error)[:120]}",
        )

    def _tell(self, what: str, wanted: Wanted, **facts: Any) -> None:
        self.world.story.tell(self.world.now, "client", what, order=wanted.name, **facts)
