"Many worlds: in one process one after the other, or in several side by side; their results added up."

import gc
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import structlog

from tradenb.execution import commits

from .database import Database
from .exchange import one_thread
from .mutations import MUTATIONS, applied
from .world import Result, World


def _nowhere(_logger: object, _method: str, _event: object) -> str:
    raise structlog.DropEvent


@contextmanager
def workplace() -> Iterator[tuple[Path, Database]]:
    "A folder in memory where there is one, with a database that worlds share one after the other."
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="simulation-", dir=memory if os.access(memory, os.W_OK) else None))
    former = structlog.get_config()
    structlog.configure(processors=[_nowhere])
    database = Database(root)
    try:
        with one_thread(), patch.object(commits, "sleep"):
            yield root, database
    finally:
        database.close()
        structlog.configure(**former)
        shutil.rmtree(root, ignore_errors=True)


def simulate(
    seeds: Iterable[int],
    days: int,
    mutation: str | None = None,
    aloud: bool = False,
    calm: bool = False,
    stop: Callable[[Result], bool] = lambda result: False,
) -> Iterator[Result]:
    "One world per seed."
    drill = mutation is not None and MUTATIONS[mutation].drill
    with workplace() as (root, database), applied(mutation):
        for seed in seeds:
            gc.disable()  # a world makes much garbage, and takes none of it with it
            result = World(seed, days, root, database, aloud, calm, drill).run()
            gc.enable()
            yield result
            if stop(result):
                return


@dataclass
class Summary:
    "What all worlds came to."

    worlds: int = 0
    days: int = 0
    seconds: float = 0.0  # of work, in all processes together
    switches: int = 0
    crashes: int = 0
    orders: int = 0
    fills: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        "One world more."
        self.worlds += 1
        for name in ("days", "seconds", "switches", "crashes", "orders", "fills"):
            setattr(self, name, getattr(self, name) + getattr(result, name))
        self.injected += result.injected
        self.seen += result.seen
        if result.violations:
            self.failed.append(result)

    def __str__(self) -> str:
        faults = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in self.injected.most_common())
        seen = ", ".join(f"{name} {count:,}" for name, count in sorted(self.seen.items()))
        return (
            f"{self.days:,} days of {self.worlds:,} worlds in {self.seconds:,.0f} s of work "
            f"({self.seconds / max(1, self.days) * 1000:.0f} ms a day)\n"
            f"{self.orders:,} orders and {self.fills:,} fills at the exchange, {self.switches:,} switches between tasks, "
            f"{self.crashes:,} crashes\n"
            f"faults: {sum(self.injected.values()):,} ({faults})\n"
            f"seen: {seen}\n"
            f"violations: {sum(len(r.violations) for r in self.failed)} in {len(self.failed)} worlds"
        )


def side_by_side(
    seeds: Iterable[int], days: int, jobs: int, mutation: str | None = None, calm: bool = False
) -> Iterator[Result]:
    "As `simulate`, in several processes; in the order in which they finish."
    batches = list(_batches(list(seeds), 8))
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for results in pool.imap_unordered(partial(_batch, days=days, mutation=mutation, calm=calm), batches):
            yield from results


def _batch(seeds: list[int], days: int, mutation: str | None, calm: bool) -> list[Result]:
    return list(simulate(seeds, days, mutation, calm=calm))


def _batches(seeds: list[int], size: int) -> Iterator[list[int]]:
    return (seeds[at : at + size] for at in range(0, len(seeds), size))
