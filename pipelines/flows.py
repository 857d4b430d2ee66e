"""The flow `daily`: one parameterised notebook per stage, executed in order, rendered as the day's report.

1. A stage that is done already is passed over, so that the same call resumes a run which was cut off.
2. Each stage leaves its executed notebook and a page to read, with the error in it when it failed.
3. The pages are linked when the run ends, for only then is it known which of them there are.
4. The run's row says how it ended; the index over all runs is written last, whatever happened.
"""

from datetime import date
from pathlib import Path

from prefect import flow, task
from sqlalchemy import Engine

from pipelines.engine import run_notebook
from pipelines.render import link, render
from tradenb.core.clock import Stopwatch, SystemClock
from tradenb.core.errors import one_line
from tradenb.core.logs import bind, get_logger
from tradenb.core.progress import say
from tradenb.trading import records
from tradenb.trading.pages.common import STAGES as PAGES
from tradenb.trading.run import open_run, run_folder

STAGES = tuple(PAGES)
JOBS = Path(__file__).with_name("jobs")
LINKS = [("All runs", "../../index.html"), *PAGES.values()]


@flow(name="daily", flow_run_name="{run_id}", validate_parameters=False)
def daily(
    root: str,  # The data root
    trade_date: str,  # ISO date of the session to trade in
    run_id: str,  # A run that was begun
) -> None:
    "All stages of a run that are not done yet, in order. Raises the error of the stage that failed."
    run = open_run(root, trade_date, run_id)
    done = {name for name, row in records.stages(run.engine, run_id).items() if row.status == records.COMPLETED}
    with bind(run_id=run_id, trace_id=run.row.trace_id):
        try:
            for name in STAGES:
                if name not in done:
                    stage.with_options(task_run_name=name, timeout_seconds=run.settings.run.stage_timeout_s)(
                        name, root, trade_date, run_id
                    )
        except BaseException as error:
            _fail(run.engine, run_id, error)
            raise
        finally:
            link(run.folder, LINKS)


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
        run_notebook(JOBS / f"{name}.ipynb", notebook, {"root": root, "trade_date": trade_date, "run_id": run_id})
    except BaseException as caught:
        error = caught
        raise
    finally:
        page = render_stage(notebook, trade_date) if notebook.is_file() else None
        text = one_line(error) if error else None
        records.end_stage(run.engine, run_id, name, clock.now(), watch.seconds, page, text)
        get_logger().info("stage_ended", stage=name, seconds=round(watch.seconds, 2), error=text)
        run.engine.dispose()


def render_stage(notebook: Path, trade_date: str) -> Path:
    "The page of an executed stage notebook, with links to the other stages of the day."
    page = notebook.with_suffix(".html")
    title, _ = PAGES[notebook.stem[2:]]
    render(notebook, page, f"{title} · {trade_date}", LINKS)
    return page


def _fail(engine: Engine, run_id: str, error: BaseException) -> None:
    reason = one_line(error) if isinstance(error, Exception) else "interrupted"
    records.end(engine, run_id, records.FAILED, SystemClock().now(), reason)


def report_path(root: Path, trade_date: date, run_id: str) -> Path:
    "The page to open first after a run."
    return run_folder(root, trade_date, run_id) / f"{len(STAGES)}_report.html"
