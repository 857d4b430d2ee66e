"""A day from beginning to end, as the command line and the backfill run it.

1. One run at a time per data root: an operating-system lock.
2. The trade date is checked against calendar and source, and the feature set is read, before anything starts.
3. Services without an address start in this process; all must be healthy before the first stage.
4. The flow `daily` runs the stages; the summary and the index over all runs are written however it ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Row

from tradenb.core.calendar import require_session, sessions
from tradenb.core.db import connect, migrate
from tradenb.core.errors import InputError
from tradenb.core.progress import say
from tradenb.core.settings import Settings
from tradenb.trading import records
from tradenb.trading.run import alone, default_trade_date, start_run
from tradenb.trading.service import database_url
from tradenb.trading.services import check_health, running


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


def choose_date(settings: Settings, asked: date | None) -> date:
    "The session to trade in: the one asked for, else the one after the last finished run's. `InputError` where that cannot be."
    from tradenb.market.catalog import open_source

    day = require_session(asked) if asked else None
    source = open_source(settings)
    day = day or next_trade_date(settings, source)
    if not source.first_date < day <= source.last_date:
        raise InputError(
            f"{day} lies outside the {source.name} source, which has {source.first_date} to {source.last_date}"
        )
    return day


def next_trade_date(settings: Settings, source: Any) -> date:
    "The session after the last finished run's; the source's first when there is none."
    engine = migrate(connect(database_url(settings)))
    try:
        return default_trade_date(settings, engine, lambda: source.first_trade_date)
    finally:
        engine.dispose()


def check_features(settings: Settings) -> None:
    "Read the feature set that the settings name. `ConfigError` for one that cannot be, or that knows the future."
    from tradenb.trading.modelling import wanted_features

    wanted_features(settings)


def check_only(settings: Settings, day: date) -> dict[str, dict[str, Any]]:
    "Start what a run would need, ask everything for its health, and stop."
    check_features(settings)
    with alone(settings.root), running(settings, day) as ready:
        return check_health(ready)


@contextmanager
def desk(settings: Settings) -> Iterator[None]:
    "What all days of a process share: the run lock, the scheduler, and the index in the end."
    from pipelines.scheduler import scheduler

    with alone(settings.root), scheduler(settings.root):
        try:
            yield
        finally:
            refresh_index(settings)


def finished(settings: Settings, day: date) -> DayResult | None:
    "The result of a day that is over already; None when there is something to do."
    engine = migrate(connect(database_url(settings)))
    row = records.find(engine, records.run_id_of(settings.run.strategy, day))
    result = result_of(settings, engine, row, repeated=True) if row is not None and records.is_over(row) else None
    engine.dispose()
    return result


def run_day(settings: Settings, day: date) -> DayResult:
    "Run or resume `day`; within `desk`. A day that is done is only read. Raises the error of a stage that failed."
    from pipelines.flows import daily

    if result := finished(settings, day):
        return result
    engine = migrate(connect(database_url(settings)))
    try:
        require_forwards(engine, settings.run.strategy, day)
        with running(settings, day) as ready:
            run = start_run(ready, day)
            run.engine.dispose()
            daily(str(settings.root), str(day), run.run_id)
        return result_of(settings, engine, records.require(engine, run.run_id), repeated=False)
    finally:
        engine.dispose()


def run_days(settings: Settings, start: date, end: date) -> Iterator[DayResult]:
    "Every session from `start` to `end`, one after the other; within `desk`."
    days = sessions(start, end)
    if not days:
        raise InputError(f"no session between {start} and {end}: choose a later end or an earlier start")
    check_features(settings)
    for day in (choose_date(settings, days[0]), choose_date(settings, days[-1])):
        say(f"session {day} can be traded")
    for day in days:
        yield run_day(settings, day)


def require_forwards(engine: Engine, strategy: str, day: date) -> None:
    "A session before one that was traded already cannot be traded any more."
    last = records.last_done(engine, strategy)
    if last is not None and day < last.trade_date:
        raise InputError(
            f"{day} lies before {last.trade_date}, which {strategy} has traded already: choose a later session"
        )


def result_of(settings: Settings, engine: Engine, row: Row[Any], repeated: bool) -> DayResult:
    "The result of a run from its rows."
    from pipelines.flows import report_path

    stages = [
        dict(stage=s.stage, status=s.status, seconds=s.seconds, result=s.result or {}, error=s.error)
        for s in records.stages(engine, row.run_id).values()
    ]
    report = report_path(settings.root, row.trade_date, row.run_id)
    return DayResult(row.run_id, row.trade_date, row.status, repeated, report, stages, row.summary or {}, row.error)


def refresh_index(settings: Settings) -> Path:
    "Write the index over all runs."
    from pipelines.flows import report_path
    from pipelines.render import IndexRow, write_index

    folder, engine = settings.root / "runs", migrate(connect(database_url(settings)))
    rows = []
    for row in records.listing(engine, limit=100_000):
        s, page = row.summary or {}, report_path(settings.root, row.trade_date, row.run_id)
        page = page if page.is_file() else newest_page(page.parent)
        pnl, equity = (Decimal(s[name]) if name in s else None for name in ("pnl", "equity"))
        address, counts = page.relative_to(folder).as_posix(), (s.get("orders"), s.get("fills"), s.get("matched"))
        rows.append(IndexRow(row.trade_date, row.run_id, row.status, address, pnl, equity, *counts))
    engine.dispose()
    folder.mkdir(parents=True, exist_ok=True)
    return write_index(folder, rows)


def newest_page(folder: Path) -> Path:
    "The last stage's page that a run has left; where there is none, the folder itself."
    return max(folder.glob("[0-9]_*.html"), default=folder)
