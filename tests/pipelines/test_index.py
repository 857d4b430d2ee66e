"The index: any day is found again, the newest is judged first, and nothing is fetched or injected."

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from pipelines.index import IndexRow, by_day, deepest_fall, refresh_index, runs_of, searched, write_index
from pipelines.render import external_requests
from tradenb.core.clock import SystemClock
from tradenb.core.db import connect, database_url, migrate, run_stages
from tradenb.core.settings import Settings
from tradenb.trading import records


def row(day: int, **values: object) -> IndexRow:
    base = {"status": "completed", "pnl": Decimal("12.50"), "equity": Decimal(1000000 + day), "orders": 40, "fills": 40}
    at = date(2024, 1, 1) + timedelta(days=day)
    return IndexRow(at, f"run-{day}", address=f"{at}/run-{day}/index.html", **(base | values))  # type: ignore[arg-type]


def failed(day: int) -> IndexRow:
    nothing = dict.fromkeys(("pnl", "equity", "orders", "fills"))
    return row(day, status="failed", said=(("red", "the exchange service does not answer"),), **nothing)


def test_the_newest_run_comes_first_and_each_links_to_its_page(tmp_path: Path) -> None:
    html = write_index(tmp_path, [row(1), row(3), row(2)]).read_text()
    places = [html.index(f">run-{day}<") for day in (3, 2, 1)]
    assert places == sorted(places)
    assert '<a href="2024-01-04/run-3/index.html">run-3</a>' in html
    assert html.count("<svg") == 2
    assert external_requests(html) == []


def test_an_index_without_runs_and_one_with_a_failed_run_alone_are_pages_too(tmp_path: Path) -> None:
    empty = write_index(tmp_path, []).read_text()
    assert "no run yet" in empty
    assert "<script" not in empty
    html = write_index(tmp_path, [failed(1)]).read_text()
    assert '<span class="tn-badge tn-red">failed</span>' in html
    assert not any(figure in html for figure in ("$0.00", "0 of 0", "tn-tile><"))
    assert "<svg" not in html


def test_it_begins_with_how_the_newest_run_went_and_why(tmp_path: Path) -> None:
    html = write_index(tmp_path, [row(1), failed(3), row(2)]).read_text()
    head = html[: html.index("class='tn-tiles")]
    assert "The newest run, for 2024-01-04, failed" in head
    assert "the exchange service does not answer" in head
    assert '<div class="tn-verdict tn-red">' in head
    assert "for 2024-01-02, completed." in write_index(tmp_path, [row(1)]).read_text()


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "green"),
        ({"status": "running"}, None),
        ({"status": "failed"}, "red"),
        ({"status": "partially_completed"}, "amber"),
        ({"status": "something new"}, "amber"),
        ({"reconciled": False}, "red"),
        ({"reconciled": True}, "green"),
        ({"said": (("green", "fine"), ("amber", "an order was denied"))}, "amber"),
        ({"said": (("amber", "x"), ("red", "trading is stopped"))}, "red"),
        ({"status": "partially_completed", "said": (("green", "fine"),)}, "amber"),
    ],
)
def test_a_run_is_judged_by_the_most_serious_thing_known_of_it(given: dict[str, object], verdict: str | None) -> None:
    assert row(1, **given).verdict == verdict


def test_the_reason_is_the_first_of_the_most_serious_findings() -> None:
    said = (("green", "a"), ("amber", "b"), ("red", "c"), ("red", "d"))
    assert row(1, said=said).reason == "c"
    assert row(1, said=said[:1]).reason == ""


def test_the_calendar_leads_to_the_days_and_marks_the_bad_ones(tmp_path: Path) -> None:
    looked = row(2, said=(("amber", "1 order was denied"),), pnl=Decimal(-4))
    html = write_index(tmp_path, [row(1), looked, failed(3)]).read_text()
    month = html[html.index("tn-month>") : html.index("</table>", html.index("tn-month>"))]
    assert re.findall('href="([^"]*)"', month) == [f"2024-01-0{d + 1}/run-{d}/index.html" for d in (1, 2, 3)]
    assert month.count("tn-day tn-red") == 1
    assert month.count("tn-day tn-amber") == 1
    assert 'title="no session">15<' in month  # Martin Luther King Jr. Day
    assert "1 order was denied" in month


def test_the_one_script_is_the_one_that_the_page_allows(tmp_path: Path) -> None:
    html = write_index(tmp_path, [row(1)]).read_text()
    scripts = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    assert f"script-src 'sha256-{digest}'" in html
    assert "on" not in re.findall(r"<[a-z]+ [^>]*?\b(on)[a-z]+=", html)


def test_a_search_knows_dates_words_and_reasons() -> None:
    text = searched(row(8, model="7", reconciled=False, said=(("amber", "DAILY_LOSS denied 3 orders"),)))
    for word in ("2024-01-09", "tuesday", "january", "run-8", "completed", "red", "differ", "model 7", "daily_loss"):
        assert word in text


def test_of_several_runs_of_a_day_the_one_with_an_account_counts() -> None:
    late = IndexRow(date(2024, 1, 2), "z", "failed", "z")
    assert [r.run_id for r in by_day([late, row(1), row(2)])] == ["run-1", "run-2"]


def test_the_deepest_fall_is_measured_from_the_highest_so_far() -> None:
    assert deepest_fall([0.1, -0.5, 0.2]) == pytest.approx(-0.5)
    assert deepest_fall([0.1, 0.2]) == 0.0
    assert deepest_fall([-0.1, -0.1]) == pytest.approx(-0.19)


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.seen.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1))
def test_no_run_id_status_or_reason_can_inject_markup(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("runs")
    day, plain, odd = date(2024, 1, 2), Texts(), Texts()
    plain.feed(write_index(folder, [IndexRow(day, "x", "x", "x", model="x", said=(("amber", "x"),))]).read_text())
    odd.feed(write_index(folder, [IndexRow(day, text, text, text, model=text, said=(("amber", text),))]).read_text())
    assert odd.tags == plain.tags
    assert text in "".join(odd.seen)


def test_the_index_reads_runs_and_what_their_pages_found(make_settings: Callable[..., Settings]) -> None:
    chosen = make_settings()
    engine, clock = migrate(connect(database_url(chosen))), SystemClock()
    for day in (2, 3):
        at = date(2024, 1, day)
        spec = records.RunSpec(f"{at}-s", at, "s", "5e77", 7, Decimal(1000), (), "a" * 32)
        records.begin(engine, spec, clock)
    found = {"orders": 1, "findings": [["amber", "The gateway's control ORDER_NOTIONAL denied 1 order."]]}
    with engine.begin() as connection:
        stage = dict(run_id="2024-01-02-s", stage="trade", status="completed", started_at=clock.now(), result=found)
        connection.execute(insert(run_stages), stage)
    done = dict(pnl="5.25", equity="1005.25", orders=1, fills=0, matched=True, daily_return=0.00525)
    records.learn(engine, "2024-01-02-s", summary=done, model_version="3")
    records.end(engine, "2024-01-02-s", "completed", clock.now())
    records.end(engine, "2024-01-03-s", "failed", clock.now(), "bars end 2024-01-01")
    newest, first = runs_of(chosen, engine)
    assert (newest.verdict, newest.reason) == ("red", "bars end 2024-01-01")
    assert (first.verdict, first.pnl, first.model) == ("amber", Decimal("5.25"), "3")
    assert first.address == "2024-01-02/2024-01-02-s/6_report.html"  # what ran elsewhere will have it
    assert "ORDER_NOTIONAL" in refresh_index(chosen).read_text()
    engine.dispose()


def test_a_sharpe_ratio_is_shown_once_a_quarter_is_over_and_never_without_its_interval(tmp_path: Path) -> None:
    month = [row(day, daily_return=0.002 * (-1) ** day + 0.001) for day in range(62)]
    assert "Sharpe" not in write_index(tmp_path, month).read_text()
    assert re.search(
        r"-?[\d.]+ to -?[\d.]+ with 95% confidence",
        write_index(tmp_path, [*month, row(62, daily_return=0.0)]).read_text().replace("−", "-"),
    )
    still = [row(day, daily_return=0.0) for day in range(63)]
    assert "nan" not in write_index(tmp_path, still).read_text().lower().replace("finance", "")
