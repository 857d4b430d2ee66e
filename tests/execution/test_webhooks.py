"Signed events over HTTP: what is believed, what is not, and that nothing which is not believed leaves a trace."

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from tradenb.core import db
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent
from tradenb.execution.webhooks import (
    LARGEST_BODY,
    SIGNATURE,
    TIMESTAMP,
    Received,
    Receiver,
    Refused,
    digest,
    receipt,
    sign,
    verify,
)

SECRET, WINDOW_S = "what the relay and we know", 300
CASES = int(os.environ.get("FUZZ_WEBHOOKS", "10000"))  # 100_000: all of them
Make = Callable[..., OrderIntent]
Call = tuple[str, str, bytes]


@pytest.fixture
def receiver(ledger: Ledger, clock: SimulatedClock) -> Receiver:
    return Receiver(ledger, SECRET, WINDOW_S, clock)


def event(ledger: Ledger, intent: OrderIntent, execution: str = "x-1", qty: int = 100, **changes: Any) -> dict:
    "A fill of an order of ours."
    order, _ = ledger.record_intent(intent)
    told = {"id": f"b-{order.client_order_id[:8]}", "client_order_id": order.client_order_id, "symbol": order.symbol}
    told |= {"side": str(order.side), "qty": str(order.qty), "filled_qty": str(qty), "status": "filled"}
    whole = {"event": "fill", "execution_id": execution, "timestamp": "2017-06-01T13:00:00Z", "price": "153.18"}
    return whole | {"qty": str(qty), "order": told} | changes


def signed(events: Any, clock: SimulatedClock, secret: str = SECRET) -> Call:
    body = events if isinstance(events, bytes) else orjson.dumps(events)
    headers = sign(secret, clock.now(), body)
    return headers[TIMESTAMP], headers[SIGNATURE], body


def attempt(receiver: Receiver, call: Call) -> str:
    "What a call gets, in a word."
    try:
        receiver.receive(*call)
    except Refused as refused:
        return refused.code
    return "taken"


def counts(ledger: Ledger) -> dict[str, int]:
    tables = (db.fills, db.positions, db.order_events, db.webhook_receipts)
    with ledger.engine.connect() as connection:
        return {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in tables}


def test_a_signed_event_is_booked_once_whatever_way_it_comes_again(
    receiver: Receiver, clock: SimulatedClock, intent: Make
) -> None:
    fill = event(receiver.ledger, intent())
    call = signed(fill, clock)
    assert receiver.receive(*call) == Received(1, 1, 0)
    with pytest.raises(Refused, match="taken in before") as refused:
        receiver.receive(*call)
    assert (refused.value.status, refused.value.code) == (409, "WebhookReplayed")
    clock.advance(timedelta(seconds=3))
    assert receiver.receive(*signed(fill, clock)) == Received(1, 0, 0)
    assert receiver.receive(*signed([fill, fill], clock)) == Received(2, 0, 0)
    assert receiver.ledger.positions()["S01"].qty == 100


def test_a_replay_is_refused_by_another_process_and_after_a_restart(
    receiver: Receiver, clock: SimulatedClock, intent: Make
) -> None:
    call = signed(event(receiver.ledger, intent()), clock)
    receiver.receive(*call)
    other = Receiver(Ledger(receiver.ledger.engine, clock), SECRET, WINDOW_S, clock)
    with pytest.raises(Refused, match="taken in before"):
        other.receive(*call)


def test_of_many_equal_calls_at_once_one_is_taken(receiver: Receiver, clock: SimulatedClock, intent: Make) -> None:
    call = signed(event(receiver.ledger, intent()), clock)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: attempt(receiver, call), range(16)))
    assert sorted(answers) == ["WebhookReplayed"] * 15 + ["taken"]
    assert receiver.ledger.positions()["S01"].qty == 100


def test_receipts_live_as_long_as_a_replay_could_and_no_longer(
    receiver: Receiver, clock: SimulatedClock, intent: Make
) -> None:
    ahead = clock.now() + timedelta(seconds=WINDOW_S)
    body = orjson.dumps(event(receiver.ledger, intent()))
    headers = sign(SECRET, ahead, body)
    call = headers[TIMESTAMP], headers[SIGNATURE], body
    receiver.receive(*call)  # signed as far ahead as may be
    clock.advance(timedelta(seconds=2 * WINDOW_S - 1))
    receiver.receive(*signed(event(receiver.ledger, intent("S02"), "x-2"), clock))  # prunes
    with pytest.raises(Refused) as refused:
        receiver.receive(*call)
    assert refused.value.code == "WebhookReplayed"  # still inside its window, still remembered
    clock.advance(timedelta(seconds=2 * WINDOW_S + 1))
    receiver.receive(*signed(event(receiver.ledger, intent("S03"), "x-3"), clock))
    assert counts(receiver.ledger)["webhook_receipts"] == 1


def test_an_event_whose_booking_fails_may_be_sent_again(
    receiver: Receiver, clock: SimulatedClock, intent: Make, monkeypatch: Any
) -> None:
    call = signed(event(receiver.ledger, intent()), clock)
    with monkeypatch.context() as broken:

        def fail(*_: Any) -> None:
            raise RuntimeError("the disk is full")

        broken.setattr(receiver.ledger, "book", fail)
        with pytest.raises(RuntimeError):
            receiver.receive(*call)
    assert receiver.receive(*call).news == 1


def test_what_cannot_be_read_opens_a_gap_and_takes_nothing_along(
    receiver: Receiver, clock: SimulatedClock, intent: Make
) -> None:
    gaps: list[int] = []
    receiver.on_malformed = lambda: gaps.append(1)
    fill = event(receiver.ledger, intent())
    assert receiver.receive(*signed([{"event": "fill"}, fill, None], clock)) == Received(3, 1, 2)
    assert len(gaps) == 2
    for body in (b"", b"null", b"[]", b"{}", b"7", b"[[]]", b"{not json", b"\xff", b"[" * 5_000, [fill] * 1_001):
        with pytest.raises(Refused) as refused:
            receiver.receive(*signed(body, clock))
        assert (refused.value.status, refused.value.code) == (422, "WebhookMalformed")


def test_a_signature_is_compared_whole_and_in_one_form_only(clock: SimulatedClock) -> None:
    body, now = b'{"event": "fill"}', clock.now()
    stamp, right, _ = signed(body, clock)
    verify(SECRET, stamp, right, body, now, WINDOW_S)
    hexes = right.removeprefix("sha256=")
    for wrong in ("", hexes, right.upper(), f"sha1={hexes}", right[:-1], right + "0", right + "\n", f" {right}", f"{right},{right}", "sha256=" + "٠" * 64):  # fmt: skip
        with pytest.raises(Refused, match="expected"):
            verify(SECRET, stamp, wrong, body, now, WINDOW_S)
    for other in ("", "-1", "+" + stamp, stamp + ".0", f" {stamp}", stamp[:-1] + "١", "9" * 13, "1_0"):
        with pytest.raises(Refused, match="expected"):
            verify(SECRET, other, f"sha256={digest(SECRET, other, body)}", body, now, WINDOW_S)
    with pytest.raises(Refused, match="at most"):
        verify(SECRET, stamp, right, b"0" * (LARGEST_BODY + 1), now, WINDOW_S)


def test_a_call_is_fresh_within_the_window_and_stale_outside(clock: SimulatedClock) -> None:
    body, now = b"{}", clock.now()
    for age, fresh in ((0, True), (300, True), (-300, True), (301, False), (-301, False), (10**9, False)):
        headers = sign(SECRET, now - timedelta(seconds=age), body)
        call = (SECRET, headers[TIMESTAMP], headers[SIGNATURE], body, now, WINDOW_S)
        if fresh:
            verify(*call)
        else:
            with pytest.raises(Refused, match="signed") as refused:
                verify(*call)
            assert (refused.value.status, refused.value.code) == (401, "WebhookExpired")


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=40), st.text(max_size=100), st.binary(max_size=400), st.text(min_size=1, max_size=20))
def test_whatever_is_sent_without_the_secret_is_refused(stamp: str, signature: str, body: bytes, other: str) -> None:
    now = new_york(date(2017, 6, 1), 9)
    with pytest.raises(Refused):
        verify(SECRET, stamp, signature, body, now, WINDOW_S)
    if other != SECRET and other.isprintable():
        headers = sign(other, now, body)
        with pytest.raises(Refused):
            verify(SECRET, headers[TIMESTAMP], headers[SIGNATURE], body, now, WINDOW_S)


# A hundred thousand mutations ------------------------------------------------------------------------------------------

DIGITS = "0123456789abcdef"


def flipped(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def respelt(rng: random.Random, data: bytes) -> bytes:
    "The same JSON in other bytes, or with another number in it."
    if rng.random() < 0.5:
        return orjson.dumps(orjson.loads(data), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    digits = [i for i, c in enumerate(data) if 48 <= c <= 57]
    at = rng.choice(digits)
    return data[:at] + str((data[at] - 48 + rng.randint(1, 9)) % 10).encode() + data[at + 1 :]


BODIES: list[Callable[[random.Random, bytes], bytes]] = [
    flipped,
    respelt,
    lambda rng, b: b[: rng.randrange(len(b))],
    lambda rng, b: b[rng.randrange(1, len(b)) :],
    lambda rng, b: b + rng.randbytes(rng.randint(1, 40)),
    lambda rng, b: rng.randbytes(rng.randint(0, 200)),
    lambda rng, b: b + b,
    lambda rng, b: b.replace(b"buy", b"sell"),
    lambda rng, b: b.replace(b'"100"', b'"1000000"'),
    lambda rng, b: b" " + b,
    lambda rng, b: b"[" + b + b"]",
    lambda rng, b: b"\xef\xbb\xbf" + b,
]
SIGNATURES: list[Callable[[random.Random, str], str]] = [
    lambda rng, s: s[:-1] + rng.choice([c for c in DIGITS if c != s[-1]]),
    lambda rng, s: s[: rng.randrange(len(s))],
    lambda rng, s: s.upper(),
    lambda rng, s: s.removeprefix("sha256="),
    lambda rng, s: "sha256=" + "".join(rng.choices(DIGITS, k=64)),
    lambda rng, s: s.replace("sha256", "sha512"),
    lambda rng, s: s + rng.choice([" ", "\0", "0", ",", s]),
    lambda rng, s: "sha256=" + s.removeprefix("sha256=")[::-1],
    lambda rng, s: "".join(chr(rng.randrange(1, 0x2000)) for _ in range(rng.randint(0, 80))),
]
STAMPS: list[Callable[[random.Random, str], str]] = [
    lambda rng, t: str(int(t) + rng.choice([-1, 1]) * rng.randint(1, 10**6)),
    lambda rng, t: "0" + t,
    lambda rng, t: t + rng.choice(["0", " ", ".0", "\0", "e0"]),
    lambda rng, t: t[: rng.randrange(len(t))],
    lambda rng, t: rng.choice(["", "-1", "NaN", "inf", "0x5", "١٤٩٦", "9" * 12, "9" * 400]),
]


def mutated(rng: random.Random, call: Call) -> Call:
    "A call of which at least one part is not what it was."
    stamp, signature, body = call
    while (stamp, signature, body) == call:
        parts = rng.randrange(1, 8)
        stamp = rng.choice(STAMPS)(rng, stamp) if parts & 1 and stamp else stamp
        signature = rng.choice(SIGNATURES)(rng, signature) if parts & 2 and signature else signature
        body = rng.choice(BODIES)(rng, body) if parts & 4 and body else body
    return stamp, signature, body


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_mutated_call_is_believed_and_none_crashes(receiver: Receiver, clock: SimulatedClock, intent: Make) -> None:
    rng = random.Random(20170601)
    call = signed(event(receiver.ledger, intent()), clock)
    before = counts(receiver.ledger)
    codes: dict[str, int] = {}
    for _ in range(CASES):
        with pytest.raises(Refused) as refused:
            receiver.receive(*mutated(rng, call))
        codes[refused.value.code] = codes.get(refused.value.code, 0) + 1
        assert 400 <= refused.value.status < 500
    assert counts(receiver.ledger) == before
    assert codes.keys() >= {"WebhookUnsigned", "WebhookForged"}
    assert receiver.receive(*call).news == 1  # what they were made of is believed


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_damage_under_a_right_signature_is_booked_or_refused_and_never_a_crash(
    receiver: Receiver, clock: SimulatedClock, intent: Make
) -> None:
    rng, codes = random.Random(7), set[str]()
    body = orjson.dumps(event(receiver.ledger, intent()))
    for n in range(CASES // 10):
        damaged = flipped(rng, rng.choice(BODIES)(rng, body) or b"0") if n % 2 else flipped(rng, body)
        codes.add(attempt(receiver, signed(damaged, clock)))
    assert codes <= {"taken", "WebhookMalformed", "WebhookReplayed"}
    assert receiver.ledger.check() == []


def test_a_receipt_says_whether_it_is_the_first(ledger: Ledger, clock: SimulatedClock) -> None:
    with ledger.engine.begin() as connection:
        assert receipt(connection, "d" * 64, clock.now(), WINDOW_S)
        assert not receipt(connection, "d" * 64, clock.now(), WINDOW_S)
