"Fault plans: the same seed does the same harm, no more than it says, and over a real socket a reset is a reset."

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from fastapi import FastAPI, WebSocket
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tradenb.core.clock import Stopwatch
from tradenb.core.errors import InputError, one_line
from tradenb.core.web import serving
from tradenb.exchange.faults import (
    ON_EVENTS,
    ON_ORDERS,
    REQUESTS,
    Fault,
    FaultKind,
    Faults,
    Gate,
    Plan,
    Rule,
    blank,
    decide,
    drawn,
    parcels,
    read_plan,
)

SUBJECTS = {
    "POST /v2/orders": REQUESTS,
    "GET /v2/account": REQUESTS,
    "trade_updates/fill/ACME": ON_EVENTS,
    "match/ACME": ON_ORDERS,
}
seeds, chances = st.integers(-(2**70), 2**70), st.floats(0.01, 1)
rules = st.builds(
    Rule,
    kind=st.sampled_from(FaultKind),
    probability=chances,
    times=st.none() | st.integers(1, 5),
    after=st.integers(0, 5),
)
subjects = st.lists(st.sampled_from(sorted(SUBJECTS)), max_size=80)


def run(plan: Plan, asked: list[str]) -> list[Fault | None]:
    tally, found = blank(plan), []
    for subject in asked:
        fault, tally = decide(plan, tally, subject, SUBJECTS[subject])
        found.append(fault)
    return found


@given(seeds, st.lists(rules, max_size=6), subjects)
def test_the_same_seed_does_the_same(seed, some, asked):
    plan = Plan(seed=seed, rules=tuple(some))
    again = Plan.model_validate_json(plan.model_dump_json())
    assert run(plan, asked) == run(again, asked)


@given(seeds, st.lists(rules, max_size=5), rules, subjects)
def test_a_rule_at_the_end_changes_no_decision_before_it(seed, some, more, asked):
    short, long = (run(Plan(seed=seed, rules=tuple(r)), asked) for r in (some, [*some, more]))
    assert all(b == a for a, b in zip(short, long, strict=True) if a is not None)
    assert all(b is None or b.rule == len(some) for a, b in zip(short, long, strict=True) if a is None)


@given(seeds, st.lists(rules, min_size=1, max_size=5), subjects)
def test_a_rule_waits_as_told_acts_as_often_as_told_and_on_its_own_subjects(seed, some, asked):
    found = run(Plan(seed=seed, rules=tuple(some)), asked)
    for i, rule in enumerate(some):
        hits = [n for n, fault in enumerate(found) if fault and fault.rule == i]
        assert len(hits) <= (rule.times or len(asked))
        met = [n for n, subject in enumerate(asked) if rule.kind in SUBJECTS[subject]]
        assert set(hits) <= set(met[rule.after :])
        assert all(found[n].kind is rule.kind for n in hits)


@given(seeds, subjects)
def test_a_certain_rule_strikes_every_time(seed, asked):
    plan = Plan(seed=seed, rules=(Rule(kind="reset_after"), Rule(kind="drop_event"), Rule(kind="partial_fill")))
    assert all(run(plan, asked))


def test_chances_come_as_often_as_the_plan_says():
    for probability in (0.05, 0.5, 0.9):
        for seed in range(3):
            hits = sum(drawn(seed, 2, k) < probability for k in range(1, 4001))
            assert abs(hits / 4000 - probability) < 0.03


def test_rules_of_an_account_leave_the_others_alone():
    faults = Faults(Plan(rules=(Rule(kind="slow", account="mine"),)))
    assert faults.request("GET", "/v2/account", "yours") is None
    assert faults.request("GET", "/v2/account") is None
    assert faults.request("GET", "/v2/account", "mine").kind is FaultKind.SLOW
    assert [(d.number, d.subject, d.account) for d in faults.done] == [(1, "GET /v2/account", "mine")]


@pytest.mark.parametrize(
    ("pattern", "subject", "meets"),
    [
        ("POST /v2/orders", "POST /v2/orders", True),
        ("POST /v2/orders", "POST /v2/orders/1", False),
        ("DELETE /v2/orders/*", "DELETE /v2/orders/1", True),
        ("DELETE /v2/orders/*", "DELETE /v2/orders", False),
        ("* /v2/*", "PATCH /v2/orders/1", True),
        ("*", "CONNECT /stream", True),
    ],
)
def test_patterns_name_requests(pattern, subject, meets):
    assert Rule(kind="slow", on=pattern).meets(subject, None) is meets


def test_patterns_name_events_and_orders():
    fills = Rule(kind="drop_event", on="trade_updates/fill")
    assert fills.meets("trade_updates/fill/ACME", None)
    assert not fills.meets("trade_updates/fillings/ACME", None)
    assert Rule(kind="drop_event", on="trade_updates").meets("trade_updates/new/ACME", None)
    assert Rule(kind="drop_event", on="trade_updates/*/ACME").meets("trade_updates/new/ACME", None)
    assert not Rule(kind="partial_fill", on="match/ACME").meets("match/ACMEX", None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "drop_event", "on": "POST /v2/orders"},
        {"kind": "slow", "on": "trade_updates/fill"},
        {"kind": "partial_fill", "on": "trade_updates"},
        {"kind": "slow", "on": "/v2/orders"},
        {"kind": "slow", "on": ""},
        {"kind": "slow", "probability": 0},
        {"kind": "slow", "probability": 1.1},
        {"kind": "slow", "seconds": -1},
        {"kind": "slow", "often": True},
        {"kind": "earthquake"},
        {"kind": "server_error", "status": 200},
        {"kind": "partial_fill", "share": 1},
    ],
)
def test_a_rule_that_cannot_be_is_refused(wrong, tmp_path: Path):
    with pytest.raises(ValidationError):
        Rule.model_validate(wrong)
    (tmp_path / "plan.json").write_text(json.dumps({"rules": [wrong]}))
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_is_read_from_a_file_and_its_absence_is_named(tmp_path: Path):
    (tmp_path / "plan.json").write_text('{"seed": 5, "rules": [{"kind": "slow", "on": "GET /v2/clock"}]}')
    assert read_plan(tmp_path / "plan.json") == Plan(seed=5, rules=(Rule(kind="slow", on="GET /v2/clock"),))
    with pytest.raises(InputError, match="no fault plan"):
        read_plan(tmp_path / "none.json")


def test_a_wrong_word_in_a_plan_is_named_before_the_right_ones(tmp_path: Path):
    (tmp_path / "plan.json").write_text('{"rules": [{"kind": "slwo"}]}')
    with pytest.raises(InputError) as wrong:
        read_plan(tmp_path / "plan.json")
    assert "rules.0.kind: found 'slwo': Input should be 'timeout_before'" in one_line(wrong.value)


faulted = st.lists(st.none() | st.sampled_from(sorted(ON_EVENTS)), max_size=12)


@given(faulted)
def test_events_go_out_as_often_as_their_fault_says_and_otherwise_in_order(kinds):
    items = [(n, None if kind is None else Fault(kind, 0, 1.0)) for n, kind in enumerate(kinds)]
    out = parcels(items)
    sent = Counter(p.item for p in out if p.item is not None)
    lost = {FaultKind.DROP_EVENT: 0, FaultKind.DISCONNECT: 0, FaultKind.DUPLICATE_EVENT: 2}
    assert sent == Counter({n: lost.get(kind, 1) for n, kind in enumerate(kinds) if lost.get(kind, 1)})
    assert sum(p.item is None for p in out) == kinds.count(FaultKind.DISCONNECT)
    moved = (FaultKind.REORDER_EVENTS, FaultKind.LATE_EVENT)
    assert (plain := [p.item for p in out if p.item is not None and kinds[p.item] not in moved]) == sorted(plain)
    assert all(p.delay_s == 0 or kinds[p.item] in moved for p in out)


def test_an_event_that_changes_places_goes_behind_the_next():
    swap, twice = Fault(FaultKind.REORDER_EVENTS, 0, 0.2), Fault(FaultKind.DUPLICATE_EVENT, 1, 0)
    assert [p.item for p in parcels([(1, swap), (2, None), (3, None)])] == [2, 1, 3]
    assert [p.item for p in parcels([(1, swap), (2, swap), (3, twice)])] == [3, 3, 1, 2]


# Over real sockets.


@pytest.fixture(scope="module")
def struck() -> Iterator[tuple[str, Faults, Counter]]:
    app, faults, calls = FastAPI(), Faults(), Counter()

    @app.post("/v2/orders")
    async def order(body: dict[str, Any]) -> dict[str, str]:
        calls[body["id"]] += 1
        return {"status": "accepted"}

    @app.get("/admin/clock")
    async def clock() -> dict[str, str]:
        return {"now": "9"}

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    app.add_middleware(Gate, faults=faults)
    with serving(app) as url:
        yield url, faults, calls


def only(faults: Faults, kind: str, **more: Any) -> None:
    faults.set(Plan(rules=(Rule(kind=kind, **more),)))


@pytest.mark.parametrize("kind", sorted(REQUESTS))
def test_before_means_that_nothing_was_done_and_after_that_it_was(struck, kind):
    url, faults, calls = struck
    only(faults, kind, seconds=0.05)
    try:
        status: int | None = httpx.post(f"{url}/v2/orders", json={"id": kind}, timeout=2).status_code
    except httpx.TransportError:
        status = None
    assert calls[kind] == (kind.endswith("_after") or kind == "slow")
    expected = {"slow": 200, "rate_limited": 429, "server_error": 500, "reject": 403}
    expected |= {"gateway_timeout_before": 504, "gateway_timeout_after": 504}
    assert status == expected.get(kind)
    assert [(d.kind, d.subject) for d in faults.done] == [(kind, "POST /v2/orders")]


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_reset_is_a_reset(struck, kind, caplog):
    "Not a polite end: the kernel's own error number, as from a broker whose process has died."
    url, faults, _calls = struck
    only(faults, kind)
    host, port = url.removeprefix("http://").split(":")
    body = b'{"id": "raw"}'
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        head = f"POST /v2/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        with pytest.raises(ConnectionResetError):
            assert raw.recv(1000) != b"", "the connection was closed, not reset"
    with pytest.raises(requests.ConnectionError, match="reset"):
        requests.post(f"{url}/v2/orders", json={"id": "raw"}, timeout=60)
    assert caplog.records == [], "the server complains of an answer that it was not meant to give"


def test_a_timeout_is_a_silence_until_the_client_gives_up(struck):
    url, faults, calls = struck
    only(faults, "timeout_after")
    watch = Stopwatch()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v2/orders", json={"id": "silent"}, timeout=0.3)
    assert 0.25 < watch.seconds < 60
    assert calls["silent"] == 1


def test_a_rate_limit_says_when_to_come_back(struck):
    url, faults, _calls = struck
    only(faults, "rate_limited", seconds=2.5, times=1)
    refused, taken = (httpx.post(f"{url}/v2/orders", json={"id": "limited"}) for _ in range(2))
    assert (refused.status_code, refused.headers["retry-after"], refused.json()["code"]) == (429, "3", 42910000)
    assert taken.status_code == 200


def test_the_administrator_is_never_struck(struck):
    url, faults, _calls = struck
    only(faults, "reset_before", on="*")
    assert httpx.get(f"{url}/admin/clock").status_code == 200


def test_a_websocket_can_be_refused(struck, caplog):
    import websockets

    url, faults, _calls = struck
    only(faults, "reset_before", on="CONNECT /stream", times=1)

    async def ask() -> str:
        async with websockets.connect(url.replace("http", "ws") + "/stream") as stream:
            return str(await stream.recv())

    with pytest.raises((OSError, websockets.WebSocketException)):
        asyncio.run(ask())
    assert caplog.records == []
    assert asyncio.run(ask()) == "hello"


def test_within_one_process_a_reset_is_an_exception():
    app = FastAPI()
    app.add_middleware(Gate, faults=Faults(Plan(rules=(Rule(kind="reset_before"),))))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://exchange") as client:
            await client.get("/")

    with pytest.raises(ConnectionResetError, match="fault plan"):
        asyncio.run(ask())


def test_the_record_keeps_the_newest_and_counts_all():
    faults = Faults(Plan(rules=(Rule(kind="slow"),)))
    for _ in range(10_050):
        faults.request("GET", "/v2/clock")
    assert (faults.count, len(faults.done), faults.done[-1].number) == (10_050, 10_000, 10_050)
    faults.set(Plan())
    assert (faults.count, len(faults.done), faults.request("GET", "/v2/clock")) == (0, 0, None)


@settings(max_examples=30)
@given(st.binary(max_size=60))
def test_no_file_is_taken_for_a_plan_by_accident(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert isinstance(read_plan(path), Plan)
