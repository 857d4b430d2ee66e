"Traces: headers from strangers, steps over threads and services, and a collector that may be away."

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import tests.patience  # noqa: F401  (whoever asks a server waits)
from tests.logged import lines
from tradenb.core import logs, tracing, web
from tradenb.core.clock import Stopwatch
from tradenb.core.settings import load

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


# ---- headers

headers = st.lists(
    st.tuples(
        st.sampled_from([b"traceparent", b"x-trace-id", b"x-run-id", b"host"]),
        st.binary(max_size=80) | st.sampled_from([TRACE.encode(), f"00-{TRACE}-{SPAN}-01".encode(), b"0" * 32]),
    ),
    max_size=5,
)


@given(headers)
def test_whatever_comes_in_is_a_trace_a_parent_and_a_run_or_none(given_headers):
    trace, parent, run = tracing.arriving(given_headers)
    assert len(trace) == 32 and int(trace, 16) != 0
    assert parent is None or (len(parent) == 16 and int(parent, 16) != 0)
    assert run is None or (0 < len(run) <= 64 and run.isascii() and run.isprintable())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traceparent", f"00-{'0' * 32}-{SPAN}-01"),
        ("traceparent", f"00-{TRACE}-{'0' * 16}-01"),
        ("traceparent", f"00-{TRACE.upper()}-{SPAN}-01"),
        ("traceparent", f"00-{TRACE}-{SPAN}"),
        ("x-trace-id", "0" * 32),
        ("x-trace-id", TRACE + "0"),
    ],
)
def test_an_id_that_is_none_starts_a_trace_of_its_own(name, value):
    trace, parent, _ = tracing.arriving([(name.encode(), value.encode())])
    assert trace not in value
    assert parent is None


def test_of_both_headers_the_one_that_knows_its_parent_wins_in_either_order():
    both = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"x-trace-id", b"a" * 32)]
    assert tracing.arriving(both) == tracing.arriving(both[::-1]) == (TRACE, SPAN, None)


def test_a_later_version_of_the_standard_may_say_more():
    assert tracing.arriving([(b"traceparent", f"cc-{TRACE}-{SPAN}-01-what-the-future-brings".encode())])[:2] == (
        TRACE,
        SPAN,
    )


def test_nothing_leaves_outside_of_a_trace_and_everything_within():
    assert tracing.leaving() == {}
    with logs.bind(trace_id=TRACE):
        assert tracing.leaving() == {"X-Trace-ID": TRACE}
        with logs.bind(span=SPAN, run_id="2024-01-08-demo"):
            assert tracing.leaving()["traceparent"] == f"00-{TRACE}-{SPAN}-01"
            assert tracing.leaving()["X-Run-ID"] == "2024-01-08-demo"


# ---- over services


def test_a_call_from_service_to_service_is_a_branch_of_one_tree(log_folder):
    inner = web.create_app("inner", "the one that is called")
    outer = web.create_app("outer", "the one that calls")

    @inner.get("/prices/{symbol}")
    def price(symbol: str) -> dict[str, str]:
        return {"price": "187.15"}

    with web.serving(inner) as there:

        @outer.get("/value")
        def value() -> Any:
            calls = [lambda n=n: httpx.get(f"{there}/prices/{n}", headers=tracing.leaving()).json() for n in "AB"]
            with ThreadPoolExecutor(2) as pool:
                return [*pool.map(lambda call: call(), [lambda c=c, x=copy_context(): x.run(c) for c in calls])]

        with web.serving(outer) as url, logs.bind(run_id="2024-01-08-demo"), tracing.step("asking", "client"):
            answer = httpx.get(f"{url}/value", headers=tracing.leaving())
    said = {(line["service"], line["event"]): line for line in lines(log_folder)}
    asking, called = said["client", "step"], said["outer", "request"]
    inside = [line for line in lines(log_folder) if line["service"] == "inner"]
    assert {line["trace_id"] for line in lines(log_folder)} == {answer.headers["x-trace-id"]}
    assert {line["run_id"] for line in lines(log_folder)} == {"2024-01-08-demo"}
    assert called["context"]["parent"] == asking["context"]["span"]
    assert [line["context"]["parent"] for line in inside] == [called["context"]["span"]] * 2
    assert {line["context"]["route"] for line in inside} == {"/prices/{symbol}"}


def test_a_crash_is_told_within_its_trace_and_questions_about_life_only_at_level_debug(log_folder):
    app = web.create_app("broken", "it breaks")

    @app.get("/")
    def never() -> None: ...

    @app.get("/break")
    def break_() -> None:
        raise RuntimeError("a bug")

    with web.serving(app) as url:
        httpx.get(f"{url}/metrics")
        answer = httpx.get(f"{url}/break", headers={"X-Trace-ID": TRACE})
        count = httpx.get(f"{url}/metrics").text
    assert (answer.status_code, answer.headers["x-trace-id"]) == (500, TRACE)
    told = [(line["level"], line["event"]) for line in lines(log_folder) if line["trace_id"] == TRACE]
    assert told == [("error", "request_crashed"), ("info", "request")]
    assert {line["level"] for line in lines(log_folder) if line["context"].get("route") == "/metrics"} == {"debug"}
    assert 'tradenb_http_request_duration_seconds_count{method="GET",route="/break",status="500"} 1.0' in count
    assert 'tradenb_log_lines_total{level="error",service="broken"}' in count


def test_strange_paths_and_methods_make_no_series_of_their_own(log_folder):
    with web.serving(web.create_app("plain", "nothing special")) as url:
        for method in ("PROPFIND", "MKCOL", "SEARCH"):
            httpx.request(method, f"{url}/nowhere/{method}")
        count = httpx.get(f"{url}/metrics").text
    series = [line for line in count.splitlines() if line.startswith("tradenb_http_request_duration_seconds_count")]
    assert len(series) == 1
    assert 'method="other",route="unmatched"' in series[0]


# ---- to a collector


class Receiver(ThreadingHTTPServer):
    "An OTLP/HTTP receiver that keeps what it gets."

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[tuple[str, Any]] = []
        self.paths: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.add(self.path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            name = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.server.spans += [(name, span) for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    tracing.export_to("")
    server.shutdown()
    server.server_close()


def test_steps_and_requests_arrive_at_a_collector_as_the_log_has_them(tmp_path, log_folder, receiver):
    settings = load({"core.root": str(tmp_path), "telemetry.otlp_endpoint": receiver.url}, env={})
    tracing.observe(settings, "run")
    app = web.create_app("signals", "an example")

    @app.get("/break")
    def break_() -> None:
        raise RuntimeError("a bug")

    with web.serving(app) as url, tracing.step("daily", "flow", rows=3):
        httpx.get(f"{url}/break", headers=tracing.leaving())
    tracing.flush()
    spans = {(service, span.name): span for service, span in receiver.spans}
    daily, request = spans["flow", "daily"], spans["signals", "GET /break"]
    assert receiver.paths == {"/v1/traces"}
    assert request.trace_id == daily.trace_id
    assert request.parent_span_id == daily.span_id
    assert (request.kind, request.status.code, daily.status.code) == (2, 2, 0)  # a server's; an error; unset
    assert daily.start_time_unix_nano <= request.start_time_unix_nano < request.end_time_unix_nano
    attributes = {a.key: a.value for a in request.attributes}
    assert attributes["http.response.status_code"].int_value == 500
    logged = {
        line["context"]["span"]: line["trace_id"] for line in lines(log_folder) if line["event"] in ("step", "request")
    }
    assert logged.items() <= {(span.span_id.hex(), span.trace_id.hex()) for _, span in receiver.spans}


def test_the_same_traces_are_kept_whoever_decides(receiver):
    kept = []
    for _ in range(2):  # two services
        tracing.export_to(receiver.url, sample=0.5)
        for n in range(40):
            with logs.bind(trace_id=f"{n * 2**120 // 40 * 251 % 2**128 | 1:032x}"), tracing.step("x", "s"):
                pass
        tracing.export_to("")
        kept.append({span.trace_id for _, span in receiver.spans})
        receiver.spans.clear()
    assert kept[0] == kept[1]
    assert all(int.from_bytes(trace[8:]) < 2**63 for trace in kept[0])


def test_a_collector_that_is_away_fails_nothing_and_holds_up_little(log_folder):
    tracing.export_to("http://127.0.0.1:9")
    with tracing.step("daily", "flow"):
        pass
    watch = Stopwatch()
    tracing.export_to("")
    assert watch.seconds < 30  # OpenTelemetry's own patience is a minute
    assert [line["event"] for line in lines(log_folder) if line["service"] == "flow"] == ["step"]


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported():
    code = "import sys; from tradenb.core import tracing\nwith tracing.step('x', 's'): pass\nprint(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        == "False"
    )
