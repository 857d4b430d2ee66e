"Simulated time, one thread, many tasks: who runs next is an event with a time, and the times come from one seed."

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from .story import Story


class Killed(GreenletExit):
    "The process that this task belonged to is gone; nothing catches it, and nothing that it does afterwards has an effect."


@dataclass(eq=False)
class Process:
    "What dies together: the tasks of one gateway, of one command, of the world's people."

    name: str
    mortal: bool = False  # whether faults may kill it
    alive: bool = True
    skew: timedelta = timedelta(0)  # how far its clock is off
    skewed: bool = False  # whether it ever was, today
    tasks: list["Task"] = field(default_factory=list)
    on_death: list[Callable[[], None]] = field(default_factory=list)


@dataclass(eq=False)
class Task:
    "One line of control."

    name: str
    process: Process
    fiber: greenlet
    waiting: int = 0  # number of its present wait: a wake-up for an older one is void
    done: bool = False
    writes: bool = False  # inside a write transaction


class Schedule:
    "The one loop: pops the next event, runs it, until a time is reached."

    def __init__(self, rng: random.Random, start: datetime, story: Story):
        self.rng, self.now, self.story = rng, start, story
        self.heap: list[tuple[datetime, float, int, Callable[[], None]]] = []
        self.serial = self.switches = 0
        self.hub = getcurrent()
        self.task: Task | None = None
        self.doomed: list[Process] = []
        self.stray: list[str] = []  # tasks that ended with an error nobody expected
        self.before_point: Callable[[Task, str], None] = lambda task, kind: None

    # ---- events
    def at(self, when: datetime, what: Callable[[], None]) -> None:
        "Something to happen at a time; what is due at the same time happens in a seeded order."
        self.serial += 1
        heapq.heappush(self.heap, (max(when, self.now), self.rng.random(), self.serial, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        "Something to happen in a while."
        self.at(self.now + timedelta(seconds=seconds), what)

    def run(self, until: datetime) -> None:
        "Everything that happens up to a time."
        while self.heap and self.heap[0][0] <= until:
            when, _, _, what = heapq.heappop(self.heap)
            self.now = max(self.now, when)
            what()
        self.now = max(self.now, until)

    # ---- tasks
    def spawn(self, process: Process, name: str, work: Callable[[], Any], seconds: float = 0.0) -> Task:
        "Start a task after a while."
        fiber = greenlet(lambda _: self._body(self.task, work), self.hub)
        task = Task(name, process, fiber)
        process.tasks.append(task)
        self.after(seconds, lambda: self._switch(task, None))
        return task

    def _body(self, task: Task | None, work: Callable[[], Any]) -> None:
        assert task is not None
        try:
            work()
        except GreenletExit:
            pass
        except Exception as error:
            self.stray.append(f"{task.name}: {type(error).__name__}: {str(error)[:300]}")
            self.story.tell(self.now, task.name, "failed", error=f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            task.done = True
            if task in task.process.tasks:
                task.process.tasks.remove(task)

    def _switch(self, task: Task, value: Any) -> None:
        if task.done or not task.process.alive:
            return
        self.task, self.switches = task, self.switches + 1
        task.fiber.switch(value)
        self.task = None
        while self.doomed:
            self._bury(self.doomed.pop())

    def _suspend(self) -> Any:
        task = self.task
        assert task is not None
        value = self.hub.switch()
        if not task.process.alive:
            raise Killed
        return value

    # ---- what a task may do
    def pause(self, seconds: float) -> None:
        "Let this task sleep."
        if (task := self.task) is None:
            return
        self._living(task)
        self.after(seconds, lambda: self._switch(task, None))
        self._suspend()

    def wait(self, seconds: float) -> Any:
        "Sleep until somebody calls `wake`, at most for a while; none when nobody did."
        task = self.task
        assert task is not None
        self._living(task)
        task.waiting += 1
        number = task.waiting
        self.after(seconds, lambda: self.wake(task, number, None))
        return self._suspend()

    def wake(self, task: Task, number: int, value: Any) -> None:
        "End a wait, unless it is over."
        if task.waiting == number:
            task.waiting += 1
            self._switch(task, value)

    def point(self, kind: str) -> None:
        "A place where another task may go first, or where the process may die."
        if (task := self.task) is None:
            return
        self._living(task)
        self.before_point(task, kind)
        self.pause(self.rng.expovariate(1 / 0.003))

    def _living(self, task: Task) -> None:
        if not task.process.alive:
            raise Killed

    # ---- death
    def kill(self, process: Process, why: str) -> None:
        "End a process here and now. A task that kills its own process does not come back."
        if not process.alive:
            return
        process.alive = False
        self.story.tell(self.now, process.name, "killed", why=why)
        if self.task is not None:
            self.doomed.append(process)
            if self.task.process is process:
                self.hub.switch()
                raise Killed
            return
        self._bury(process)

    def _bury(self, process: Process) -> None:
        for task in list(process.tasks):
            if not task.done:
                self.task = task
                task.fiber.throw(Killed)
                task.done = True
                self.task = None
        process.tasks.clear()
        for then in process.on_death:
            then()


class Lock:
    "A lock whose waiters sleep on simulated time."

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.holder: Task | None = None
        self.queue: list[tuple[Task, int]] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        "Take it, after waiting where somebody else has it."
        until = self.schedule.now + timedelta(seconds=timeout if timeout >= 0 else 1e6)
        while self.holder is not None and not self.holder.done:
            left = (until - self.schedule.now).total_seconds()
            if not blocking or left <= 0 or (task := self.schedule.task) is None:
                return False
            self.queue.append((task, task.waiting + 1))
            self.schedule.wait(left)
        self.holder = self.schedule.task
        return True

    def release(self) -> None:
        "Give it back."
        self.holder, queue, self.queue = None, self.queue, []
        for task, number in queue:
            self.schedule.after(0, partial(self.schedule.wake, task, number, True))

    def locked(self) -> bool:
        "Whether somebody has it."
        return self.holder is not None

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class ProcessClock:
    "What a process believes the time to be: the world's, and how far its clock is off."

    def __init__(self, schedule: Schedule, process: Process):
        self.schedule, self.process = schedule, process

    def now(self) -> datetime:
        "Aware, in UTC."
        return self.schedule.now + self.process.skew
