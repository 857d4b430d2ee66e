"""Turn executed notebooks into pages to read: one HTML file each that needs no server, no script and no network.

nbconvert does the conversion; the template and the style sheet are ours, because its own bring 300 kB and look like a notebook. Each page forbids
itself by its content policy to load anything.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import polars as pl

from pipelines.engine import error_class, write_whole
from tradenb.core.report import (
    HALF,
    Block,
    Verdict,
    bars,
    headline,
    lines,
    page,
    side_by_side,
    stacked,
    text_of,
    tiles,
)

HIDDEN_TAGS = {"remove-cell", "parameters", "injected-parameters", "papermill-error-cell-tag"}

TEMPLATE = """
{%- extends 'base/display_priority.j2' -%}
{% block input_group %}{% endblock %}
{% block markdowncell %}<div class=text>{{ cell.source | markdown2html }}</div>
{% endblock %}
{% block execute_result %}{% block data_priority scoped %}{{ super() }}{% endblock %}{% endblock %}
{% block data_html %}{{ output.data['text/html'] }}
{% endblock %}
{% block data_markdown %}<div class=text>{{ output.data['text/markdown'] | markdown2html }}</div>
{% endblock %}
{% block data_svg %}<p><img alt="" src="data:image/svg+xml;base64,{{ output.data['image/svg+xml'] | text_base64 }}"></p>
{% endblock %}
{% block data_png %}<p><img alt="" src="data:image/png;base64,{{ output.data['image/png'] | replace('\\n', '') }}"></p>
{% endblock %}
{% block data_jpg %}<p><img alt="" src="data:image/jpeg;base64,{{ output.data['image/jpeg'] | replace('\\n', '') }}"></p>
{% endblock %}
{% block data_text %}<pre>{{ output.data['text/plain'] | strip_ansi | e }}</pre>
{% endblock %}
{% block stream %}<details><summary>Messages</summary><pre>{{ output.text | strip_ansi | e }}</pre></details>
{% endblock %}
{% block error %}<div class=error><strong>This stage stopped here</strong>{{ output | cause | e }}
<details><summary>Traceback</summary><pre>{{ output.traceback | join('\\n') | strip_ansi | e }}</pre></details></div>
{% endblock %}
"""


Link = tuple[str, str]  # A label and an address relative to the page


def render(
    notebook: Path,  # An executed notebook
    html: Path,  # The page to write; its folder exists
    title: str,  # Shown in the browser's tab
    links: Sequence[Link] = (),  # For the navigation
) -> None:
    "Render `notebook` as a self-contained page: outputs and prose without the code."
    book = nbformat.read(notebook, as_version=4)
    body, _ = _exporter().from_notebook_node(_visible(book))
    if "<h1" not in body:  # it failed before its own headline
        body = f"<h1>{escape(title)}</h1>\n{body}"
    write_whole(html, page(title, body, _navigation(html, links)))


def link(folder: Path, links: Sequence[Link]) -> None:
    "Write the navigation of the pages in `folder` anew, for those that are there now."
    for html in folder.glob("*.html"):
        before, _, rest = html.read_text().partition("<nav>")
        write_whole(html, before + _navigation(html, links) + rest.partition("</nav>")[2])


def _navigation(html: Path, links: Sequence[Link]) -> str:
    "The page itself is marked; a page that is not there is named without a link."
    return f"<nav><div><b>tradenb</b>{''.join(_link(html, *each) for each in links)}</div></nav>"


def _link(html: Path, label: str, address: str) -> str:
    if address == html.name:
        return f'<a href="{escape(address)}" aria-current=page>{escape(label)}</a>'
    if "/" in address or (html.parent / address).is_file():  # the index is written at the end of every run
        return f'<a href="{escape(address)}">{escape(label)}</a>'
    return f"<span>{escape(label)}</span>"


def _visible(book: Any) -> Any:
    "Without hidden cells, and without prose that follows a failure: it would introduce what never ran."
    kept = []
    for cell in book.cells:
        if not HIDDEN_TAGS & set(cell.metadata.get("tags", [])):
            kept.append(cell)
        if _has_error(cell):
            break
    book.cells = kept
    return book


def _has_error(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


@cache
def _exporter() -> Any:
    from nbconvert.exporters.html import HTMLExporter

    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_input=True, exclude_anchor_links=True)
    exporter.register_filter("cause", _cause)
    return exporter


def _cause(output: Any) -> str:
    "The essence of an error output: our own errors by their message alone."
    text = next((line.strip() for line in output.evalue.splitlines() if line.strip()), "")
    return text if text and error_class(output.ename) else f"{output.ename}: {text}".removesuffix(": ")


# ---- the index over all runs


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


COLUMNS = ("Date", "Run", "Status", "P&L", "Equity", "Orders", "Fills", "Reconciled")
STATUS = {"completed": "green", "partially_completed": "amber", "failed": "red", "running": "blue"}
SENTENCES = {
    "completed": "completed",
    "partially_completed": "completed in part: look at its orders",
    "failed": "failed: its page says why",
    "running": "is under way",
}


def write_index(
    runs_folder: Path,  # Where `index.html` goes
    rows: Sequence[IndexRow],  # In any order
) -> Path:  # The page
    "An overview of all runs, newest first, as a plain file."
    newest_first = sorted(rows, key=lambda row: (row.trade_date, row.run_id), reverse=True)
    blocks = [_headline(newest_first), *_summary(newest_first), _index_table(newest_first)]
    path = runs_folder / "index.html"
    write_whole(path, page("tradenb runs", stacked(*blocks).html, _navigation(path, [])))
    return path


def _headline(newest_first: Sequence[IndexRow]) -> Block:
    if not newest_first:
        return Block("<h1>Runs</h1>")
    last, days = newest_first[0], sorted({row.trade_date for row in newest_first})
    verdict: Verdict = {"completed": "green", "failed": "red"}.get(last.status, "amber")  # type: ignore[assignment]
    said = f"The newest run, for {last.trade_date}, {SENTENCES.get(last.status, f'is {last.status}')}."
    books = ["Its books do not agree with the broker's."] if last.reconciled is False else []
    return headline("Runs", f"{days[0]} to {days[-1]}" if len(days) > 1 else str(days[0]), verdict, [said, *books])


def _summary(newest_first: Sequence[IndexRow]) -> list[Block]:
    days = _by_day(newest_first)
    if not days:
        return []
    total = sum((row.pnl for row in days if row.pnl is not None), Decimal(0))
    checked = [row.reconciled for row in days if row.reconciled is not None]
    failed = sum(row.status == "failed" for row in newest_first)
    figures = {
        "Trading days": (f"{len(days):,}", f"of {len(newest_first):,} runs" if len(newest_first) > len(days) else "one run each"),
        "P&L": (text_of(total, "pnl"), "over all days" if len(days) > 1 else "on the first day"),
        "Equity": (text_of(days[-1].equity, "money"), f"at the close of {days[-1].trade_date}"),
        "Reconciled": (f"{sum(checked)} of {len(checked)}", "days that were checked"),
    } | ({"Failed": (f"{failed:,}", "marked below")} if failed else {})  # fmt: skip
    return [tiles(figures), *(_charts(days) if len(days) > 1 else [])]


def _by_day(newest_first: Sequence[IndexRow]) -> list[IndexRow]:
    "The last run of each day that ended with an account, oldest first."
    done = {row.trade_date: row for row in reversed(newest_first) if row.equity is not None}
    return [done[day] for day in sorted(done)]


def _charts(days: Sequence[IndexRow]) -> list[Block]:
    frame = pl.DataFrame(
        {
            "date": [row.trade_date for row in days],
            "equity": [None if row.equity is None else float(row.equity) for row in days],
            "pnl": [float(row.pnl or 0) for row in days],
        },
        schema={"date": pl.Date, "equity": pl.Float64, "pnl": pl.Float64},
    )
    return [
        side_by_side(
            lines(frame, "date", ["equity"], "Equity", "dollars", "At each close, in USD", width=HALF),
            bars(frame, "date", "pnl", "P&L by day", "dollars", "In USD", signed=True, height=2.6, width=HALF),
        )
    ]


def _index_table(rows: Sequence[IndexRow]) -> Block:
    head = "".join(f"<th{' class=tn-l' if at < 3 else ''}>{escape(name)}</th>" for at, name in enumerate(COLUMNS))
    body = "".join(map(_index_row, rows)) or f'<tr><td class="tn-l tn-none" colspan={len(COLUMNS)}>no run yet</td></tr>'
    return Block(
        f"<div class=tn-wide><table class=tn-table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _index_row(row: IndexRow) -> str:
    sign = "" if not row.pnl else " class=tn-up" if row.pnl > 0 else " class=tn-down"
    reconciled = {True: "yes", False: "no", None: "–"}[row.reconciled]
    return (
        f"<tr{' class=tn-bad' if row.status == 'failed' else ''}><td class=tn-l>{row.trade_date}</td>"
        f'<td class=tn-l><a href="{escape(row.address)}">{escape(row.run_id)}</a></td>'
        f'<td class=tn-l><span class="badge {STATUS.get(row.status, "blue")}">{escape(row.status.replace("_", " "))}</span></td>'
        f"<td{sign}>{text_of(row.pnl, 'pnl')}</td><td>{text_of(row.equity, 'money')}</td>"
        f"<td>{text_of(row.orders, 'integer')}</td><td>{text_of(row.fills, 'integer')}</td>"
        f"<td{' class=tn-down' if row.reconciled is False else ''}>{reconciled}</td></tr>"
    )


def external_requests(html: str) -> list[str]:
    "Every address in a page that a browser would fetch from elsewhere; a page of ours has none."
    fetched = r"""(?:\bsrc\s*=|\bsrcset\s*=|<link[^>]*href\s*=|@import|\burl\()\s*["']?\s*((?:https?:)?//[^"'\s)>]+)"""
    return re.findall(fetched, html, flags=re.IGNORECASE)
