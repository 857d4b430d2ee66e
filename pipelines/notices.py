"""Whoever waits for a run hears how it ended: the words are `tradenb.core.notify`'s, here they meet the run's rows and pages.

Nothing here delays a run or fails one: messages leave from threads of their own, and what cannot be read is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from tradenb.core.errors import one_line
from tradenb.core.logs import get_logger
from tradenb.core.notify import Kind, Message, job_failed, notifier_of, page_link, period_ended, run_ended, run_failed
from tradenb.core.settings import Settings
from tradenb.trading import records
from tradenb.trading.run import run_folder

_GOOD: ContextVar[list[dict[str, Any]] | None] = ContextVar("good days of a period", default=None)


@contextmanager
def telling_once(settings: Settings) -> Iterator[None]:
    "Within the block good days are gathered, and told as one piece of news at its end; any other day is told at once."
    gathered: list[dict[str, Any]] = []
    token = _GOOD.set(gathered)
    try:
        yield
    finally:
        _GOOD.reset(token)
    if gathered:
        days = [date.fromisoformat(good["trade_date"]) for good in gathered]
        index = page_link(settings, settings.root / "runs" / "index.html")
        notifier_of(settings).post(period_ended(days[0], days[-1], gathered, index))


@contextmanager
def telling(settings: Settings, engine: Engine, day: date) -> Iterator[None]:
    "Tell how the run of `day`, which goes on within the block, ended; a run that nobody can begin counts as failed."
    notifier = notifier_of(settings)
    try:
        yield
    except Exception as error:
        notifier.post(failure(settings, engine, day, error))
        raise
    if message := ending(settings, engine, day):
        notifier.post(message)


@contextmanager
def watched(
    settings: Settings,
    name: str,  # Of the flow
    again: str,  # The command that does it by hand
    but: type[Exception] | tuple[()] = (),  # An error that is none
) -> Iterator[None]:
    "Tell when something fails within the block that has no run to tell of."
    try:
        yield
    except Exception as error:
        if not isinstance(error, but):
            tell_failed(settings, name, one_line(error), again)
        raise


def tell_failed(settings: Settings, name: str, reason: str, again: str) -> None:
    "Tell that a flow did not do what it was for."
    notifier_of(settings).post(job_failed(name, reason, again))


def ending(settings: Settings, engine: Engine, day: date) -> Message | None:
    "What to say of a run that came to its end; nothing when it has none yet, is part of a period, or its row cannot be read."
    run_id = records.run_id_of(settings.run.strategy, day)
    try:
        row = records.find(engine, run_id)
        if row is None or not records.is_over(row) or row.summary is None:
            return None
        message = run_ended(run_id, row.status, row.summary, link_to_page(settings, day, run_id), row.trace_id)
        if (gathered := _GOOD.get()) is not None and message.kind is Kind.SUCCESS:
            gathered.append(row.summary | {"trade_date": str(day)})
            return None
        return message
    except Exception as error:
        get_logger().error("notification_not_made", error=one_line(error))
        return None


def failure(settings: Settings, engine: Engine, day: date, error: Exception) -> Message:
    "What to say of a run that stopped with `error`."
    run_id, stage, trace_id = records.run_id_of(settings.run.strategy, day), "", None
    try:
        stage, trace_id = failed_stage(engine, run_id)
    except Exception as unread:  # the database may be what failed
        get_logger().error("run_not_read", error=one_line(unread))
    link = link_to_page(settings, day, run_id, stage or "*")
    return run_failed(run_id, stage, one_line(error), link, f"tradenb paper-run --date {day}", trace_id)


def failed_stage(engine: Engine, run_id: str) -> tuple[str, Any]:
    "The last stage of a run that failed, and the run's trace; nothing where there is none."
    row = records.find(engine, run_id)
    failed = [name for name, stage in records.stages(engine, run_id).items() if stage.status == records.FAILED]
    return (failed[-1] if failed else ""), (row.trace_id if row else None)


def link_to_page(settings: Settings, day: date, run_id: str, stage: str = "*") -> str:
    "Where the newest page of a stage, or of the run, is; nothing where there is none."
    folder: Path = run_folder(settings.root, day, run_id)
    page = max(folder.glob(f"[0-9]_{stage}.html"), default=None)
    return page_link(settings, page) if page else ""
