"""Grafana's dashboards, written as code: a page is rows of panels, a panel is a title, queries and a unit.

usage: python ops/dashboards.py [--check]     writes ops/grafana/dashboards/*.json; --check only says whether they are what would be written
Whoever changes a dashboard in Grafana's own editor loses it at the next start; change it here, where a reader sees what changed.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("grafana") / "dashboards"
PROMETHEUS, LOKI = {"type": "prometheus", "uid": "prometheus"}, {"type": "loki", "uid": "loki"}
GREEN, AMBER, RED = "green", "orange", "red"
Steps = tuple[tuple[float | None, str], ...]
CALM: Steps = ((None, GREEN),)
ANY_IS_BAD: Steps = ((None, GREEN), (1, RED))
ONE_IS_GOOD: Steps = ((None, RED), (1, GREEN))
LIMIT: Steps = ((None, GREEN), (0.8, AMBER), (1, RED))


@dataclass(frozen=True)
class Panel:
    "One panel: what it shows, how wide (of 24) and how high."

    title: str
    kind: str  # stat, timeseries, bargauge, state-timeline, table, logs, alertlist
    queries: dict[str, str] = field(default_factory=dict)  # legend: expression
    text: str = ""  # what to look for
    unit: str = "short"
    width: int = 6
    height: int = 8
    steps: Steps = CALM
    words: dict[str, str] = field(default_factory=dict)  # value: word shown instead
    decimals: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # panel options


@dataclass(frozen=True)
class Page:
    "A dashboard."

    uid: str
    title: str
    text: str
    rows: dict[str, list[Panel]]
    logs: bool = False  # asks which service's logs to show


def stat(title: str, query: str, text: str = "", **more: Any) -> Panel:
    return Panel(title, "stat", {"": query}, text, **({"width": 4, "height": 4} | more))


def lines(title: str, queries: dict[str, str], text: str = "", **more: Any) -> Panel:
    return Panel(title, "timeseries", queries, text, **({"width": 12} | more))


def ago(metric: str) -> str:
    "Milliseconds since the epoch, as Grafana shows dates."
    return f"{metric} * 1000"


DESK = Page(
    "tradenb-desk",
    "Desk",
    "Did the day work, and may tomorrow begin?",
    {
        "Now": [
            stat(
                "Last run",
                "max by (status) (tradenb_run_state == 1)",
                "The newest run's state; anything but completed has a page that says why.",
                width=6,
                extra={"textMode": "name", "legend": "{{status}}"},
            ),
            stat(
                "For the session of", ago("max(tradenb_run_trade_date_timestamp_seconds)"), unit="dateTimeAsUS", width=6
            ),
            stat(
                "Trading halted",
                "sum(tradenb_kill_switch_scopes)",
                "Scopes in which the kill switch is set.",
                steps=ANY_IS_BAD,
                words={"0": "no"},
            ),
            stat(
                "Unresolved orders",
                "sum(tradenb_orders_unresolved)",
                "Sent, and nobody knows the outcome.",
                steps=ANY_IS_BAD,
            ),
            stat(
                "Unexplained differences",
                "sum(tradenb_reconciliation_differences)",
                "With the broker, at the last comparison.",
                steps=ANY_IS_BAD,
            ),
            stat(
                "P&L of the run",
                "sum(tradenb_run_pnl_usd)",
                unit="currencyUSD",
                steps=((None, RED), (0, GREEN)),
                decimals=2,
            ),
            stat("Equity", "sum(tradenb_run_equity_usd)", "At the run's close.", unit="currencyUSD", decimals=0),
            stat(
                "Sessions missing",
                "max(tradenb_data_age_sessions)",
                "Complete sessions that the lake lacks.",
                steps=ANY_IS_BAD,
            ),
            stat(
                "Worst feature drift",
                "max(tradenb_model_drift_psi / tradenb_model_drift_limit_psi)",
                "1 is the limit of the settings.",
                unit="percentunit",
                steps=LIMIT,
            ),
            stat("Broker", "min(tradenb_broker_up)", steps=ONE_IS_GOOD, words={"0": "away", "1": "up"}),
            stat(
                "Disk free",
                "min(tradenb_data_root_free_bytes / tradenb_data_root_size_bytes)",
                unit="percentunit",
                steps=((None, RED), (0.1, AMBER), (0.2, GREEN)),
            ),
        ],
        "Over time": [
            lines(
                "Equity",
                {"equity": "sum(tradenb_equity_usd)", "at the run's close": "sum(tradenb_run_equity_usd)"},
                unit="currencyUSD",
            ),
            lines("P&L of the session", {"P&L": "sum(tradenb_day_pnl_usd)"}, unit="currencyUSD"),
            Panel(
                "Services",
                "state-timeline",
                {"{{service}}": 'up{job="tradenb"}'},
                "Red: not scraped.",
                width=12,
                steps=ONE_IS_GOOD,
                words={"0": "down", "1": "up"},
            ),
            Panel("Firing alerts", "alertlist", width=12, text="Each has a runbook in docs/runbooks."),
        ],
        "The last run": [
            Panel(
                "Seconds by stage",
                "bargauge",
                {"{{stage}}": "max by (stage) (tradenb_run_stage_duration_seconds)"},
                unit="s",
                width=8,
            ),
            stat("Whole run", "max(tradenb_run_duration_seconds)", unit="s", height=8),
            stat("Signals", "sum(tradenb_run_signals)", height=8),
            stat("Orders", "sum(tradenb_run_orders)", height=8),
            stat("Fills", "sum(tradenb_run_fills)", height=8),
            Panel(
                "Notifications of a day",
                "bargauge",
                {"{{status}}": "sum by (status) (tradenb_notifications)"},
                "What was told to people, and what did not arrive.",
                width=12,
            ),
            Panel("Runs by state", "bargauge", {"{{status}}": "sum by (status) (tradenb_runs)"}, width=12),
        ],
    },
)

ORDERS = Page(
    "tradenb-orders",
    "Orders and risk",
    "What is let in, what comes back, and how near the limits are.",
    {
        "Limits": [
            Panel(
                "Use of limits",
                "bargauge",
                {"{{limit}}": "max by (limit) (tradenb_limit_use_ratio)"},
                "At 100 % orders are denied; a loss limit halts trading.",
                unit="percentunit",
                width=12,
                steps=LIMIT,
            ),
            lines(
                "Use over time",
                {"{{limit}}": "max by (limit) (tradenb_limit_use_ratio)"},
                unit="percentunit",
                steps=LIMIT,
            ),
            lines(
                "Exposure",
                {
                    "gross": "sum(tradenb_gross_exposure_usd)",
                    "net": "sum(tradenb_net_exposure_usd)",
                    "equity": "sum(tradenb_equity_usd)",
                },
                unit="currencyUSD",
            ),
            lines(
                "Denials",
                {"{{code}}": "sum by (code) (increase(tradenb_denials_total[$__rate_interval]))"},
                "Orders that the pre-trade controls refused, by reason.",
            ),
        ],
        "Orders": [
            lines(
                "Orders taken in",
                {"{{status}}": "sum by (status) (rate(tradenb_orders_total[$__rate_interval]))"},
                unit="ops",
            ),
            lines(
                "Open and unresolved",
                {"working": "sum(tradenb_orders_working)", "unresolved": "sum(tradenb_orders_unresolved)"},
            ),
            lines(
                "Messages of the broker's stream",
                {"{{event}}": "sum by (event) (rate(tradenb_trade_updates_total[$__rate_interval]))"},
                unit="ops",
            ),
            lines(
                "Webhooks by answer",
                {"{{code}}": "sum by (code) (rate(tradenb_webhooks_total[$__rate_interval]))"},
                unit="ops",
            ),
        ],
        "Broker": [
            lines(
                "Calls to the broker",
                {
                    "median": "histogram_quantile(0.5, sum by (le) (rate(tradenb_broker_call_duration_seconds_bucket[$__rate_interval])))",
                    "99 of 100": "histogram_quantile(0.99, sum by (le) (rate(tradenb_broker_call_duration_seconds_bucket[$__rate_interval])))",
                },
                unit="s",
            ),
            lines(
                "Outcomes",
                {
                    "{{outcome}}": "sum by (outcome) (rate(tradenb_broker_call_duration_seconds_count[$__rate_interval]))"
                },
                "unclear: the answer was lost, the order is asked for.",
                unit="ops",
            ),
            Panel(
                "Connections",
                "state-timeline",
                {
                    "broker": "min(tradenb_broker_up)",
                    "stream": "min(tradenb_stream_up)",
                    "database of {{service}}": "min by (service) (tradenb_database_up)",
                },
                width=12,
                steps=ONE_IS_GOOD,
                words={"0": "away", "1": "up"},
            ),
            stat(
                "Last comparison",
                ago("max(tradenb_reconciliation_timestamp_seconds)"),
                "That came to its end.",
                unit="dateTimeFromNow",
                width=6,
                height=8,
            ),
            stat(
                "Differences of the run",
                "sum(tradenb_run_reconciliation_differences)",
                steps=ANY_IS_BAD,
                width=6,
                height=8,
            ),
        ],
        "The local exchange": [
            stat("Its clock", ago("max(tradenb_exchange_clock_timestamp_seconds)"), unit="dateTimeAsUS", width=6),
            stat("Accounts", "max(tradenb_exchange_accounts)", width=6),
            stat("Open orders", "max(tradenb_exchange_open_orders)", width=6),
            stat("Listeners", "max(tradenb_exchange_stream_listeners)", width=6),
            lines(
                "Faults on request",
                {"{{kind}}": "sum by (kind) (increase(tradenb_exchange_faults_total[$__rate_interval]))"},
                width=24,
            ),
        ],
    },
)

MODEL = Page(
    "tradenb-model",
    "Data and model",
    "Is the data of today, and does the model still see what it was trained on?",
    {
        "Data": [
            stat(
                "Newest session", ago("max(tradenb_data_last_session_timestamp_seconds)"), unit="dateTimeAsUS", width=6
            ),
            stat("Sessions missing", "max(tradenb_data_age_sessions)", steps=ANY_IS_BAD, width=6),
            stat("Sessions without a run", "max(tradenb_run_missed_sessions)", steps=ANY_IS_BAD, width=6),
            stat(
                "Quarantined by the run", "sum(tradenb_run_quarantined_rows)", "Bad rows that the gate caught.", width=6
            ),
        ],
        "Model": [
            stat("Version", "max(tradenb_model_version)", width=6),
            stat(
                "Trained through",
                ago("max(tradenb_model_trained_through_timestamp_seconds)"),
                unit="dateTimeAsUS",
                width=6,
            ),
            stat(
                "Warnings",
                "max(tradenb_model_warnings)",
                "Skill or drift that is worth a person's look.",
                steps=ANY_IS_BAD,
                width=6,
            ),
            stat(
                "Cannot be loaded since",
                ago("max(tradenb_model_trouble_timestamp_seconds)"),
                unit="dateTimeFromNow",
                width=6,
                steps=((None, RED),),
            ),
            lines(
                "Drift",
                {"worst feature": "max(tradenb_model_drift_psi)", "limit": "max(tradenb_model_drift_limit_psi)"},
                "Population stability index against the training.",
            ),
            lines(
                "Realised rank IC",
                {
                    "rank IC": "max(tradenb_model_rank_ic)",
                    "low": "max(tradenb_model_rank_ic_low)",
                    "high": "max(tradenb_model_rank_ic_high)",
                },
                "Since the training, with its confidence interval; wholly below zero the skill is gone.",
            ),
            lines("Agreement with the challenger", {"rank correlation": "max(tradenb_shadow_rank_correlation)"}),
            lines(
                "Names ranked", {"signals": "sum(rate(tradenb_signals_generated_total[$__rate_interval]))"}, unit="ops"
            ),
            lines(
                "Reloads", {"{{outcome}}": "sum by (outcome) (increase(tradenb_model_reloads_total[$__rate_interval]))"}
            ),
            lines("Time to load a model", {"seconds": "max(tradenb_model_load_duration_seconds)"}, unit="s"),
        ],
    },
)

SERVICES = Page(
    "tradenb-services",
    "Services and logs",
    "Who answers, how fast, and what was logged.",
    {
        "Requests": [
            lines(
                "Requests",
                {
                    "{{service}}": "sum by (service) (rate(tradenb_http_request_duration_seconds_count[$__rate_interval]))"
                },
                unit="reqps",
            ),
            lines(
                "Errors of their own",
                {
                    "{{service}} {{route}}": 'sum by (service, route) (rate(tradenb_http_request_duration_seconds_count{status=~"5.."}[$__rate_interval]))'
                },
                unit="reqps",
            ),
            lines("Median", {"{{service}}": "tradenb:http_request_duration_seconds:p50"}, unit="s"),
            lines("99 of 100", {"{{service}}": "tradenb:http_request_duration_seconds:p99"}, unit="s"),
            lines("In progress", {"{{service}}": "sum by (service) (tradenb_http_requests_in_progress)"}),
            lines(
                "Log lines",
                {
                    "{{service}} {{level}}": 'sum by (service, level) (rate(tradenb_log_lines_total{level!~"debug|info"}[$__rate_interval]))'
                },
                "Warnings and worse.",
                unit="ops",
            ),
        ],
        "Processes": [
            lines(
                "CPU",
                {"{{service}}": "sum by (service) (rate(process_cpu_seconds_total[$__rate_interval]))"},
                unit="percentunit",
            ),
            lines("Memory", {"{{service}}": "sum by (service) (process_resident_memory_bytes)"}, unit="bytes"),
            lines("Open files", {"{{service}}": "sum by (service) (process_open_fds)"}),
            Panel("Versions", "table", {"": "max by (service, version) (tradenb_build_info)"}, width=12),
        ],
        "Logs": [
            Panel(
                "Lines",
                "logs",
                {"": '{service_name=~"$service"} |~ "$search"'},
                "A trace id in the search box finds one request in all services.",
                width=24,
                height=14,
            ),
        ],
    },
    logs=True,
)

PAGES = (DESK, ORDERS, MODEL, SERVICES)


def targets(panel: Panel) -> list[dict[str, Any]]:
    source = LOKI if panel.kind == "logs" else PROMETHEUS
    instant = panel.kind in ("stat", "bargauge", "table")
    how = {"queryType": "range"} if source is LOKI else {"instant": instant, "range": not instant}
    table = {"format": "table"} if panel.kind == "table" else {}
    named = zip("ABCDEFGH", panel.queries.items(), strict=False)
    legend = panel.extra.get("legend")
    return [
        {"refId": ref, "datasource": source, "expr": query, "legendFormat": legend or name or "__auto"} | how | table
        for ref, (name, query) in named
    ]


def options(panel: Panel) -> dict[str, Any]:
    reduce = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
    match panel.kind:
        case "stat":
            return {
                "reduceOptions": reduce,
                "colorMode": "value",
                "graphMode": "none",
                "textMode": panel.extra.get("textMode", "auto"),
            }
        case "bargauge":
            return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic"}
        case "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "state-timeline":
            return {
                "showValue": "never",
                "mergeValues": True,
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            }
        case "logs":
            return {
                "showTime": True,
                "wrapLogMessage": True,
                "sortOrder": "Descending",
                "enableLogDetails": True,
                "dedupStrategy": "none",
            }
        case "alertlist":
            return {
                "viewMode": "list",
                "stateFilter": {"firing": True, "pending": True},
                "datasource": "Prometheus",
                "maxItems": 20,
            }
        case _:
            return {"showHeader": True}


def fields(panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": color} for value, color in panel.steps]
    values = {value: {"text": word, "index": n} for n, (value, word) in enumerate(panel.words.items())}
    default: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [{"type": "value", "options": values}] if values else [],
    }
    if panel.decimals is not None:
        default["decimals"] = panel.decimals
    if panel.kind == "timeseries":
        default["custom"] = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}
    return {"defaults": default, "overrides": []}


def placed(page: Page) -> Iterator[dict[str, Any]]:
    "All panels with their places: each row's from left to right, a new line when the next one does not fit."
    ids, y = count(1), 0
    for row, panels in page.rows.items():
        yield {
            "id": next(ids),
            "type": "row",
            "title": row,
            "collapsed": False,
            "panels": [],
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
        }
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            yield drawn(panel, next(ids), x, y)
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def drawn(panel: Panel, id: int, x: int, y: int) -> dict[str, Any]:
    made = {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
    }
    if panel.text:
        made["description"] = panel.text
    if panel.queries:
        made |= {"datasource": LOKI if panel.kind == "logs" else PROMETHEUS, "targets": targets(panel)}
    return made | {"options": options(panel), "fieldConfig": fields(panel)}


def variables(page: Page) -> list[dict[str, Any]]:
    if not page.logs:
        return []
    services = {"label": "service_name", "refId": "services", "stream": "", "type": 1}
    ask = {"name": "service", "label": "Service", "type": "query", "datasource": LOKI, "query": services, "refresh": 2}
    search = {"name": "search", "label": "Search", "type": "textbox", "query": ""}
    return [ask | {"multi": True, "includeAll": True, "allValue": ".+"}, search]


def dashboard(page: Page) -> dict[str, Any]:
    others = [other for other in PAGES if other is not page]
    return {
        "uid": page.uid,
        "title": page.title,
        "description": page.text,
        "tags": ["tradenb"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "America/New_York",
        "links": [
            {"title": o.title, "type": "link", "url": f"/d/{o.uid}", "icon": "dashboard", "keepTime": True}
            for o in others
        ],
        "templating": {"list": variables(page)},
        "annotations": {"list": []},
        "panels": list(placed(page)),
    }


def written() -> dict[Path, str]:
    "Every file and what stands in it."
    name = lambda page: page.uid.removeprefix("tradenb-")
    return {
        FOLDER / f"{name(page)}.json": json.dumps(dashboard(page), indent=1, ensure_ascii=False) + "\n"
        for page in PAGES
    }


def main(check: bool) -> int:
    files = written()
    if check:
        return int(any(not file.is_file() or file.read_text() != text for file, text in files.items()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
