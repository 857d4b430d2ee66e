"""What a flow shows in Prefect's pages: a run's name, its stages and figures as artifacts, links to the rendered pages.

It is decoration: a scheduler that does not take it never fails a run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tradenb.core.errors import ReconciliationBreak, one_line
from tradenb.core.logs import get_logger
from tradenb.core.notify import page_link
from tradenb.core.settings import Settings
from tradenb.trading import records
from tradenb.trading.pages.common import STAGES as PAGES
from tradenb.trading.run import Run

if TYPE_CHECKING:
    from pipelines.day import DayResult


@contextmanager
def at_best() -> Iterator[None]:
    "Within the block a scheduler that does not answer is noted in the log, and no more."
    try:
        yield
    except Exception as error:
        get_logger().warning("artifact_failed", error=one_line(error))


@dataclass(frozen=True)
class RunLog:
    "A listener that writes what is said into the log of the present flow run or task, beside the one who listens already."

    beside: Callable[[str], None] | None = None

    def __call__(self, said: str) -> None:
        from prefect import get_run_logger
        from prefect.exceptions import MissingContextError

        if self.beside:
            self.beside(said)
        with suppress(MissingContextError):
            get_run_logger().info(said)


def logged_too(listener: Callable[[str], None] | None) -> RunLog:
    "The listener with the run's log beside it; a flow within a flow has it already."
    return listener if isinstance(listener, RunLog) else RunLog(listener)


def address(settings: Settings, page: Path) -> str:
    "Where a page of the reports can be opened: in the report browser where there is one, else the file itself."
    return page_link(settings, page) if settings.reports.link else page.as_uri()


# ---- a day


def name_flow_run(identity: str, run: Run) -> None:
    "Call the flow run as the run, and give it the run's trace id to be found by."
    from prefect.client.orchestration import get_client

    with at_best(), get_client(sync_client=True) as client:
        tags = [run.row.strategy, *([f"trace:{run.row.trace_id}"] if run.row.trace_id else [])]
        client.update_flow_run(UUID(identity), name=run.run_id, tags=tags)


def show_day(run: Run) -> None:
    "A day's stages, its figures, and links to its pages."
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

    with at_best():
        stages, row = records.stages(run.engine, run.run_id), run.row
        table = [stage_row(name, stage) for name, stage in stages.items()]
        create_table_artifact(key="daily-stages", table=table, description=f"{run.run_id}: {row.status}")
        create_markdown_artifact(key="daily", markdown=summary(run, row), description=f"{run.run_id}: {row.status}")
        pages = [run.folder / page for page, _ in pages_of()]
        if there := [page for page in pages if page.is_file()]:
            text = f"{run.run_id}: {row.status}"
            create_link_artifact(key="report", link=address(run.settings, there[-1]), link_text=text, description=text)


def stage_row(name: str, stage: Any) -> dict[str, Any]:
    from tradenb.cli.screen import describe

    seconds = f"{stage.seconds:.1f}" if stage.seconds is not None else ""
    return {
        "stage": name,
        "status": stage.status,
        "seconds": seconds,
        "what": stage.error or describe(name, stage.result or {}),
    }


def pages_of() -> list[tuple[str, str]]:
    "File name and title of each stage's page."
    return [(page, title) for title, page in PAGES.values()]


def summary(run: Run, row: Any) -> str:
    "A day as Markdown: the figures one asks for first, the pages, and what finds the rest."
    figures, folder = row.summary or {}, run.folder
    lines = [f"# {run.trade_date}: {row.status.replace('_', ' ')}", ""]
    if row.error:
        lines += [f"**{row.error}**", ""]
    if figures:
        lines += [
            f"P&L **{float(figures['pnl']):+,.2f} USD** ({figures['daily_return']:+.3%}), equity {float(figures['equity']):,.2f} USD; "
            f"{figures['orders']} orders, {figures['fills']} fills, {figures['positions']} positions; "
            f"books {'agree' if figures['matched'] else '**differ**'}.",
            "",
        ]
    lines += [
        f"- [{title}]({address(run.settings, folder / page)})"
        for page, title in pages_of()
        if (folder / page).is_file()
    ]
    lines += [
        "",
        f"Run `{run.run_id}`, model {row.model_version}, settings `{row.settings_hash}`, code `{row.code_version}`.",
    ]
    if row.trace_id:
        lines += ["", f"Every line of it: `tradenb logs --trace {row.trace_id}`"]
    return "\n".join(lines)


# ---- many days


@contextmanager
def progress(title: str) -> Iterator[Callable[[float], None]]:
    "A bar in Prefect's pages; yields what moves it, from 0 to 1."
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    bar: Any = None
    with at_best():
        bar = create_progress_artifact(0.0, key="backfill-progress", description=title)

    def advance(share: float) -> None:
        with at_best():
            if bar is not None:
                update_progress_artifact(bar, 100 * share)

    yield advance


def show_days(settings: Settings, results: "Sequence[DayResult]") -> None:
    "The days of a backfill as a table."
    from prefect.artifacts import create_table_artifact

    rows = [
        {
            "date": str(result.trade_date),
            "status": result.status,
            "P&L": result.summary.get("pnl"),
            "equity": result.summary.get("equity"),
            "orders": result.summary.get("orders"),
            "fills": result.summary.get("fills"),
            "report": address(settings, result.report),
        }
        for result in results
    ]
    with at_best():
        create_table_artifact(key="backfill", table=rows, description=f"{len(rows)} sessions")


# ---- between the days


def show_training(settings: Settings, champion: Any, metrics: Mapping[str, float], why: str) -> None:
    "The new champion's record out of sample."
    from prefect.artifacts import create_table_artifact

    rows = [
        {"metric": name, "out of sample": f"{value:.4f}"} for name, value in metrics.items() if isinstance(value, float)
    ]
    said = f"version {champion.version} of {settings.run.strategy}, trained through {champion.trained_through}: {why}"
    with at_best():
        create_table_artifact(key="training", table=rows, description=said)


def show_books(answer: Mapping[str, Any]) -> dict[str, Any]:
    "The comparison as a table; raises `ReconciliationBreak` when the books differ."
    from prefect.artifacts import create_table_artifact

    from tradenb.trading.stages import break_line

    kinds = {"differences": "remains", "mended": "was mended", "noted": "accounted for"}
    rows = [{"what": said} | dict(row) for kind, said in kinds.items() for row in answer[kind]]
    checked = ", ".join(f"{count} {name}" for name, count in answer["checked"].items())
    with at_best():
        create_table_artifact(
            key="books",
            table=rows,
            description=f"compared {checked}: {'they agree' if answer['matched'] else 'they differ'}",
        )
    if not answer["matched"]:
        raise ReconciliationBreak(break_line(answer["differences"]))
    return {"matched": True, "mended": len(answer["mended"])} | dict(answer["checked"])


def show_chores(done: Mapping[str, str]) -> None:
    "What the maintenance did."
    from prefect.artifacts import create_table_artifact

    with at_best():
        rows = [{"job": name, "what": said} for name, said in done.items()]
        create_table_artifact(key="maintenance", table=rows, description="What was tidied up")
