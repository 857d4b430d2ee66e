"Pages: self-contained, readable, escaped, and calm when a stage has failed."

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pipelines.engine import run_notebook
from pipelines.render import external_requests, link, render
from tradenb.core.errors import FreshnessError, RunFailed
from tradenb.core.report import CSS

LINKS = [("All runs", "../../index.html"), ("Data", "data.html"), ("Trade", "trade.html")]
CHARTS = """
import numpy as np, polars as pl
from tradenb.core.report import bars, headline, histogram, lines, table
rng = np.random.default_rng(7)
frame = pl.DataFrame({"session": list(range(500)), "equity": 1e6 + rng.normal(0, 900, 500).cumsum()})
"""


def executed(folder: Path, *cells: str) -> Path:
    "A notebook that ran with these cells; markdown starts with a hash."
    book = new_notebook(cells=[new_code_cell("day = 'hidden-default'", metadata={"tags": ["parameters"]})])
    book.cells += [new_markdown_cell(c) if c.startswith("#") else new_code_cell(c) for c in cells]
    nbformat.write(book, folder / "source.ipynb")
    run_notebook(folder / "source.ipynb", folder / "run.ipynb", {"day": "2024-01-03"})
    return folder / "run.ipynb"


def shown(folder: Path, *cells: str) -> str:
    render(executed(folder, *cells), folder / "data.html", "Data 2024-01-03", LINKS)
    return (folder / "data.html").read_text()


def test_a_page_with_ten_charts_asks_nobody_for_anything_and_stays_small(tmp_path: Path) -> None:
    chart = "lines(frame, 'session', ['equity'], 'Equity', 'money')"
    html = shown(
        tmp_path, CHARTS, *[chart] * 8, "bars(frame.head(9), 'session', 'equity')", "histogram(frame['equity'])"
    )
    assert html.count("<svg") == 10
    assert external_requests(html) == []
    assert "<script" not in html
    assert len(html) < 400_000


def test_code_parameters_and_tagged_cells_are_hidden(tmp_path: Path) -> None:
    book = nbformat.read(executed(tmp_path, "# Data", "secret_code = 1; 'visible output'", "'removed'"), as_version=4)
    book.cells[-1].metadata["tags"] = ["remove-cell"]
    nbformat.write(book, tmp_path / "run.ipynb")
    render(tmp_path / "run.ipynb", tmp_path / "data.html", "Data", LINKS)
    html = (tmp_path / "data.html").read_text()
    assert "visible output" in html
    assert not any(word in html for word in ("secret_code", "hidden-default", "removed"))


def test_a_page_is_dark_on_a_dark_screen_and_light_on_paper(tmp_path: Path) -> None:
    html = shown(tmp_path, "1")
    assert re.findall(r"@media ([^{]*)prefers-color-scheme:dark", html) == ["screen and ("]


def test_the_style_sheet_stands_once_however_many_blocks_there_are(tmp_path: Path) -> None:
    html = shown(tmp_path, CHARTS, *["headline('Data', 'today', 'green', ['ok'])"] * 3)
    assert html.count(CSS) == 1
    assert html.count("<h1>") == 3


def test_the_navigation_marks_the_present_page(tmp_path: Path) -> None:
    html = shown(tmp_path, "1")
    assert '<a href="../../index.html">All runs</a><a href="data.html" aria-current=page>Data</a>' in html


def test_a_failed_stage_shows_its_cause_in_one_line_and_folds_the_rest(tmp_path: Path) -> None:
    fails = "print('\\x1b[31mred\\x1b[0m')\nfrom tradenb.core.errors import FreshnessError\nraise FreshnessError('bars end <2024-01-02>')"
    with pytest.raises(FreshnessError):
        executed(tmp_path, "# Data", fails, "# What never ran")
    render(tmp_path / "run.ipynb", tmp_path / "data.html", "Data", LINKS)
    html = (tmp_path / "data.html").read_text()
    box = html[html.index('<div class="error">') :]
    assert box.index("bars end &lt;2024-01-02&gt;") < box.index("<details>") < box.index("Traceback (most recent")
    assert "\x1b" not in html
    assert "papermill" not in html
    assert "What never ran" not in html
    assert "<span>Trade</span>" in html
    assert re.findall('href="([^"]*)"', html) == ["../../index.html", "data.html"]


def test_plain_matplotlib_figures_are_embedded(tmp_path: Path) -> None:
    html = shown(tmp_path, "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    assert "data:image/svg+xml;base64," in html
    assert external_requests(html) == []


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://a.b/c.png">',
        "<script src=//cdn.x/y.js>",
        '<link rel=a href="http://x/y.css">',
        "url(http://x/f)",
    ],
)
def test_the_check_for_external_requests_finds_one(html: str) -> None:
    assert len(external_requests(html)) == 1


def test_the_navigation_calls_the_stages_what_their_pages_are_called(tmp_path: Path) -> None:
    from pipelines.flows import render_stage

    (tmp_path / "1_etl.html").touch()
    executed(tmp_path, "# Model", "1").rename(tmp_path / "2_train.ipynb")
    html = render_stage(tmp_path / "2_train.ipynb", "2024-01-03").read_text()
    assert '<a href="1_etl.html">Market data</a><a href="2_train.html" aria-current=page>Model</a>' in html
    assert "<title>Model · 2024-01-03</title>" in html


def test_pages_link_to_those_that_are_there_when_the_run_ends(tmp_path: Path) -> None:
    names = [f"{name}.html" for name in ("data", "trade", "report")]
    links = [*LINKS, ("The day", "report.html")]
    executed(tmp_path, "1")
    for name in names[:2]:
        render(tmp_path / "run.ipynb", tmp_path / name, "Page", links)
    assert "<span>Trade</span>" in (tmp_path / "data.html").read_text()
    link(tmp_path, links)
    assert '<a href="trade.html">Trade</a><span>The day</span>' in (tmp_path / "data.html").read_text()
    render(tmp_path / "run.ipynb", tmp_path / "report.html", "Page", links)
    link(tmp_path, links)
    pages = [(tmp_path / name).read_text() for name in names]
    assert all(re.findall('href="([^"]*)"', html) == ["../../index.html", *names] for html in pages)
    assert [html.count("aria-current=page") for html in pages] == [1, 1, 1]


def test_a_stage_that_fails_before_its_headline_has_a_title_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(RunFailed):
        executed(tmp_path, "1 / 0")
    render(tmp_path / "run.ipynb", tmp_path / "data.html", "Data · 2024-01-03", LINKS)
    assert "<h1>Data · 2024-01-03</h1>" in (tmp_path / "data.html").read_text()
