"Metrics: names by convention, one catalogue that code and page agree on, and a scrape that always answers."

import math
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

from tradenb.core import metrics
from tradenb.core.metrics import CATALOGUE, Metric

PROJECT = Path(__file__).resolve().parents[2]


def test_every_name_and_label_follows_the_conventions():
    assert {name: metrics.objections(metric) for name, metric in CATALOGUE.items() if metrics.objections(metric)} == {}
    assert all(metric.text and not metric.text.endswith(".") for metric in CATALOGUE.values())


@pytest.mark.parametrize(
    ("metric", "objection"),
    [
        (Metric("orders_total", "counter", "", ""), "after tradenb_"),
        (Metric("tradenb_orders", "counter", "", ""), "end in _total"),
        (Metric("tradenb_orders_total", "gauge", "", ""), "end in _total"),
        (Metric("tradenb_answer", "histogram", "", ""), "unit last"),
        (Metric("tradenb_answer_ms", "gauge", "", ""), "base units"),
        (Metric("tradenb_position_usd", "gauge", "", "", ("symbol",)), "without a bound: symbol"),
    ],
)
def test_a_name_against_the_conventions_is_objected_to(metric, objection):
    assert any(objection in said for said in metrics.objections(metric))


def test_the_page_shows_the_catalogue_as_it_is():
    page = (PROJECT / "docs" / "concepts" / "observability.md").read_text()
    assert metrics.as_page() in page


def test_every_metric_of_the_catalogue_is_made_somewhere_and_no_other():
    "Names are written out where a metric is made, so that whoever finds one in an alert finds the line that makes it."
    modules = [p for p in (PROJECT / "tradenb").rglob("*.py") if p.name not in ("metrics.py", "_modidx.py")]
    code = "\n".join(path.read_text() for path in modules)
    made = set(re.findall(r'"(tradenb_[a-z0-9_]+)"', code)) - {"tradenb_log"}
    own = {"tradenb_build_info", "tradenb_log_lines_total", "tradenb_log_lines_lost_total"}
    own |= {"tradenb_data_root_free_bytes", "tradenb_data_root_size_bytes"}
    patterns = [re.sub(r"\{[^}]*\}", "[a-z_]+", text) for text in re.findall(r'f"(tradenb_run_\{[^"]*)"', code)]
    by_pattern = {name for name in CATALOGUE if any(re.fullmatch(pattern, name) for pattern in patterns)}
    assert made <= set(CATALOGUE)
    assert set(CATALOGUE) - made - own - by_pattern == set()


def test_a_metric_that_is_not_in_the_catalogue_cannot_be_made():
    for make in (metrics.counter, metrics.histogram):
        with pytest.raises(KeyError):
            make(CollectorRegistry(), "tradenb_unheard_of_total")
    with pytest.raises(AssertionError, match="is a gauge"):
        metrics.counter(CollectorRegistry(), "tradenb_orders_unresolved")


def test_what_is_not_known_is_nan_and_takes_nothing_else_along():
    registry = CollectorRegistry()
    metrics.gauge(registry, "tradenb_orders_working", lambda: None)
    metrics.gauge(registry, "tradenb_orders_unresolved", lambda: 1 / 0)
    metrics.gauge(registry, "tradenb_stream_up", lambda: True)
    metrics.table(registry, lambda: [("tradenb_data_age_sessions", (), None)])
    metrics.table(registry, lambda: [("tradenb_unheard_of", (), 1)] if 1 / 0 else [])
    found = {s.name: s.value for family in parse(generate_latest(registry).decode()) for s in family.samples}
    assert math.isnan(found.pop("tradenb_orders_working"))
    assert math.isnan(found.pop("tradenb_orders_unresolved"))
    assert math.isnan(found.pop("tradenb_data_age_sessions"))
    assert found == {"tradenb_stream_up": 1}


def test_registering_a_table_asks_nobody():
    metrics.table(CollectorRegistry(), lambda: pytest.fail("asked before anybody wanted to know"))


def test_no_series_is_told_that_nobody_asked_for():
    registry = CollectorRegistry()
    metrics.counter(registry, "tradenb_orders_total").labels("accepted").inc()
    assert "_created" not in generate_latest(registry).decode()
