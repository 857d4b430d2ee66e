"One id: on the screen, in the flow, in the log of every service and of the exchange, and in the rows; and every number that is promised is told."

import json
import re
import shutil
import sqlite3
import subprocess
from collections import Counter
from contextlib import ExitStack, closing
from datetime import date, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tradenb.core import db
from tradenb.core.clock import SystemClock
from tradenb.core.logs import LEVELS, SCHEMA
from tradenb.core.metrics import CATALOGUE
from tradenb.core.settings import load
from tradenb.core.web import serving
from tradenb.trading.services import APPS

FIRST = date(2020, 1, 3)
RUN = f"{FIRST}-alpha158_ls"


@pytest.fixture(scope="module")
def day(first_day, make_desk, tmp_path_factory):
    "A finished day that the tests of this module share, and only read."
    root = tmp_path_factory.mktemp("traced") / "data"
    shutil.copytree(first_day, root)
    return make_desk(root)


@pytest.fixture(scope="module")
def trace(day) -> str:
    (row,) = day.rows(db.runs)
    return str(row["trace_id"])


@pytest.fixture(scope="module")
def lines(day) -> list[dict]:
    "Every line that the day has left."
    return [json.loads(line) for file in (day.root / "logs").glob("*.jsonl") for line in file.read_text().splitlines()]


def test_every_real_line_of_every_service_has_the_one_schema(lines):
    assert {"flow", "signals", "execution", "orchestrator", "exchange", "etl"} <= {line["service"] for line in lines}
    for line in lines:
        assert tuple(line) == SCHEMA
        assert line["level"] in LEVELS
        assert datetime.fromisoformat(line["timestamp"]).utcoffset().total_seconds() == 0
        assert re.fullmatch(r"[a-z][a-z_]*", line["event"]), line["event"]
        assert line["trace_id"] is None or re.fullmatch(r"[0-9a-f]{32}", line["trace_id"])
        assert isinstance(line["context"], dict)


def tags_of_the_flow_run(root: Path) -> list[str] | None:
    "As the scheduler keeps them; None where a process that had begun with another root kept them there."
    with closing(sqlite3.connect(root / "prefect" / "prefect.db")) as prefect:
        if not prefect.execute("select 1 from sqlite_master where name = 'flow_run'").fetchone():
            return None
        found = prefect.execute("select tags from flow_run where name = ?", [RUN]).fetchone()
    return json.loads(found[0]) if found else None


def test_one_id_is_on_the_screen_in_the_flow_in_all_logs_and_in_the_rows(day, trace, lines):
    assert trace in day.day(FIRST).out  # the day again: nothing is changed, its summary is shown
    tags = tags_of_the_flow_run(day.root)
    assert tags is None or f"trace:{trace}" in tags
    heard = Counter(line["service"] for line in lines if line["trace_id"] == trace)
    assert heard.keys() >= {"flow", "signals", "execution", "orchestrator", "exchange"}
    orders = day.rows(db.orders)
    assert orders and {row["trace_id"] for row in orders} == {trace}
    booked = [line for line in lines if line["event"] == "fill_booked"]  # heard on the stream, which has no headers
    assert {line["trace_id"] for line in booked} == {trace}
    assert len(booked) == len(day.rows(db.fills))
    assert {line["run_id"] for line in lines if line["trace_id"] == trace} == {RUN}
    (flow,) = (line for line in lines if line["context"].get("name") == "flow daily")  # what it did beside the run
    assert flow["trace_id"] not in (None, trace)


def test_each_request_names_who_made_it_from_the_flow_to_the_exchange(trace, lines):
    said = [line for line in lines if line["trace_id"] == trace and line["event"] in ("step", "request")]
    spans = {line["context"]["span"]: line for line in said}
    at_exchange = [
        line for line in said if line["context"].get("route") == "/v2/orders" and line["context"]["method"] == "POST"
    ]
    assert at_exchange
    for line in at_exchange:
        way = [line]
        while parent := way[-1]["context"]["parent"]:
            way.append(spans[parent])
        assert [step["service"] for step in way] == ["exchange", "execution", "orchestrator", "flow", "flow"]


def test_the_commands_show_the_story_of_a_run_of_an_order_and_of_a_trace(day, trace, lines):
    whole = day.tradenb("trace", RUN).out
    assert whole.splitlines()[0] == f"trace {trace}"
    for stage in ("etl", "train", "signals", "trade", "reconcile", "report"):
        assert f"stage {stage}  completed" in whole
    assert re.search(r"POST /v2/orders × 10 ", whole)
    (one, *_) = day.rows(db.orders)
    branch = day.tradenb("trace", one["client_order_id"][:10]).out
    assert f"order {one['side']} " in branch and f"{one['symbol']}  filled" in branch
    assert "POST /v2/orders  200" in branch and "fill_booked" in branch
    assert len(branch.splitlines()) < len(whole.splitlines())
    tree = json.loads(day.tradenb("trace", trace, "--json").out)
    assert tree["name"] == f"run {RUN}"
    told = day.tradenb("logs", "--trace", trace).out.splitlines()
    assert tuple(json.loads(told[0])) == SCHEMA
    assert len(told) == sum(line["trace_id"] == trace for line in lines)


def scraped(settings: object) -> dict[str, str]:
    "The page of metrics of each service, with the others at work."
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for name in ("exchange", "signals", "execution", "orchestrator"):
            found = {f"{service}_url": url for service, url in urls.items()}
            services = settings.services.model_copy(update=found)
            app = APPS[name](settings.model_copy(update={"services": services}), SystemClock())
            urls[name] = stack.enter_context(serving(app))
        reconciled = httpx.post(
            f"{urls['execution']}/api/v1/reconciliation", json={}, headers={"X-API-Key": "k"}, timeout=60
        )
        reconciled.raise_for_status()
        return {name: httpx.get(f"{url}/metrics", timeout=60).text for name, url in urls.items()}


def test_every_metric_of_the_catalogue_is_told_by_the_service_that_should(day, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(day.root, root)
    keys = {
        "TRADENB_EXECUTION__BROKER_KEY_ID": "K",
        "TRADENB_EXECUTION__BROKER_SECRET": "S",
        "TRADENB_SERVICES__API_KEY": "k",
    }
    settings = load({"core.root": root} | day.settings | {"execution.reconcile_s": 0}, env=keys)
    pages = scraped(settings)
    told = {name: {family.name: family for family in parse(page)} for name, page in pages.items()}
    for metric in CATALOGUE.values():
        services = pages if metric.where == "every service" else metric.where.split(", ")
        for service in services:
            family = told[service].get(metric.name.removesuffix("_total"))
            assert family is not None, (service, metric.name)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels), sample
    ours = {name for families in told.values() for name in families if name.startswith("tradenb_")}
    assert ours <= {name.removesuffix("_total") for name in CATALOGUE}
    state = {s.labels["status"]: s.value for s in told["orchestrator"]["tradenb_run_state"].samples}
    assert state["completed"] == 1 and sum(state.values()) == 1
    assert told["execution"]["tradenb_equity_usd"].samples[0].value > 0
    textfile = day.tradenb("metrics").out
    assert 'tradenb_run_state{status="completed",strategy="alpha158_ls"} 1.0' in textfile
    checked_by_promtool([*pages.values(), textfile])


def checked_by_promtool(pages: list[str]) -> None:
    "Prometheus's own opinion, where it is installed."
    if promtool := shutil.which("promtool"):
        for page in pages:
            done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True)
            ours = [line for line in (done.stdout + done.stderr).splitlines() if "tradenb_" in line]
            assert ours == []
            assert done.returncode in (0, 3), done.stderr  # 3: opinions on others' names
