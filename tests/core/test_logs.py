"Log lines: one schema whatever is said, whole lines whoever writes and dies, and work that never fails for its log."

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logged import lines
from tradenb.core import logs
from tradenb.core.clock import SimulatedClock, SystemClock
from tradenb.core.errors import InputError
from tradenb.core.logbook import Question, Tail, ask, since

NOON = datetime(2024, 1, 8, 12, tzinfo=UTC)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(said=st.dictionaries(st.text(), anything, max_size=4))
def test_whatever_is_said_becomes_one_line_of_the_schema(said):
    line = logs.as_line(logs.to_schema("info", {"event": "x", "service": "s"} | said, NOON.isoformat()))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert tuple(json.loads(line)) == logs.SCHEMA


@given(
    secret=st.sampled_from(["api_key", "X-API-Key", "broker_secret", "APCA-API-KEY-ID", "password", "Authorization"]),
    depth=st.integers(0, 4),
)
def test_secrets_are_masked_at_any_depth(secret, depth):
    said: object = {secret: "hunter2"}
    for level in range(depth):
        said = [said, 1] if level % 2 else {"inner": said}
    assert b"hunter2" not in logs.as_line(logs.to_schema("info", {"event": "x", "said": said}, ""))


def test_what_is_bound_stays_within_its_thread_and_goes_along_with_a_copied_context(log_folder):
    with logs.bind(trace_id="a" * 32), ThreadPoolExecutor(1) as pool:
        alone = pool.submit(logs.current_trace_id).result()
        along = pool.submit(copy_context().run, logs.current_trace_id).result()
    assert (alone, along, logs.current_trace_id()) == (None, "a" * 32, None)


def test_libraries_and_bugs_speak_in_the_same_schema(log_folder):
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("somebody").exception("it %s", "failed")
        logs.get_logger("execution").exception("turn_crashed")
    logging.getLogger("somebody").info("not worth a line")
    library, ours = lines(log_folder)
    assert [tuple(line) for line in (library, ours)] == [logs.SCHEMA] * 2
    assert (library["event"], library["context"]["message"]) == ("message", "it failed")
    assert all("RuntimeError: broken" in line["context"]["exception"] for line in (library, ours))
    assert (ours["level"], ours["service"]) == ("error", "execution")


def test_threads_write_whole_lines_and_all_are_counted(log_folder):
    before = logs.counts().get(("tests", "info"), 0)

    def many(number: int) -> None:
        for n in range(200):
            logs.get_logger().info("said", number=number, n=n, filling="x" * 500)

    threads = [threading.Thread(target=many, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(line["context"]["number"], line["context"]["n"]) for line in lines(log_folder)}
    assert len(found) == 1600 == len(lines(log_folder))
    assert logs.counts()["tests", "info"] - before == 1600


SPEAKER = """
import sys
from pathlib import Path
from tradenb.core import logs
logs.configure("speaker", Path(sys.argv[1]))
n = 0
while True:
    logs.get_logger().info("said", who=sys.argv[2], n=(n := n + 1), filling="x" * 700)
"""


def test_processes_that_share_a_file_and_are_killed_spoil_at_most_the_line_behind_their_last(tmp_path):
    speakers = [subprocess.Popen([sys.executable, "-c", SPEAKER, tmp_path, str(n)]) for n in range(3)]
    file = lambda: next(iter(tmp_path.glob("speaker-*.jsonl")), None)
    while not (file() and file().stat().st_size > 2_000_000):
        assert all(speaker.poll() is None for speaker in speakers)
    for speaker in speakers:
        speaker.send_signal(signal.SIGKILL)
        speaker.wait()
    heard: dict[str, list[int]] = {}
    spoilt = 0
    for line in file().read_bytes().splitlines():
        try:
            context = json.loads(line)["context"]
        except json.JSONDecodeError:
            spoilt += 1
        else:
            heard.setdefault(context["who"], []).append(context["n"])
    assert spoilt <= len(speakers)
    missing = sum(max(ns) - len(ns) for ns in heard.values())
    assert missing <= spoilt and all(ns == sorted(set(ns)) for ns in heard.values())


FULL = """
import resource, sys
from pathlib import Path
from tradenb.core import logs
logs.configure("full", Path(sys.argv[1]))
logs.get_logger().info("said", n=0)
size = next(Path(sys.argv[1]).iterdir()).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
for n in range(1, 4):
    logs.get_logger().info("said", n=n)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logs.get_logger().info("said", n=4)
print(logs.lost())
"""


def test_a_full_disk_costs_lines_and_no_work(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "3"
    assert ask(tmp_path, Question())["context"].to_list() == ['{"n":0}', '{"n":4}']


def test_a_new_day_is_a_new_file_and_logs_can_be_sent_elsewhere(tmp_path, log_folder):
    clock = SimulatedClock(datetime(2024, 1, 8, 23, 59, 59, tzinfo=UTC))
    logs.configure("execution", tmp_path / "desk", clock=clock)
    logs.get_logger().info("evening")
    clock.advance(timedelta(seconds=2))
    logs.get_logger().info("night")
    logs.configure("tests", log_folder)
    logs.get_logger().info("elsewhere")
    assert [p.name for p in sorted((tmp_path / "desk").iterdir())] == [
        "execution-2024-01-08.jsonl",
        "execution-2024-01-09.jsonl",
    ]
    assert [line["event"] for line in lines(log_folder)] == ["elsewhere"]


# ---- questions

symbols, services = st.sampled_from(["AAPL", "KO", "it's"]), st.sampled_from(["execution", "signals"])
entries = st.fixed_dictionaries(
    {
        "minute": st.integers(0, 180),
        "level": st.sampled_from(logs.LEVELS),
        "service": services,
        "event": st.sampled_from(["order_sent", "order_denied"]),
        "trace_id": st.none() | st.sampled_from(["a" * 32, "ab" * 16]),
        "run_id": st.none() | st.just("2024-01-08-demo"),
        "symbol": st.none() | symbols,
    }
)
questions = st.builds(
    Question,
    trace=st.none() | st.sampled_from(["a" * 32, "aa", "ab"]),
    run=st.none() | st.just("2024-01-08-demo"),
    level=st.none() | st.sampled_from([*logs.LEVELS, "WARNING"]),
    service=st.none() | services,
    event=st.none() | st.just("order_sent"),
    symbol=st.none() | symbols,
    since=st.none() | st.integers(0, 180).map(lambda m: NOON + timedelta(minutes=m)),
    until=st.none() | st.integers(0, 180).map(lambda m: NOON + timedelta(minutes=m)),
)


def stamp(minute: int) -> str:
    return (NOON + timedelta(minutes=minute)).isoformat(timespec="microseconds")


def is_meant(q: Question, e: dict) -> bool:
    "What a question means, said a second time."
    return (
        (q.trace is None or (e["trace_id"] or "").startswith(q.trace))
        and (q.run is None or e["run_id"] == q.run)
        and (q.level is None or logs.LEVELS.index(e["level"]) >= logs.LEVELS.index(q.level.lower()))
        and all(getattr(q, name) in (None, e[name]) for name in ("service", "event", "symbol"))
        and (q.since is None or stamp(e["minute"]) >= q.since.isoformat(timespec="microseconds"))
        and (q.until is None or stamp(e["minute"]) <= q.until.isoformat(timespec="microseconds"))
    )


@settings(max_examples=25)
@given(said=st.lists(entries, max_size=12), question=questions)
def test_asked_and_followed_are_the_lines_that_are_meant(tmp_path_factory, said, question):
    folder = tmp_path_factory.mktemp("logs")
    tail = Tail(folder, question)
    for number, e in enumerate(said):
        context = {"n": number} | ({"symbol": e["symbol"]} if e["symbol"] else {})
        line = {
            "timestamp": stamp(e["minute"]),
            **{k: e[k] for k in ("level", "service", "event", "trace_id", "run_id")},
            "context": context,
        }
        with (folder / f"{e['service']}-2024-01-08.jsonl").open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
    meant = sorted(n for n, e in enumerate(said) if is_meant(question, e))
    for found in (ask(folder, question), tail.look()):
        assert sorted(json.loads(context)["n"] for context in found["context"]) == meant
        assert found["timestamp"].is_sorted()


def test_only_the_newest_are_given_where_so_many_are_asked_for(log_folder):
    for n in range(5):
        logs.get_logger().info("said", n=n)
    assert [json.loads(c)["n"] for c in ask(log_folder, Question(), newest=2)["context"]] == [3, 4]


def test_files_of_days_before_are_not_even_opened(log_folder):
    log_folder.mkdir(parents=True, exist_ok=True)
    (log_folder / "execution-2020-01-01.jsonl").touch()
    os.chmod(log_folder / "execution-2020-01-01.jsonl", 0)
    logs.get_logger().info("said")
    assert ask(log_folder, Question(since=since("1h", SystemClock().now()))).height == 1


@given(text=st.text(max_size=12))
def test_a_time_is_an_aware_instant_or_refused(text):
    with suppress(InputError):
        assert since(text, NOON).tzinfo is not None
