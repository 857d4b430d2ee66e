"The real ledger's SQLite, with a point at every begin and commit, and faults there."

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from tradenb.core.db import connect, migrate

from .faults import Faults
from .schedule import Killed, Schedule


def template(root: Path) -> Path:
    "A migrated, empty database: made once, copied for every world."
    path = root / "template.db"
    if not path.exists():
        engine = migrate(connect(f"sqlite:///{path}"))
        engine.dispose()
    return path


class Database:
    "One file, and engines on it that live as long as this process (what they have compiled stays)."

    def __init__(self, root: Path):
        self.root, self.path = root, root / "world.db"
        self.engines: dict[str, Engine] = {}
        self.schedule: Schedule | None = None
        self.faults = Faults(rng=None)  # type: ignore[arg-type]
        self.raw: dict[str, list[Any]] = {}
        self.down: set[str] = set()  # names of engines that get no connection

    def fresh(self, schedule: Schedule, faults: Faults) -> None:
        "An empty database for a new world."
        self.schedule, self.faults = schedule, faults
        self.down.clear()
        for name in tuple(self.engines):
            self.bury(name)
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        shutil.copy(template(self.root), self.path)

    def engine(self, name: str) -> Engine:
        "The engine of a process of that name."
        if name not in self.engines:
            self.engines[name] = self._instrumented(name)
        return self.engines[name]

    def _instrumented(self, name: str) -> Engine:
        engine = connect(f"sqlite:///{self.path}", timeout_s=0)
        event.listen(engine, "connect", lambda raw, _: self._connected(name, raw))
        begins = list(engine.dispatch.begin)
        for listener in begins:
            event.remove(engine, "begin", listener)
        for listener in (lambda connection: self._before_begin(name, connection), *begins):
            event.listen(engine, "begin", listener)  # ours first: others may go before the transaction, none within
        event.listen(engine, "rollback", lambda connection: self._rolled_back(connection))
        commit = engine.dialect.do_commit
        setattr(engine.dialect, "do_commit", lambda raw: self._commit(commit, raw))  # noqa: B010
        return engine

    def _connected(self, name: str, raw: Any) -> None:
        raw.execute("PRAGMA synchronous=OFF")
        self.raw.setdefault(name, []).append(raw)

    def bury(self, name: str) -> None:
        "What the kernel does for a process that died: open transactions roll back, connections end."
        for raw in self.raw.pop(name, []):
            with suppress(sqlite3.ProgrammingError):  # the pool has closed it already
                raw.rollback()
        if name in self.engines:
            self.engines[name].dispose()

    def _inside(self, writes: bool) -> None:
        if self.schedule is not None and self.schedule.task is not None:
            self.schedule.task.writes = writes

    def _rolled_back(self, connection: Any) -> None:
        if connection.get_execution_options().get("writes"):
            self._inside(False)

    def _before_begin(self, name: str, connection: Any) -> None:
        if self.schedule is None or self.schedule.task is None:
            return
        if self.schedule.task.writes:
            return  # a look from within a transaction: nobody else may go first
        writes = bool(connection.get_execution_options().get("writes"))
        self.schedule.point("begin" if writes else "read")
        if name in self.down or self.faults.strikes("locked"):
            raise OperationalError("BEGIN", None, sqlite3.OperationalError("database is locked"))
        self._inside(writes)

    def _commit(self, commit: Any, raw: Any) -> None:
        if self.schedule is None or (task := self.schedule.task) is None:
            return commit(raw)
        if not task.writes:
            return commit(raw)
        task.writes = False
        if not task.process.alive:
            raise Killed
        fault = self.faults.one_of("disk_full", "lost_database", "unknown_commit")
        if fault in ("disk_full", "lost_database"):
            raise sqlite3.OperationalError("database or disk is full" if fault == "disk_full" else "disk I/O error")
        self.schedule.before_point(task, "commit")  # a crash here rolls back
        commit(raw)
        if fault == "unknown_commit":
            raise sqlite3.OperationalError("disk I/O error")
        self.schedule.point("committed")
        return None

    def look(self, query: str, *values: Any) -> list[tuple]:
        "What is committed, read from outside."
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(query, values).fetchall()

    def close(self) -> None:
        "Let go of the file."
        for engine in self.engines.values():
            engine.dispose()
