"The operator: a person with the kill switch, in a process of their own that speaks to database and broker."

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tradenb.core.calendar import session
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.kill import Books, Kill
from tradenb.execution.orders import CLOSING
from tradenb.execution.switch import Level, covers

from .exchange import KEY_ID, SECRET_KEY, URL
from .market import SYMBOLS
from .network import Wire
from .schedule import Process, ProcessClock

if TYPE_CHECKING:
    from .world import World


@dataclass
class Engagement:
    "The switch as the operator set it: since when it certainly holds, and what was admitted by then."

    scope: str
    level: Level
    at: datetime
    admitted: set[str]
    swept: bool = False  # whether the command said that nothing is open any more


class Operator:
    "Somebody who stops trading now and then, and lets it go on later."

    def __init__(self, world: "World"):
        self.world, self.rng = world, world.rng
        self.process = Process("operator")
        self.engaged: dict[str, Engagement] = {}
        self.broken: list[tuple[str, str]] = []

    def is_own(self, client_order_id: str) -> bool:
        "Whether an order is one that the kill switch sends by itself."
        return client_order_id.startswith(CLOSING)

    def kill(self, scope: str) -> Kill:
        "The real command, on a connection and a database engine of its own."
        world, clock = self.world, ProcessClock(self.world.schedule, self.process)
        client = alpaca_client(URL, KEY_ID, SECRET_KEY)
        client._session.mount("http://", Wire(world.network, self.process))
        broker = Broker(client, URL, rng=random.Random(self.rng.random()), sleep=world.schedule.pause)
        books = Books(world.database.engine("operator"), clock)
        return Kill(broker, books, scope, pause=world.schedule.pause, looks=6)

    def plan(self) -> None:
        "On some days there is a reason."
        world, rng = self.world, self.rng
        if rng.random() > (0.95 if world.drill else 0.3):
            return
        day = session(world.day)
        at = day.open + rng.choice(
            (
                timedelta(minutes=-rng.uniform(1, 60)),
                rng.random() * (day.close - day.open),
                timedelta(seconds=rng.uniform(-20, 20)),
            )
        )
        world.schedule.spawn(self.process, "operator", self._act, max(0.0, (at - world.now).total_seconds()))

    def _act(self) -> None:
        scope = self.rng.choice(("*", "strategy:s1", f"symbol:{self.rng.choice(SYMBOLS)}"))
        level = self.rng.choice(
            (Level.CANCEL, Level.FLATTEN) if self.world.drill else (Level.BLOCK, Level.CANCEL, Level.FLATTEN)
        )
        self._engage(scope, level)
        self.world.schedule.pause(self.rng.choice((60, 3600, 20 * 3600)) * self.rng.random())
        self._release(scope)

    def _stubborn(self, what: str, work: Any) -> Any:
        "Until it works: a person tries again."
        while True:
            try:
                return work()
            except Exception as error:
                self.world.story.tell(
                    self.world.now, "operator", f"{what} failed", error=f"{type(error).__name__}: {str(error)[:100]}"
                )
                self.world.schedule.pause(self.rng.uniform(0.5, 5))

    def _engage(self, scope: str, level: Level) -> None:
        world = self.world
        world.result.seen[f"kill {level}"] += 1
        for _ in range(40):  # a person tries again while there is trouble
            world.story.tell(world.now, "operator", f"kill {level}", scope=scope)
            done = self.kill(scope).turn(level, "operator", "drill")
            if done.standing is not None and scope not in self.engaged:
                self.engaged[scope] = Engagement(scope, level, world.now, self._names())
            world.story.tell(world.now, "operator", "killed", told="; ".join(done.lines), troubles=done.troubles[:2])
            if not done.troubles and not done.open:
                self.engaged[scope].swept = True
                self._look(self.engaged[scope])
                return
            world.schedule.pause(self.rng.uniform(0.5, 20))

    def _look(self, engaged: Engagement) -> None:
        "The command said that nothing is open: the exchange should know."
        world = self.world
        strategies = dict(world.database.look("select client_order_id, strategy from orders"))
        world.exchange.advance(world.now)
        for name, order in world.exchange.orders().items() if engaged.level is not Level.BLOCK else ():
            working = order["status"] in ("accepted", "new", "partially_filled")
            meant = covers(engaged.scope, strategies.get(name, ""), order["symbol"])
            if working and meant and not self.is_own(name) and name not in world.by_hand:
                self.broken.append(
                    (
                        "NOT_CANCELED",
                        f"{name} {order['side']} {order['symbol']} works after {engaged.level} of {engaged.scope} was done",
                    )
                )

    def _release(self, scope: str) -> None:
        self.check(scope)
        self.engaged.pop(scope, None)
        self.world.story.tell(self.world.now, "operator", "releases", scope=scope)
        self._stubborn("release", lambda: self.kill(scope).books.switch.release(scope, "operator", "over"))

    def _names(self) -> set[str]:
        return {row[0] for row in self.world.database.look("select client_order_id from orders")}

    def check(self, *only: str) -> None:
        "Nothing was admitted since the switch was set."
        rows = self.world.database.look("select client_order_id, strategy, symbol from orders")
        for engaged in [self.engaged[scope] for scope in only or tuple(self.engaged) if scope in self.engaged]:
            for name, strategy, symbol in rows:
                if name not in engaged.admitted and covers(engaged.scope, strategy, symbol) and not self.is_own(name):
                    line = f"{name} ({strategy} {symbol}) was admitted although {engaged.scope} is at {engaged.level}"
                    self.broken.append(("ADMITTED_AGAINST_SWITCH", line))
