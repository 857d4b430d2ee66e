"The tree of a trace: nothing is lost, whoever was killed; alike ones are folded, what failed is not."

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert

from tradenb.core import db, logs, tracing
from tradenb.core.clock import SystemClock
from tradenb.core.errors import InputError
from tradenb.trading import records
from tradenb.trading.gauges import numbers
from tradenb.trading.trace import FEW, NO_STEPS, UNFINISHED, Node, as_json, branch, drawn, fold, resolve, steps, tree

DAY, RUN, TRACE = date(2024, 1, 8), "2024-01-08-alpha158_ls", "4bf92f3577b34da6a3ce929d0e0e4736"
NINE = datetime(2024, 1, 8, 14, tzinfo=UTC)


def begun(engine: Engine, run_id: str = RUN, trace: str = TRACE) -> None:
    spec = records.RunSpec(run_id, DAY, "alpha158_ls", "5e77", 7, Decimal(1_000_000), (), trace)
    records.begin(engine, spec, SystemClock())


def order(engine: Engine, name: str, trace: str | None = TRACE, status: str = "filled") -> str:
    "An order with an event and a fill."
    terms = dict(strategy="s", trade_date=DAY, run_id=RUN, symbol=name[:4], side="buy", qty=Decimal(10), type="market")
    more = dict(time_in_force="cls", sequence=0, status=status, filled_qty=Decimal(10), dry_run=False, trace_id=trace)
    name = name.ljust(32, "0")
    fill = dict(execution_id=f"x-{name}", client_order_id=name, symbol=name[:4], side="buy", qty=Decimal(10))
    with engine.begin() as connection:
        connection.execute(
            insert(db.orders), terms | more | dict(client_order_id=name, created_at=NINE, updated_at=NINE)
        )
        connection.execute(
            insert(db.order_events), dict(client_order_id=name, at=NINE, kind="fill", status_to=status, detail={})
        )
        connection.execute(
            insert(db.fills), fill | dict(price=Decimal(5), fee=Decimal(0), at=NINE, trade_date=DAY, origin="stream")
        )
    return name


# ---- from lines to a tree

parents = st.integers(1, 12).flatmap(lambda n: st.tuples(*(st.integers(-1, i - 1) for i in range(n))))


@given(parents=parents, killed=st.sets(st.integers(0, 11)), order=st.randoms(use_true_random=False))
def test_every_line_is_in_the_tree_once_whatever_order_they_come_in_and_whoever_was_killed(parents, killed, order):
    span = lambda n: f"{n + 1:016x}"
    said = [("said", {"span": span(n), "n": n}) for n in range(len(parents))]
    said += [("step", {"span": span(n), "parent": span(p) if p >= 0 else None, "name": f"step {n}", "ms": 1}) for n, p in enumerate(parents) if n not in killed]  # fmt: skip
    lines = [{"timestamp": NINE.isoformat(), "level": "info", "service": "s", "event": e, "context": orjson.dumps(c).decode()} for e, c in said]  # fmt: skip
    order.shuffle(lines)
    top = Node("run", "run", children=steps(lines))
    nodes = list(top.walk())
    assert sorted(node.detail for node in nodes if node.source == "line") == sorted(
        f"n={n}" for n in range(len(parents))
    )
    assert sum(node.name.startswith("step ") for node in nodes) == len(parents) - len(killed & set(range(len(parents))))
    assert sum(node.name == UNFINISHED for node in nodes) == len(killed & set(range(len(parents))))
    for node in nodes:
        for child in node.children:
            if node.name.startswith("step ") and child.name.startswith("step "):
                assert parents[int(child.name[5:])] == int(node.name[5:])


trees = st.recursive(
    st.builds(Node, st.just("request"), st.sampled_from("abc"), bad=st.booleans(), at=st.just(NINE), seconds=st.floats(0, 9)),
    lambda inner: st.builds(
        Node, st.just("request"), st.sampled_from("abc"), bad=st.booleans(), at=st.just(NINE),
        seconds=st.none() | st.floats(0, 9), children=st.lists(inner, max_size=9),
    ),
    max_leaves=40,
)  # fmt: skip


@given(trees)
def test_folding_counts_everything_and_hides_no_failure(whole):
    folded = fold(whole)
    assert sum(node.bad for node in folded.walk()) == sum(node.bad for node in whole.walk())
    for name in "abc":
        counted = lambda tree, name=name: sum(node.count for node in tree.walk() if node.name == name)
        assert counted(folded) == counted(whole)
    assert len(drawn(folded)) == sum(1 for _ in folded.walk())
    assert all("\n" not in str(line) for line in drawn(folded))
    assert orjson.loads(orjson.dumps(as_json(folded)))["name"] == whole.name


def test_a_few_are_shown_one_by_one_and_many_as_one():
    many = lambda n: Node("run", "run", children=[Node("request", "GET /", "x", NINE, 0.001, "200") for _ in range(n)])
    assert len(fold(many(FEW)).children) == FEW
    (one,) = fold(many(FEW + 1)).children
    assert (one.count, one.detail) == (FEW + 1, "1.0 ms each, 1.0 ms at most")


# ---- with the database


def test_rows_find_their_place_and_none_is_left_out(engine, log_folder):
    begun(engine)
    records.begin_stage(engine, RUN, "etl", NINE)
    records.end_stage(engine, RUN, "etl", NINE, 3.0)
    named, unheard = order(engine, "5e77"), order(engine, "0a0a", status="rejected")
    with logs.bind(trace_id=TRACE, run_id=RUN), tracing.step("daily"), tracing.step("stage trade"):
        span = tracing.begin("", "execution", TRACE, logs.bound()["span"], "request")
        with logs.bind(span=span.span_id):
            logs.get_logger("execution").info("order_sent", client_order_id=named)
            logs.get_logger("execution").info(
                "request", method="POST", route="/api/v1/orders", status=201, ms=1.0, parent=span.parent
            )
    with logs.bind(trace_id=TRACE):
        logs.get_logger("execution").info("fill_booked", client_order_id=named)
    whole = tree(engine, log_folder, TRACE)
    request = next(node for node in whole.walk() if node.source == "request")
    assert [node.order for node in request.children if node.source == "order"] == [named]
    placed = next(node for node in request.children if node.source == "order")
    assert [node.source for node in placed.children] == ["event", "fill", "line"]
    assert [(node.source, node.status, node.bad) for node in whole.children if node.order == unheard] == [
        ("order", "rejected", True)
    ]
    assert [node.status for node in whole.walk() if node.name == "stage etl"] == ["completed"]
    mine = branch(whole, named)
    assert unheard not in {node.order for node in mine.walk()}
    assert {"daily", "stage trade", "POST /api/v1/orders"} <= {node.name for node in mine.walk()}


def test_a_run_whose_process_was_killed_shows_what_did_not_end(engine, log_folder):
    begun(engine)
    with logs.bind(trace_id=TRACE, span="a" * 16):  # the step that never said its last word
        with tracing.step("stage etl"):
            pass
        logs.get_logger().info("asking")
    whole = tree(engine, log_folder, TRACE)
    (killed,) = (node for node in whole.children if node.name == UNFINISHED)
    assert [node.name for node in killed.children] == ["stage etl", "asking"]
    assert (whole.status, killed.bad) == ("running", True)


def test_an_order_belongs_to_the_gateways_request_whoever_else_named_it_before(engine, log_folder):
    begun(engine)
    name = order(engine, "5e77", status="unknown")
    with logs.bind(trace_id=TRACE), tracing.step("daily"):
        for service, span in (("orchestrator", "a" * 16), ("execution", "b" * 16)):
            with logs.bind(span=span):
                logs.get_logger(service).warning("order_unknown", client_order_id=name)
                logs.get_logger(service).info("request", method="POST", route="/", status=201, ms=1.0)
    (home,) = (n for n in tree(engine, log_folder, TRACE).walk() if any(c.source == "order" for c in n.children))
    assert (home.source, home.service) == ("request", "execution")


def test_a_tree_without_steps_says_why_and_one_with_steps_does_not(engine, log_folder):
    begun(engine)
    names = lambda: [node.name for node in tree(engine, log_folder, TRACE).children]
    assert names() == [NO_STEPS]
    with logs.bind(trace_id=TRACE, span="a" * 16):
        logs.get_logger().warning("order_denied")  # all that is left of a request above level INFO
    assert names() == [UNFINISHED, NO_STEPS]
    with logs.bind(trace_id=TRACE), tracing.step("daily"):
        pass
    assert names() == [UNFINISHED, "daily"]


def test_an_id_leads_to_its_trace_or_is_refused_in_one_line(engine, log_folder):
    begun(engine)
    name = order(engine, "5e77")
    order(engine, "beef", trace=None)
    with logs.bind(trace_id="cafe" * 8):
        logs.get_logger().info("only in the log")
    assert resolve(engine, log_folder, RUN).trace == resolve(engine, log_folder, TRACE[:6]).trace == TRACE
    assert resolve(engine, log_folder, name) == resolve(engine, log_folder, "5e7700")
    assert resolve(engine, log_folder, "cafeca").trace == "cafe" * 8
    for text, says in (("5e7", "at least four characters"), ("beef", "carries no trace"), ("dead", "nothing is known"), ("'; drop", "no id"), ("%%%%", "no id"), ("____", "nothing")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            resolve(engine, log_folder, text)
    order(engine, "5e771")
    with pytest.raises(InputError, match="not enough"):
        resolve(engine, log_folder, "5e77")


# ---- runs as numbers


def told(engine: Engine, settings: Any, now: datetime) -> dict[tuple[str, ...], Any]:
    return {(name, *labels): value for name, labels, value in numbers(engine, settings, now)}


def test_runs_are_told_from_their_rows_on_both_databases(engine, make_settings):
    settings = make_settings(**{"execution.broker": "paper"})
    settings.root.mkdir(parents=True)
    assert told(engine, settings, NINE)["tradenb_run_missed_sessions", "alpha158_ls"] is None
    begun(engine)
    records.begin_stage(engine, RUN, "trade", NINE)
    records.note_facts(engine, RUN, "trade", {"orders": 40, "fills": 39})
    records.end_stage(engine, RUN, "trade", NINE + timedelta(seconds=9), 9.0)
    running = told(engine, settings, NINE)
    assert running["tradenb_run_finished_timestamp_seconds", "alpha158_ls"] is None
    assert running["tradenb_run_orders", "alpha158_ls"] == 40
    records.learn(engine, RUN, lease_until=NINE)
    assert told(engine, settings, NINE + timedelta(seconds=1))["tradenb_run_abandoned", "alpha158_ls"] == 1
    records.learn(engine, RUN, summary={"pnl": "-12.50", "equity": "999987.50"})
    records.end(engine, RUN, records.COMPLETED, NINE)
    done = told(engine, settings, datetime(2024, 1, 16, 22, tzinfo=UTC))  # 15 January is a holiday
    assert done["tradenb_run_missed_sessions", "alpha158_ls"] == 5
    assert (done["tradenb_run_pnl_usd", "alpha158_ls"], done["tradenb_run_abandoned", "alpha158_ls"]) == (-12.5, 0)
    states = {key[2]: value for key, value in done.items() if key[0] == "tradenb_run_state"}
    assert [status for status, value in states.items() if value] == ["completed"]
    assert done["tradenb_run_success_timestamp_seconds", "alpha158_ls"] == NINE.timestamp()
    assert done[("tradenb_database_up",)] == 1
