"Notifications: real HTTP listeners, dead and slow channels, many processes at once."

import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import apprise  # noqa: F401  (which would cost the first message seconds)
import pytest
from sqlalchemy import Engine, update

from tradenb.core import notify
from tradenb.core.clock import SimulatedClock, Stopwatch, SystemClock, new_york
from tradenb.core.db import connect, default_url, migrate, notifications
from tradenb.core.logs import bind
from tradenb.core.notify import (
    STORM,
    Kind,
    Message,
    Notifier,
    deliver,
    halt_teller,
    notifier_of,
    page_link,
    run_ended,
    run_failed,
    settle,
    told,
    undelivered,
)
from tradenb.core.settings import load
from tradenb.execution.switch import Level, Switch

NINE = new_york(date(2024, 1, 8), 9)
NEWS = Message(Kind.FAILURE, "2024-01-08-alpha158_ls FAILED in etl", "the data is stale", "failure:etl")


class Listener:
    "A webhook on this machine: what came, and how it answers."

    def __init__(self) -> None:
        self.posts: list[dict] = []
        self.gate = threading.Event()  # a call to /slow waits for it
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/slow":
                    listener.gate.wait(120)
                listener.posts.append(body)
                self.send_response(500 if self.path == "/broken" else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a caller that left early
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str = "") -> str:
        return f"json://127.0.0.1:{self.server.server_port}/{path}"

    @property
    def titles(self) -> list[str]:
        return [post["title"] for post in self.posts]

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = migrate(connect(default_url(tmp_path)))
    yield made
    made.dispose()


@pytest.fixture
def notifier(tmp_path: Path, engine: Engine, listener: Listener) -> Notifier:
    return Notifier(default_url(tmp_path), (listener.url(),), timeout_s=60, clock=SimulatedClock(NINE))


def statuses(engine: Engine) -> list[str]:
    return [row.status for row in reversed(told(engine, 1000))]


def a_dead_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_message_arrives_and_its_row_says_so(notifier: Notifier, engine: Engine, listener: Listener) -> None:
    with bind(trace_id="a" * 32):
        message = replace(NEWS, run_id="2024-01-08-alpha158_ls", trace_id="a" * 32)
    assert notifier.send(message) == "sent"
    assert [(p["title"], p["message"], p["type"]) for p in listener.posts] == [(NEWS.title, NEWS.body, "failure")]
    row = told(engine)[0]
    assert (row.at, row.kind, row.status, row.error, row.trace_id) == (NINE, "failure", "sent", None, "a" * 32)


def test_the_same_news_is_told_once_within_the_window(notifier: Notifier, engine: Engine, listener: Listener) -> None:
    clock = notifier.clock
    assert isinstance(clock, SimulatedClock)
    for _ in range(3):
        notifier.send(NEWS)
        clock.advance(timedelta(minutes=5))
    notifier.send(replace(NEWS, key="failure:signals"))
    clock.advance(timedelta(seconds=1))
    notifier.send(NEWS)
    assert statuses(engine) == ["sent", "throttled", "throttled", "sent", "sent"]
    assert listener.posts[-1]["message"] == "the data is stale\n(2 more like this since 14:05 UTC)"


def test_what_nobody_heard_is_tried_again(notifier: Notifier, engine: Engine, listener: Listener) -> None:
    dead = replace(notifier, urls=(f"json://127.0.0.1:{a_dead_port()}/",))
    assert [dead.send(NEWS), dead.send(NEWS), notifier.send(NEWS)] == ["failed", "failed", "sent"]
    assert undelivered(engine, NINE - timedelta(days=1)) == 2
    assert len(listener.posts) == 1


def test_a_storm_ends(notifier: Notifier, engine: Engine, listener: Listener) -> None:
    for n in range(STORM + 5):
        notifier.send(replace(NEWS, key=f"{n}", kind=Kind.HALT))
    assert statuses(engine) == ["sent"] * STORM + ["throttled"] * 5
    assert notifier.send(NEWS) == "sent"  # another kind
    assert len(listener.posts) == STORM + 1


def test_a_dead_channel_costs_nothing_but_itself(notifier: Notifier, engine: Engine, listener: Listener) -> None:
    urls = (f"json://127.0.0.1:{a_dead_port()}/", listener.url("broken"), listener.url(), "nonsense://x")
    assert replace(notifier, urls=urls).send(NEWS) == "partly"
    error = told(engine)[0].error
    assert "address 1, JSON: A Connection error occurred" in error
    assert "address 2, JSON: Failed to send JSON POST notification" in error
    assert "address 3" not in error
    assert "address 4, no address that Apprise knows" in error


def test_a_slow_channel_is_left_behind(notifier: Notifier, engine: Engine, listener: Listener) -> None:
    slow, watch = replace(notifier, urls=(listener.url("slow"),), timeout_s=2), Stopwatch()
    future = slow.post(NEWS)
    assert not future.done()  # the one who posts goes on
    assert future.result(60) == "late"
    assert watch.seconds < 60  # the listener holds its answer for two minutes
    assert told(engine)[0].status == "late"
    listener.gate.set()
    assert notifier.send(NEWS) == "throttled"  # it may have arrived: it counts as heard


def test_without_an_address_the_attempt_is_kept(notifier: Notifier, engine: Engine) -> None:
    assert replace(notifier, urls=()).send(NEWS) == "unsent"
    assert "TRADENB_NOTIFY__URLS" in told(engine)[0].error


def test_kinds_that_are_off_leave_no_trace_but_a_test_is_always_sent(notifier: Notifier, engine: Engine) -> None:
    quiet = replace(notifier, on=("halt",))
    assert [quiet.send(NEWS), quiet.send(replace(NEWS, kind=Kind.TEST))] == ["off", "sent"]
    assert statuses(engine) == ["sent"]


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@127.0.0.1:1/gone", "sqlite:////proc/nowhere/x.db", "mysql://a@b/c", "no url"]
)
def test_a_database_that_is_gone_does_not_stop_the_message(notifier: Notifier, listener: Listener, url: str) -> None:
    assert replace(notifier, database=url).send(NEWS) == "sent"
    assert listener.titles == [NEWS.title]


def test_a_database_that_hangs_does_not_stop_the_message(
    notifier: Notifier, engine: Engine, listener: Listener
) -> None:
    with engine.begin():  # SQLite's only pen is taken
        assert replace(notifier, timeout_s=3).send(NEWS) == "sent"
    assert listener.titles == [NEWS.title]


def test_an_older_schema_does_not_stop_the_message(tmp_path: Path, listener: Listener) -> None:
    empty = Notifier(f"sqlite:///{tmp_path / 'empty.db'}", (listener.url(),), timeout_s=60)
    assert empty.send(NEWS) == "sent"


def test_nothing_raises_whatever_the_message_holds(notifier: Notifier) -> None:
    odd = Message(Kind.FAILURE, "x" * 500, "é\x00\n" * 300, "k" * 500, run_id="r" * 40)
    assert notifier.send(odd) in ("sent", "failed")
    assert notifier.send(replace(NEWS, body=None)) in ("sent", "failed")  # type: ignore[arg-type]


AT_ONCE = """
import json, multiprocessing, sys
import apprise
from tradenb.core.notify import Kind, Message, Notifier

def send(n):
    message = Message(Kind.FAILURE, "etl FAILED", "the data is stale", "failure:etl", trace_id=f"{n:032x}")
    return Notifier(sys.argv[1], (sys.argv[2],), timeout_s=60).send(message)

with multiprocessing.get_context("fork").Pool(4) as pool:
    print(json.dumps(pool.map(send, range(8), chunksize=1)))
"""


def test_of_many_processes_one_speaks(tmp_path: Path, engine: Engine, listener: Listener) -> None:
    "Forked from a process of one thread: a lock that another thread of ours holds would be held for ever in a child."
    command = [sys.executable, "-c", AT_ONCE, default_url(tmp_path), listener.url()]
    done = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE)
    assert sorted(json.loads(done.stdout)) == ["sent", *["throttled"] * 7]
    assert len(listener.posts) == 1


def test_of_many_threads_on_postgresql_one_speaks(postgres_url: str, listener: Listener) -> None:
    engine = migrate(connect(postgres_url))
    notifier = Notifier(postgres_url, (listener.url(),), timeout_s=60, clock=SystemClock())
    answers = [future.result(120) for future in [notifier.post(NEWS) for _ in range(8)]]
    assert sorted(answers) == ["sent", *["throttled"] * 7]
    engine.dispose()


def test_no_part_of_an_address_is_stored_or_printed(notifier: Notifier, engine: Engine) -> None:
    secret = "T0KENT0KENT0KEN"
    url = f"json://user:{secret}@127.0.0.1:{a_dead_port()}/{secret}"
    replace(notifier, urls=(url,)).send(NEWS)
    assert secret not in f"{told(engine)[0]}{replace(notifier, urls=(url,))!r}"
    settings = load({}, env={"TRADENB_NOTIFY__URLS": url})
    assert secret not in repr(settings)


def test_reasons_of_one_channel_are_not_those_of_another(listener: Listener) -> None:
    dead, broken = f"json://127.0.0.1:{a_dead_port()}/", listener.url("broken")
    answers = [notify.at_once(lambda url=url: deliver(url, NEWS, 5), "t") for url in (dead, broken) * 4]
    said = [answer.result(60) for answer in answers]
    assert all("Connection error" in text and "500" not in text for text in said[::2])
    assert all("500" in text and "Connection error" not in text for text in said[1::2])
    assert not [h for h in logging.getLogger("apprise").handlers if isinstance(h, notify.Reasons)]


def test_a_turn_of_the_kill_switch_is_told_and_costs_its_caller_nothing(
    tmp_path: Path, engine: Engine, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADENB_NOTIFY__URLS", listener.url("slow"))
    settings = load({"core.root": tmp_path, "notify.timeout_s": 120})
    switch, watch = Switch(engine, SystemClock(), halt_teller(settings)), Stopwatch()
    switch.engage("*", Level.BLOCK, "reconciliation", "position KO: ours 300, the broker's 400")
    switch.engage("*", Level.BLOCK, "reconciliation", "the same again")
    assert watch.seconds < 60  # the listener holds its answer for two minutes
    switch.release("*", "ann", "booked by hand")
    listener.gate.set()
    assert settle(120)
    assert sorted(listener.titles) == ["Trading HALTED for everything: block", "Trading released for everything"]


def test_a_halt_within_a_transaction_of_the_admission_is_told(
    tmp_path: Path, engine: Engine, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRADENB_NOTIFY__URLS", listener.url())
    switch = Switch(engine, SystemClock(), halt_teller(load({"core.root": tmp_path})))
    with engine.begin() as connection:
        switch.engage("*", Level.REDUCE, "controls", "DAILY_LOSS: loss=0.11, limit=0.10", connection)
    assert settle(120)
    assert listener.titles == ["Trading HALTED for everything: reduce"]
    assert "DAILY_LOSS" in listener.posts[0]["message"]


SPEAK = """
from tradenb.core.notify import Kind, Message, notifier_of
from tradenb.core.settings import load
notifier_of(load()).post(Message(Kind.TEST, "last words", "", "test"))
"""


def test_a_process_that_ends_takes_no_message_with_it(tmp_path: Path, engine: Engine, listener: Listener) -> None:
    env = {"TRADENB_CORE__ROOT": str(tmp_path), "TRADENB_NOTIFY__URLS": listener.url(), "PATH": ""} | {
        "TRADENB_NOTIFY__TIMEOUT_S": "60"
    }
    subprocess.run([sys.executable, "-c", SPEAK], env=env, check=True, timeout=120)
    assert listener.titles == ["last words"]
    assert statuses(engine) == ["sent"]


def test_an_attempt_that_was_cut_off_counts_as_heard(notifier: Notifier, engine: Engine) -> None:
    notifier.send(NEWS)
    with engine.begin() as connection:
        connection.execute(update(notifications).values(status="sending"))
    assert notifier.send(NEWS) == "throttled"


def test_titles_fit_a_lock_screen_and_say_the_verdict_first() -> None:
    figures = dict(pnl="-12345.60", daily_return=-0.0123, equity="987654.40", orders=40, fills=38, matched=False)
    ended = run_ended("2024-01-08-alpha158_ls", "failed", figures, "http://desk/x.html")
    failed = run_failed("2024-01-08-alpha158_ls", "", "the exchange does not answer", resume="tradenb paper-run")
    assert ended.kind == failed.kind == "failure"
    assert "NOT RECONCILED" in ended.body
    assert max(len(m.title) for m in (ended, failed)) < 75
    assert max(m.body.count("\n") for m in (ended, failed)) < 6


def test_a_link_is_the_browsers_where_one_is_named(tmp_path: Path) -> None:
    page = tmp_path / "runs" / "2024-01-08" / "r" / "6_report.html"
    plain = load({"core.root": tmp_path}, env={})
    named = load({"core.root": tmp_path, "reports.link": "https://desk.example/r/"}, env={})
    assert page_link(plain, page) == str(page)
    assert page_link(named, page) == "https://desk.example/r/2024-01-08/r/6_report.html"


def test_the_settings_describe_the_notifier(tmp_path: Path) -> None:
    values = {"core.root": tmp_path, "notify.on": "halt", "notify.throttle_minutes": 3, "notify.timeout_s": 4}
    made = notifier_of(load(values, env={"TRADENB_NOTIFY__URLS": "json://a, json://b"}))
    assert (made.on, made.throttle, made.timeout_s) == (("halt",), timedelta(minutes=3), 4)
    assert made.urls == ("json://a", "json://b")
