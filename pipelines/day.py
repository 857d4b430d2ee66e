"""A day from beginning to end, as the command line, the scheduler and a backfill run it.

1. One run at a time per data root: an operating-system lock.
2. The trade date is checked against calendar and source, and the feature set is read, before anything starts.
3. The flow `daily` does the rest: services without an address start in its process, the stages run, and the summary is written however it ends.
4. The index over all runs is written last.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Row

from pipelines.index import refresh_index
from pipelines.published import publish_index
from tradenb.core.calendar import is_session, next_session, require_session, session, sessions
from tradenb.core.clock import NEW_YORK, Clock, Stopwatch, SystemClock, sleep
from tradenb.core.db import database
from tradenb.core.errors import DependencyError, InputError
from tradenb.core.garbage import seldom_tidied
from tradenb.core.notify import settle
from tradenb.core.progress import say
from tradenb.core.settings import SECRETS, Settings, load
from tradenb.trading import records
from tradenb.trading.run import alone, default_trade_date
from tradenb.trading.services import check_health, running, secrets_in_environment


@dataclass(frozen=True)
class DayResult:
    "How a day's run stands, read from its rows."

    run_id: str
    trade_date: date
    status: str
    repeated: bool  # It was done before; nothing was changed
    report: Path
    stages: list[dict[str, Any]]  # stage, status, seconds, result
    summary: dict[str, Any]  # The report stage's headline figures
    error: str | None
    trace_id: str = ""  # What its log lines, requests and rows share


class NoSession(InputError):
    "There is nothing to trade today, and nothing wrong with that."


class Busy(DependencyError):
    "Another run is using the data root."


# ---- the date


def choose_date(settings: Settings, asked: date | None, clock: Clock | None = None) -> date:
    "The session to trade in: the one asked for, today's with a real broker, else the one after the last finished run's. `InputError` where that cannot be."
    from tradenb.market.catalog import open_source

    simulated = settings.execution.broker == "exchange"
    day = require_session(asked) if asked else None
    if day is None and not simulated:
        day = todays_session(settings, (clock or SystemClock()).now())
    source = open_source(settings)
    day = day or next_trade_date(settings, source)
    last = source.last_date if simulated else next_session(source.last_date)  # a real session has no bar yet
    if not source.first_date < day <= last:
        raise InputError(
            f"{day} lies outside the {source.name} source, which has {source.first_date} to {source.last_date}"
        )
    return day


def todays_session(settings: Settings, now: datetime) -> date:
    "Today, where it is a session that is not over or a run of it was begun; `NoSession` names the next one."
    today = now.astimezone(NEW_YORK).date()
    if not is_session(today):
        raise NoSession(f"{today} is no session of the NYSE: the next one is {next_session(today)}")
    if now >= session(today).close and not begun(settings, today):
        raise NoSession(
            f"the session of {today} closed at {session(today).close.astimezone(NEW_YORK):%H:%M} in New York: the next one is {next_session(today)}"
        )
    return today


def begun(settings: Settings, day: date) -> bool:
    "Was a run of that day ever begun?"
    with database(settings) as engine:
        return records.find(engine, records.run_id_of(settings.run.strategy, day)) is not None


def next_trade_date(settings: Settings, source: Any) -> date:
    "The session after the last finished run's; the source's first when there is none."
    with database(settings) as engine:
        return default_trade_date(settings, engine, lambda: source.first_trade_date)


def require_forwards(engine: Engine, strategy: str, day: date) -> None:
    "A session before one that was traded already cannot be traded any more."
    last = records.last_done(engine, strategy)
    if last is not None and day < last.trade_date:
        raise InputError(
            f"{day} lies before {last.trade_date}, which {strategy} has traded already: choose a later session"
        )


# ---- before anything starts


def check_features(settings: Settings) -> None:
    "Read the feature set that the settings name. `ConfigError` for one that cannot be, or that knows the future."
    from tradenb.trading.modelling import wanted_features

    wanted_features(settings)


def check_only(settings: Settings, day: date) -> dict[str, dict[str, Any]]:
    "Start what a run would need, ask everything for its health, and stop."
    check_features(settings)
    with to_itself(settings.root), running(settings, day) as ready:
        return check_health(ready)


# ---- what the days of a process share

AT_WORK: ContextVar[frozenset[Path]] = ContextVar("at_work", default=frozenset())  # data roots that this process has


@contextmanager
def to_itself(
    root: Path,
    patience_s: float = 0,  # How long to wait for another process
) -> Iterator[None]:
    "Hold the run lock of a data root, once in a process; `Busy` when another process has it."
    if root in AT_WORK.get():
        yield
        return
    watch = Stopwatch()
    with ExitStack() as stack:
        while not entered(stack, root, watch.seconds >= patience_s):
            sleep(0.5)
        token = AT_WORK.set(AT_WORK.get() | {root})
        try:
            yield
        finally:
            AT_WORK.reset(token)


def entered(stack: ExitStack, root: Path, last: bool) -> bool:
    "Try once to hold the lock; the last time a refusal is an error."
    try:
        stack.enter_context(alone(root))
    except DependencyError as error:
        if last:
            raise Busy(str(error)) from error
        return False
    return True


@contextmanager
def desk(
    settings: Settings,
    patience_s: float = 0,  # How long to wait for another process
) -> Iterator[None]:
    "What all days of a process share: the run lock, the scheduler, and the index in the end. A desk within a desk is the same one."
    from pipelines.scheduler import scheduler

    if settings.root in AT_WORK.get():
        yield
        return
    with to_itself(settings.root, patience_s), seldom_tidied(), scheduler(settings):
        try:
            yield
        finally:
            refresh_index(settings)
            publish_index(settings)
            settle()  # whoever copies or removes the root afterwards finds nobody writing in it


# ---- one day, many days

AFTER_EACH: ContextVar[Callable[[DayResult], None] | None] = ContextVar("after_each", default=None)


def tell(result: DayResult) -> None:
    "Let whoever asked for many days know that one is done."
    if hear := AFTER_EACH.get():
        hear(result)


def finished(settings: Settings, day: date) -> DayResult | None:
    "The result of a day that is over already; None when there is something to do."
    with database(settings) as engine:
        row = records.find(engine, records.run_id_of(settings.run.strategy, day))
        return result_of(settings, engine, row, repeated=True) if row is not None and records.is_over(row) else None


def run_day(settings: Settings, day: date) -> DayResult:
    "Run or resume `day` by the flow `daily`; within `desk`. A day that is done is only read. Raises the error of a stage that failed."
    from pipelines.flows import DayFailed, daily

    if result := finished(settings, day):
        return result
    with secrets_in_environment(settings), suppress(DayFailed):  # its rows say so
        daily(str(day), differing(settings))
    return stored(settings, day)


def run_days(
    settings: Settings,
    start: date,
    end: date,
    told: Callable[[DayResult], None] | None = None,  # Called after each day
) -> list[DayResult]:
    "Every session from `start` to `end`, one after the other, by the flow `backfill`; within `desk`."
    from pipelines.flows import backfill

    results: list[DayResult] = []

    def hear(result: DayResult) -> None:
        results.append(result)
        if told:
            told(result)

    token = AFTER_EACH.set(hear)
    try:
        with secrets_in_environment(settings):
            backfill(str(start), str(end), differing(settings))
    finally:
        AFTER_EACH.reset(token)
    return results


def tradable(settings: Settings, start: date, end: date) -> list[date]:
    "The sessions of a backfill; `InputError` when there is none, or the source does not reach them."
    days = sessions(start, end)
    if not days:
        raise InputError(f"no session between {start} and {end}: choose a later end or an earlier start")
    check_features(settings)
    for day in (choose_date(settings, days[0]), choose_date(settings, days[-1])):
        say(f"session {day} can be traded")
    return days


def differing(settings: Settings) -> dict[str, Any]:
    "`section.key` → value where settings differ from those that this machine loads by itself: what a flow is told. Secrets are left out."
    usual, wanted = load().model_dump(mode="json"), settings.model_dump(mode="json")
    names = ((section, key) for section, keys in wanted.items() for key in keys)
    return {
        f"{section}.{key}": wanted[section][key]
        for section, key in names
        if wanted[section][key] != usual[section][key] and f"{section}.{key}" not in SECRETS
    }


# ---- how it stands


def stored(settings: Settings, day: date) -> DayResult:
    "The result of a day from its rows."
    with database(settings) as engine:
        row = records.require(engine, records.run_id_of(settings.run.strategy, day))
        return result_of(settings, engine, row, repeated=False)


def result_of(settings: Settings, engine: Engine, row: Row[Any], repeated: bool) -> DayResult:
    "The result of a run from its rows."
    from pipelines.flows import report_path

    stages = [
        dict(stage=s.stage, status=s.status, seconds=s.seconds, result=s.result or {}, error=s.error)
        for s in records.stages(engine, row.run_id).values()
    ]
    report = report_path(settings.root, row.trade_date, row.run_id)
    return DayResult(
        row.run_id, row.trade_date, row.status, repeated, report, stages, row.summary or {}, row.error, row.trace_id
    )
