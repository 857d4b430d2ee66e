"""Turn executed notebooks into pages to read: one HTML file each that needs no server, no script and no network.

nbconvert does the conversion; the template and the style sheet are ours, because its own bring 300 kB and look like a notebook. Each page forbids
itself by its content policy to load anything.
"""

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat

from pipelines.engine import error_class, write_whole
from tradenb.core.report import page

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
    write_page(html, title, body, links)


def write_page(html: Path, title: str, body: str, links: Sequence[Link] = ()) -> None:
    "Write blocks as a page of the run, whole or not at all."
    write_whole(html, page(title, body, navigation(html, links)))


def link(folder: Path, links: Sequence[Link]) -> None:
    "Write the navigation of the pages in `folder` anew, for those that are there now."
    for html in folder.glob("*.html"):
        before, _, rest = html.read_text().partition("<nav>")
        write_whole(html, before + navigation(html, links) + rest.partition("</nav>")[2])


def navigation(html: Path, links: Sequence[Link]) -> str:
    "The line on top of a page: the page itself is marked; one that is not there is named without a link."
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


def external_requests(html: str) -> list[str]:
    "Every address in a page that a browser would fetch from elsewhere; a page of ours has none."
    fetched = r"""(?:\bsrc\s*=|\bsrcset\s*=|<link[^>]*href\s*=|@import|\burl\()\s*["']?\s*((?:https?:)?//[^"'\s)>]+)"""
    return re.findall(fetched, html, flags=re.IGNORECASE)
