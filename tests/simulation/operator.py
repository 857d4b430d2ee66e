"The operator: a person with the kill switch, in a process of their own that speaks to database and broker."

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tradenb.core.calendar import session
from tradenb.execution.switch import Level, Switch, covers

from .market import SYMBOLS
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


class Operator:
    "Somebody who stops trading now and then, and lets it go on later."

    def __init__(self, world: "World"):
        self.world, self.rng = world, world.rng
        self.process = Process("operator")
        self.engaged: dict[str, Engagement] = {}
        self.broken: list[tuple[str, str]] = []

    def is_own(self, client_order_id: str) -> bool:
        "Whether an order is one that the kill switch sends by itself."
        return False

    def switch(self) -> Switch:
        "The real one, on a connection of its own."
        return Switch(self.world.database.engine("operator"), ProcessClock(self.world.schedule, self.process))

    def plan(self) -> None:
        "On some days there is a reason."
        world, rng = self.world, self.rng
        if rng.random() > 0.3:
            return
        day = session(world.day)
        at = day.open + rng.choice((timedelta(minutes=-rng.uniform(1, 60)), rng.random() * (day.close - day.open), timedelta(seconds=rng.uniform(-20, 20))))
        world.schedule.spawn(self.process, "operator", self._act, max(0.0, (at - world.now).total_seconds()))

    def _act(self) -> None:
        scope = self.rng.choice(("*", "strategy:s1", f"symbol:{self.rng.choice(SYMBOLS)}"))
        self._engage(scope, Level.BLOCK)
        self.world.schedule.pause(self.rng.choice((60, 3600, 20 * 3600)) * self.rng.random())
        self._release(scope)

    def _stubborn(self, what: str, work: Any) -> Any:
        "Until it works: a person tries again."
        while True:
            try:
                return work()
            except Exception as error:
                self.world.story.tell(self.world.now, "operator", f"{what} failed", error=f"{type(error).__name__}: {str(error)[:100]}")
                self.world.schedule.pause(self.rng.uniform(0.5, 5))

    def _engage(self, scope: str, level: Level) -> None:
        world = self.world
        self._stubborn("engage", lambda: self.switch().engage(scope, level, "operator", "drill"))
        self.engaged[scope] = Engagement(scope, level, world.now, self._names())
        world.result.seen["kill switch"] += 1
        world.story.tell(world.now, "operator", f"engages {level}", scope=scope)

    def _release(self, scope: str) -> None:
        self.check(scope)
        self.engaged.pop(scope, None)
        self.world.story.tell(self.world.now, "operator", "releases", scope=scope)
        self._stubborn("release", lambda: self.switch().release(scope, "operator", "over"))

    def _names(self) -> set[str]:
        return {row[0] for row in self.world.database.look("select client_order_id from orders")}

    def check(self, *only: str) -> None:
        "Nothing was admitted since the switch was set."
        rows = self.world.database.look("select client_order_id, strategy, symbol from orders")
        for engaged in (self.engaged[scope] for scope in only or tuple(self.engaged)):
            for name, strategy, symbol in rows:
                if name not in engaged.admitted and covers(engaged.scope, strategy, symbol) and not self.is_own(name):
                    line = f"{name} ({strategy} {symbol}) was admitted although {engaged.scope} is at {engaged.level}"
                    self.broken.append(("ADMITTED_AGAINST_SWITCH", line))
