"""What runs by itself: the flows `daily`, `train`, `reconcile`, `maintenance` and `backfill`.

A flow is told a date at most and where its settings differ from the machine's (`section.key` → value); everything else it finds itself, so the same
flow runs from the command line, from a schedule, and on another machine's worker. `daily` is a whole day:

1. A stage that is done already is passed over, so that the same call resumes a run which was cut off.
2. Each stage leaves its executed notebook and a page to read, with the error in it when it failed.
3. The pages are linked when the run ends, for only then is it known which of them there are.
4. The run's row says how it ended; the index over all runs is written last, whatever happened.

A flow that finds nothing to do ends as `Skipped` and says why. What may be repeated after a failure, and what never is: docs/decisions/0022.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.concurrency.sync import concurrency
from prefect.states import Completed, Failed, State
from prefect.tasks import exponential_backoff
from sqlalchemy import Engine

from pipelines import day as days
from pipelines import shown, upkeep
from pipelines.engine import run_notebook
from pipelines.notices import tell_failed, telling, telling_once, watched
from pipelines.published import fetch_run, publish_run
from pipelines.render import link, render, write_page
from tradenb.core.clock import NEW_YORK, Stopwatch, SystemClock
from tradenb.core.db import database
from tradenb.core.errors import DependencyError, RunFailed, SourceError, one_line
from tradenb.core.logs import bind, get_logger, new_trace_id
from tradenb.core.progress import LISTENER, heard_by, say
from tradenb.core.settings import Settings, load
from tradenb.core.tracing import observe, step
from tradenb.trading import records
from tradenb.trading.pages.common import STAGES as PAGES
from tradenb.trading.run import Run, held, open_run, run_folder, start_run
from tradenb.trading.services import running
from tradenb.trading.troubles import in_our_words

STAGES = tuple(PAGES)
JOBS = Path(__file__).with_name("jobs")
LINKS = [("All runs", "../../index.html"), *PAGES.values()]
REPEATABLE = (
    "etl",
    "signals",
    "reconcile",
    "report",
)  # A training that is done twice counts twice; orders have retries of their own
AT_BROKER = ("trade", "reconcile")  # Stages that hold the broker for themselves
BROKER = "broker"  # The concurrency limit that they hold
Overrides = Mapping[str, Any] | None  # section.key → value


class DayFailed(RunFailed):
    "A day went to its end and its verdict is that it failed; its rows and pages say why."


# ---- a flow's surroundings


@contextmanager
def at_work(settings: Settings, patience_s: float = 3600) -> Iterator[None]:
    "The desk, on a worker after whoever has it now; there also the log files. What is said goes to the flow run's log, and to the terminal if there is one. What a flow does beside a run is a trace of its own."
    by_a_worker = runtime.deployment.id is not None
    if by_a_worker:
        observe(settings, "flow")
    with (
        step(f"flow {runtime.flow_run.flow_name or 'by hand'}", service="flow"),
        heard_by(shown.logged_too(LISTENER.get())),
        days.desk(settings, patience_s if by_a_worker else 0),
    ):
        yield


def skipped(why: object) -> State[Any]:
    "The end of a flow that had nothing to do."
    say(str(why))
    return Completed(name="Skipped", message=str(why))


LATE = timedelta(hours=6)


def overdue(settings: Settings, again: str) -> State[Any] | None:
    "The end of this flow when it comes too late; whoever waits for it is told, and how to do it by hand."
    late = missed(runtime.flow_run.scheduled_start_time, SystemClock().now())
    if late:
        tell_failed(settings, runtime.flow_run.flow_name, str(late.message), again)
    return late


def missed(planned: datetime | None, now: datetime) -> State[Any] | None:
    "The end of a scheduled flow that no worker was there for on its day; None when it is still that day."
    if (
        planned is None
        or now - planned < LATE
        or planned.astimezone(NEW_YORK).date() == now.astimezone(NEW_YORK).date()
    ):
        return None
    why = f"it was due at {planned.astimezone(NEW_YORK):%Y-%m-%d %H:%M} in New York and no worker took it that day: was `make up` running?"
    return Failed(name="Missed", message=why)


def named() -> str:
    "The name of a flow run before its date is known."
    asked = runtime.flow_run.parameters.get("trade_date")
    planned = runtime.flow_run.scheduled_start_time or SystemClock().now()
    return f"{asked}" if asked else f"due {planned.astimezone(NEW_YORK):%Y-%m-%d %H:%M}"


# ---- a day


@flow(name="daily", flow_run_name=named, validate_parameters=False)
def daily(
    trade_date: str | None = None,  # ISO date; default: today's session, or the next one of a simulated market
    settings: dict[str, Any] | None = None,  # `section.key` → value, where they differ from the machine's
) -> Any:  # The day in figures, or how it was skipped
    "A whole trading day: data, model, signals, orders, fills, reconciliation, P&L, reports. Safe to repeat and to resume."
    here = load(settings)
    if late := overdue(here, "tradenb paper-run"):
        return late
    with ExitStack() as desk:
        with watched(here, "daily", "tradenb paper-run"):  # until there is a run, which tells of its own end
            desk.enter_context(at_work(here))
            try:
                day = days.choose_date(here, date.fromisoformat(trade_date) if trade_date else None)
            except days.NoSession as nothing:
                return skipped(nothing)
            if done := days.finished(here, day):
                return skipped(f"{done.run_id} is {done.status} already: nothing was changed")
            days.check_features(here)
        with in_our_own_words():
            trade(here, day)
        return told(days.stored(here, day))


def told(result: days.DayResult) -> dict[str, Any]:
    "The result of a day as JSON; `DayFailed` when that is its verdict."
    if result.status == records.FAILED:
        raise DayFailed(f"{result.run_id} failed: {result.error or 'its books do not agree with the broker'}")
    return {"run_id": result.run_id, "status": result.status, "report": str(result.report)} | result.summary


def trade(settings: Settings, day: date) -> None:
    "Begin or resume the run of `day`, and do what it lacks."
    with database(settings) as engine:
        days.require_forwards(engine, settings.run.strategy, day)
        fetch_run(settings, run_folder(settings.root, day, records.run_id_of(settings.run.strategy, day)))
        with telling(settings, engine, day), running(settings, day) as ready:
            with bind(trace_id=new_trace_id(), span=None):  # of the run alone: a backfill's flow has many runs
                run = start_run(ready, day)
            try:
                perform(run)
            finally:
                run.engine.dispose()


def perform(run: Run) -> None:
    "All stages of a run that are not done yet, in order. Raises the error of the stage that failed."
    keep_flow_run(run)
    done = {name for name, row in records.stages(run.engine, run.run_id).items() if row.status == records.COMPLETED}
    of_the_run = dict(run_id=run.run_id, trace_id=run.row.trace_id, span=None)  # not the flow's: it may be resumed
    with bind(**of_the_run), step("daily", service="flow"), held(run) as hold:
        try:
            for name in STAGES:
                if name not in done:
                    hold.require()
                    prepared(name, run.settings)(name, str(run.settings.root), str(run.trade_date), run.run_id)
        except BaseException as error:
            _fail(run.engine, run.run_id, error)
            with in_our_own_words(error):
                render_stopped(run)
            raise
        finally:
            link(run.folder, LINKS)
            publish_run(run.settings, run.folder)
            shown.show_day(run)


def keep_flow_run(run: Run) -> None:
    "The run's row names the flow run, the flow run the run."
    if identity := runtime.flow_run.id:
        records.learn(run.engine, run.run_id, flow_run_id=str(identity))
        shown.name_flow_run(identity, run)


def prepared(name: str, settings: Settings) -> Any:
    "The task of a stage: its name, its time, and whether it may be repeated."
    timed = stage.with_options(task_run_name=name, timeout_seconds=settings.run.stage_timeout_s)
    if name not in REPEATABLE:
        return timed
    return timed.with_options(
        retries=settings.prefect.retries,
        retry_delay_seconds=exponential_backoff(settings.execution.backoff_s),
        retry_condition_fn=worth_repeating,
    )


def worth_repeating(task: Any, task_run: Any, state: State[Any]) -> bool:
    "Whether a stage failed because something that it depends on did not answer; bad data stays bad."
    error = state.result(raise_on_failure=False)
    return isinstance(error, DependencyError | SourceError)


@task(name="stage")
def stage(name: str, root: str, trade_date: str, run_id: str) -> None:
    "One stage: execute its notebook, render it, and keep in the run's row how it went."
    run = open_run(root, trade_date, run_id)
    clock, watch = SystemClock(), Stopwatch()
    say(f"{name}:")
    records.begin_stage(run.engine, run_id, name, clock.now())
    notebook = run.folder / f"{STAGES.index(name) + 1}_{name}.ipynb"
    error: BaseException | None = None
    try:
        alone = concurrency(BROKER, lease_duration=60) if name in AT_BROKER else nullcontext()
        with step(f"stage {name}", service="flow"), in_our_own_words(), alone:
            run_notebook(JOBS / f"{name}.ipynb", notebook, {"root": root, "trade_date": trade_date, "run_id": run_id})
    except BaseException as caught:
        error = caught
        raise
    finally:
        with in_our_own_words(error):
            page = render_stage(notebook, trade_date) if notebook.is_file() else None
            text = one_line(error) if error else None
            records.end_stage(run.engine, run_id, name, clock.now(), watch.seconds, page, text)
            get_logger().info("stage_ended", stage=name, seconds=round(watch.seconds, 2), error=text)
        run.engine.dispose()


@contextmanager
def in_our_own_words(before: BaseException | None = None) -> Iterator[None]:
    "Within the block, a full disk or a dead database is a `DependencyError`; what follows an earlier error is only noted: the first one counts."
    try:
        yield
    except Exception as error:
        if before is not None:
            get_logger().error("not_written_after_an_error", error=one_line(error))
            return
        if ours := in_our_words(error):
            raise ours from error
        raise


def render_stage(notebook: Path, trade_date: str) -> Path:
    "The page of an executed stage notebook, with links to the other stages of the day."
    page = notebook.with_suffix(".html")
    title, _ = PAGES[notebook.stem[2:]]
    render(notebook, page, f"{title} · {trade_date}", LINKS)
    return page


def render_stopped(run: Run) -> None:
    "The page of the day for a run that did not come to its end; a report that was begun has its own, with the error in it."
    from tradenb.trading.pages.report import stopped

    if STAGES[-1] not in records.stages(run.engine, run.run_id):
        write_page(
            report_path(run.settings.root, run.trade_date, run.run_id),
            f"The day · {run.trade_date}",
            stopped(run).html,
            LINKS,
        )


def _fail(engine: Engine, run_id: str, error: BaseException) -> None:
    reason = one_line(error) if isinstance(error, Exception) else "interrupted"
    with in_our_own_words(error):  # the run may be another's by now, or the database gone
        records.end(engine, run_id, records.FAILED, SystemClock().now(), reason)


def report_path(root: Path, trade_date: date, run_id: str) -> Path:
    "The page to open first after a run."
    return run_folder(root, trade_date, run_id) / f"{len(STAGES)}_report.html"


# ---- many days


@flow(name="backfill", flow_run_name="{start} to {end}", validate_parameters=False)
def backfill(
    start: str,  # ISO date of the first session
    end: str,  # And of the last
    settings: dict[str, Any] | None = None,  # `section.key` → value, where they differ from the machine's
) -> Any:
    "Every session of a period, one after the other, each a `daily` of its own. Stops at the first that fails; the same call goes on from there."
    here = load(settings)
    with at_work(here), shown.progress(f"{start} to {end}") as advance:
        wanted, results = days.tradable(here, date.fromisoformat(start), date.fromisoformat(end)), []
        with telling_once(here):
            for number, day in enumerate(wanted, 1):
                results.append(days.run_day(here, day))
                days.tell(results[-1])
                advance(number / len(wanted))
        shown.show_days(here, results)
    return {"sessions": len(results)}


# ---- between the days


@flow(name="train", flow_run_name=named, validate_parameters=False)
def train(
    why: str | None = None,  # Train whatever the champion's age, for this reason
    settings: dict[str, Any] | None = None,  # `section.key` → value, where they differ from the machine's
) -> Any:
    "Train, register and activate a model when age, drift or other features ask for it."
    here = load(settings)
    if late := overdue(here, "tradenb train"):
        return late
    with watched(here, "train", "tradenb train"), at_work(here):
        due = upkeep.training_due(here)
        reason = why or due.reason
        if reason is None:
            return skipped(due.kept)
        champion, metrics = upkeep.train(here, reason)
        shown.show_training(here, champion, metrics, reason)
        return {"version": champion.version, "because": reason}


@flow(name="reconcile", flow_run_name=named, validate_parameters=False)
def reconcile(
    settings: dict[str, Any] | None = None,  # `section.key` → value, where they differ from the machine's
) -> Any:
    "Compare the books with the broker's while its market is open; fails when they differ."
    here = load(settings)
    try:
        with watched(here, "reconcile", "tradenb reconcile", but=days.Busy), at_work(here, patience_s=0):
            if closed := upkeep.market_closed(here):
                return skipped(closed)
            with concurrency(BROKER, lease_duration=60):
                answer = upkeep.reconcile(here)
    except days.Busy:
        return skipped("a run is at work, and compares the books itself")
    return shown.show_books(answer)  # where they differ, the gateway has halted trading, and told of it


@flow(name="maintenance", flow_run_name=named, validate_parameters=False)
def maintenance(
    settings: dict[str, Any] | None = None,  # `section.key` → value, where they differ from the machine's
) -> Any:
    "Compact and vacuum the lake, copy the databases, remove old runs' pages, and renew the schedules."
    here = load(settings)
    with watched(here, "maintenance", "prefect deployment run maintenance/" + here.run.strategy), at_work(here):
        ended = {
            job.__name__: chore.with_options(task_run_name=job.__name__)(job, here, return_state=True)
            for job in upkeep.CHORES
        }
        done = {name: state.result(raise_on_failure=False) for name, state in ended.items()}
        shown.show_chores(
            {name: one_line(what) if isinstance(what, Exception) else what for name, what in done.items()}
        )
        for what in done.values():  # One that failed keeps no other from its turn
            if isinstance(what, Exception):
                raise what
    return done


@task(name="chore")
def chore(job: Any, settings: Settings) -> str:
    "One job of the maintenance; what it did in a line."
    say(f"{job.__name__}:")
    return str(job(settings))
