"""The index over all runs: how the newest one went, what the days brought, and a way to each of them.

1. `runs_of` reads the rows of the runs from the database; what a stage's page found is in the stage's row.
2. `write_index` makes one plain file of them. It asks for nothing: the one script that it has searches the table, and the page names it to the
   browser by its digest; without it the page is whole but for the search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy import Engine, Row, select

from pipelines.engine import write_whole
from pipelines.render import navigation
from tradenb.core.db import database, run_stages
from tradenb.core.report import (
    HALF,
    Block,
    Day,
    Verdict,
    bars,
    headline,
    lines,
    months,
    page,
    side_by_side,
    stacked,
    text_of,
    tiles,
)
from tradenb.core.settings import Settings
from tradenb.models.inference import sharpe_interval
from tradenb.trading import records
from tradenb.trading.pages.common import counted, findings_of, worst

INDEX = "index.html"
QUARTER = 63  # Of fewer days a Sharpe ratio says nothing


@dataclass(frozen=True, slots=True)
class IndexRow:
    "One run in the index."

    trade_date: date
    run_id: str
    status: str  # completed, partially_completed, failed, running, …
    address: str  # Of the run's report, relative to the index
    pnl: Decimal | None = None  # The day's, in USD
    equity: Decimal | None = None  # At the close, in USD
    orders: int | None = None
    fills: int | None = None
    reconciled: bool | None = None  # None: not checked
    daily_return: float | None = None  # A share: 0.01 is 1%
    model: str = ""  # Version
    said: tuple[tuple[Verdict, str], ...] = ()  # What the stages' pages found, or why the run failed

    @property
    def verdict(self) -> Verdict | None:
        "The most serious of what is known; None while it runs."
        if self.status == "running":
            return None
        of_status: dict[str, Verdict] = {"completed": "green", "failed": "red"}
        books: list[Verdict] = ["red"] if self.reconciled is False else []
        return worst([of_status.get(self.status, "amber"), *books, *(verdict for verdict, _ in self.said)])

    @property
    def reason(self) -> str:
        "The most serious thing that was found, unless all is well."
        serious = [text for verdict, text in self.said if verdict == self.verdict != "green"]
        return serious[0] if serious else ""


# ---- from the database


def runs_of(settings: Settings, engine: Engine, limit: int = 100_000) -> list[IndexRow]:
    "The rows of all runs, newest first, with what their pages found."
    with engine.connect() as connection:
        query = select(run_stages.c.run_id, run_stages.c.stage, run_stages.c.status, run_stages.c.result)
        stages: dict[str, list[Any]] = {}
        for stage in connection.execute(query):
            stages.setdefault(stage.run_id, []).append(stage)
    return [_row_of(settings, row, stages.get(row.run_id, [])) for row in records.listing(engine, limit)]


def _row_of(settings: Settings, row: Row[Any], stages: Sequence[Any]) -> IndexRow:
    s = row.summary or {}
    pnl, equity = (Decimal(s[name]) if s.get(name) is not None else None for name in ("pnl", "equity"))
    found = [finding for stage in stages for finding in findings_of(stage.result)]
    failed: list[tuple[Verdict, str]] = [("red", row.error)] if row.error and row.status == records.FAILED else []
    return IndexRow(
        row.trade_date,
        row.run_id,
        row.status,
        address_of(settings.root, row),
        pnl,
        equity,
        s.get("orders"),
        s.get("fills"),
        s.get("matched"),
        s.get("daily_return"),
        str(row.model_version or ""),
        (*failed, *found),
    )


def address_of(root: Path, row: Row[Any]) -> str:
    "The page to open of a run, relative to the index: the day's, else the newest that there is, else its folder. What ran on another machine left nothing here."
    from pipelines.flows import report_path

    page = report_path(root, row.trade_date, row.run_id)
    page = (
        page
        if page.is_file() or not page.parent.is_dir()
        else max(page.parent.glob("[0-9]_*.html"), default=page.parent)
    )
    return page.relative_to(root / "runs").as_posix()


def refresh_index(settings: Settings) -> Path:
    "Write the index over all runs."
    with database(settings) as engine:
        rows = runs_of(settings, engine)
    folder = settings.root / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    return write_index(folder, rows)


# ---- the page


def write_index(
    runs_folder: Path,  # Where `index.html` goes
    rows: Sequence[IndexRow],  # In any order
) -> Path:  # The page
    "An overview of all runs, newest first, as a plain file."
    path = runs_folder / INDEX
    write_whole(path, index_page(rows, path))
    return path


def index_page(rows: Sequence[IndexRow], path: Path = Path(INDEX)) -> str:
    "The index as a document."
    newest_first = sorted(rows, key=lambda row: (row.trade_date, row.run_id), reverse=True)
    blocks = [
        _headline(newest_first),
        *_figures(newest_first),
        *_pictures(newest_first),
        _search(newest_first),
        _table(newest_first),
    ]
    return page("tradenb runs", stacked(*blocks).html, navigation(path, []), SEARCH if newest_first else "")


SENTENCES = {
    "completed": "completed",
    "partially_completed": "completed in part: look at its orders",
    "failed": "failed: its page says why",
    "running": "is under way",
}


def _headline(newest_first: Sequence[IndexRow]) -> Block:
    if not newest_first:
        return Block("<h1>Runs</h1>")
    last, days = newest_first[0], sorted({row.trade_date for row in newest_first})
    first = f"The newest run, for {last.trade_date}, {SENTENCES.get(last.status, f'is {last.status}')}."
    books = ["Its books do not agree with the broker's."] if last.reconciled is False else []
    found = sorted(last.said, key=lambda finding: ("red", "amber", "green").index(finding[0]))
    said = [finding for finding in found if finding[0] != "green"]
    verdict = last.verdict or "amber"
    return headline(
        "Runs", f"{days[0]} to {days[-1]}" if len(days) > 1 else str(days[0]), verdict, [first, *books, *said]
    )


def by_day(rows: Sequence[IndexRow]) -> list[IndexRow]:
    "The last run of each day that ended with an account, oldest first."
    done = {
        row.trade_date: row for row in sorted(rows, key=lambda row: row.run_id, reverse=True) if row.equity is not None
    }
    return [done[day] for day in sorted(done)]


def _figures(newest_first: Sequence[IndexRow]) -> list[Block]:
    days = by_day(newest_first)
    if not days:
        return []
    total = sum((row.pnl for row in days if row.pnl is not None), Decimal(0))
    checked = [row.reconciled for row in days if row.reconciled is not None]
    up = sum(1 for row in days if row.pnl and row.pnl > 0)
    failed = sum(row.verdict == "red" for row in newest_first)
    look = sum(row.verdict == "amber" for row in newest_first)
    count = f"of {len(newest_first):,} runs" if len(newest_first) > len(days) else "one run each"
    figures = {
        "P&L": (text_of(total, "gain"), f"over {counted(len(days), 'day')}, all costs included"),
        "Equity": (text_of(days[-1].equity, "dollars"), f"at the close of {days[-1].trade_date}"),
        **_performance(days),
        "Days up": (f"{up} of {len(days)}", count),
        "Reconciled": (f"{sum(checked)} of {len(checked)}", "days that were checked"),
        "To look at": (f"{look + failed:,}", f"{failed:,} red, {look:,} amber"),
    }
    return [tiles(figures)]


def _performance(days: Sequence[IndexRow]) -> dict[str, tuple[str, str]]:
    "Deepest fall, and the Sharpe ratio with its interval once there are days enough to speak of one."
    returns = [row.daily_return for row in days if row.daily_return is not None]
    if len(returns) < 2:
        return {}
    fall = {"Deepest fall": (text_of(deepest_fall(returns), "percent"), "from the highest close")}
    if len(returns) < QUARTER:
        return fall
    s = sharpe_interval(np.array(returns))
    between = f"{text_of(s.low, 'price')} to {text_of(s.high, 'price')} with 95% confidence"
    return fall | {"Sharpe ratio": (text_of(s.value, "price"), between)}


def deepest_fall(returns: Sequence[float]) -> float:
    "The deepest fall of the growth of a dollar below its highest so far: 0 or below."
    growth, top, fall = 1.0, 1.0, 0.0
    for value in returns:
        growth *= 1 + value
        top = max(top, growth)
        fall = min(fall, growth / top - 1)
    return fall


FEW = 2  # So many months stand beside the charts, more of them below


def _pictures(newest_first: Sequence[IndexRow]) -> list[Block]:
    "The calendar, and the equity as a line."
    if not newest_first:
        return []
    days = by_day(newest_first)
    few = len({(row.trade_date.year, row.trade_date.month) for row in newest_first}) <= FEW
    calendar = _calendar(newest_first, few)
    if len(days) < 2:
        return [calendar]
    charts = _charts(days, 2.0 if few else 2.6)
    return [side_by_side(calendar, stacked(*charts))] if few else [side_by_side(*charts), calendar]


def _charts(days: Sequence[IndexRow], height: float) -> list[Block]:
    pnl = [float(row.pnl or 0) for row in days]
    frame = pl.DataFrame(
        {"date": [row.trade_date for row in days], "equity": [float(row.equity or 0) for row in days], "pnl": pnl},
        schema={"date": pl.Date, "equity": pl.Float64, "pnl": pl.Float64},
    )
    return [
        lines(frame, "date", ["equity"], "Equity", "dollars", "At each close, in USD", height=height, width=HALF),
        bars(frame, "date", "pnl", "P&L by day", "dollars", "In USD", signed=True, height=height, width=HALF),
    ]


HINT = "Green earned, red lost, the stronger the more. A dot: something to look at. A red frame: failed, or the books did not agree. A click opens the day."


def _calendar(newest_first: Sequence[IndexRow], large: bool) -> Block:
    head = Block(f"<div class=tn-chart><figcaption>Calendar<small>{escape(HINT)}</small></figcaption></div>")
    return stacked(head, months({row.trade_date: _day(row) for row in reversed(newest_first)}, large=large))


def _day(row: IndexRow) -> Day:
    value = None if row.pnl is None else float(row.pnl)
    earned = "" if row.pnl is None else f": {text_of(row.pnl, 'pnl')} ({text_of(row.daily_return, 'change')})"
    said = ", ".join(filter(None, (row.status.replace("_", " "), row.reason)))
    return Day(value, f"{row.trade_date:%a} {row.trade_date}{earned}, {said}", row.address, row.verdict or "amber")


# ---- the table, and the search in it


SEARCH = """
const box=document.getElementById('search'),rows=[...document.querySelectorAll('#runs tbody tr[data-t]')],count=document.getElementById('count');
const show=()=>{const words=box.value.toLowerCase().split(/\\s+/).filter(Boolean);let seen=0;
for(const row of rows){const hit=words.every(word=>row.dataset.t.includes(word));row.hidden=!hit;seen+=hit}
count.textContent=words.length?seen+' of '+rows.length:''};
document.getElementById('find').hidden=false;box.addEventListener('input',show);show();
""".strip()


def _search(newest_first: Sequence[IndexRow]) -> Block:
    if not newest_first:
        return Block("")
    hint = "a month, a status, red, a model, a word of a reason …"
    field = f'<input id=search type=search placeholder="{escape(hint)}" aria-label="Search the runs" autocomplete=off>'
    return Block(f"<h2>All runs</h2><p id=find hidden>{field} <span id=count class=tn-note></span></p>")


COLUMNS = ("Run", "Status", "P&L", "Return", "Equity", "Orders", "Fills", "Books", "Model", "What to look at")
LEFT = {"Run", "Status", "Model", "What to look at"}


def _table(rows: Sequence[IndexRow]) -> Block:
    head = "".join(f"<th{' class=tn-l' if name in LEFT else ''}>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(map(_index_row, rows)) or f'<tr><td class="tn-l tn-none" colspan={len(COLUMNS)}>no run yet</td></tr>'
    return Block(
        f"<div class=tn-wide id=runs><table class=tn-table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _index_row(row: IndexRow) -> str:
    sign = "" if not row.pnl else " class=tn-up" if row.pnl > 0 else " class=tn-down"
    books = {True: "agree", False: "differ", None: "–"}[row.reconciled]
    verdict = row.verdict or "blue"
    return (
        f'<tr{" class=tn-bad" if verdict == "red" else ""} data-t="{escape(searched(row))}">'
        f'<td class="tn-l tn-day"><a href="{escape(row.address)}">{escape(row.run_id)}</a></td>'
        f'<td class="tn-l tn-day"><span class="tn-badge tn-{verdict}">{escape(row.status.replace("_", " "))}</span></td>'
        f"<td{sign}>{text_of(row.pnl, 'pnl')}</td><td{sign}>{text_of(row.daily_return, 'change')}</td><td>{text_of(row.equity, 'dollars')}</td>"
        f"<td>{text_of(row.orders, 'integer')}</td><td>{text_of(row.fills, 'integer')}</td>"
        f"<td{' class=tn-down' if row.reconciled is False else ''}>{books}</td><td class=tn-l>{escape(row.model)}</td>"
        f'<td class=tn-l><span class=tn-clip title="{escape(row.reason)}">{escape(row.reason)}</span></td></tr>'
    )


def searched(row: IndexRow) -> str:
    "What a search looks at: all words of the row, and those for its date and verdict, in small letters."
    books = {True: "agree", False: "differ", None: ""}[row.reconciled]
    words = (
        f"{row.trade_date} {row.trade_date:%A %B}",
        row.run_id,
        row.status.replace("_", " "),
        row.verdict or "",
        books,
    )
    return " ".join(
        filter(None, (*words, f"model {row.model}" if row.model else "", *(text for _, text in row.said)))
    ).lower()
