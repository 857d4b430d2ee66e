"Our rules against our services: real metrics of all four, and an alert that goes from the database to a person."

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.ops.conftest import OPS, expressions, names
from tradenb.core import logs, metrics
from tradenb.core.clock import SimulatedClock, Stopwatch, SystemClock, new_york, sleep
from tradenb.core.db import connect, default_url, migrate
from tradenb.core.settings import Settings, load
from tradenb.execution.switch import Level, Switch
from tradenb.trading import records
from tradenb.trading.services import running

DAY = date(2019, 1, 3)
PATIENCE_S = 60
SERVICES = ("signals", "execution", "orchestrator", "exchange")


class Phone:
    "An address that Apprise can reach."

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        phone = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                phone.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture(scope="module")
def phone() -> Iterator[Phone]:
    made = Phone()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, phone: Phone) -> Iterator[Settings]:
    "The four services over a database in which a run failed in its second stage."
    root = tmp_path_factory.mktemp("desk")
    logs.configure("tests", root / "logs")
    told = {"TRADENB_NOTIFY__URLS": phone.url}
    settings = load({"core.root": root, "demo.symbols": 10, "demo.years": 1, "signals.poll_s": 0}, env=told)
    engine, clock = migrate(connect(default_url(root))), SimulatedClock(new_york(DAY, 9))
    spec = records.RunSpec("2019-01-02-alpha158_ls", date(2019, 1, 2), "alpha158_ls", "5e77", 7, 1_000_000, (), "a" * 32)  # type: ignore[arg-type]  # fmt: skip
    records.begin(engine, spec, clock)
    for stage, error in (("etl", None), ("train", "no bars")):
        records.begin_stage(engine, spec.run_id, stage, clock.now())
        records.end_stage(engine, spec.run_id, stage, clock.now(), 2.0, error=error)
    records.end(engine, spec.run_id, records.FAILED, clock.now(), "stage train: no bars")
    with running(settings, DAY) as ready:
        yield ready
    engine.dispose()


@pytest.fixture(scope="module")
def pages(desk: Settings) -> dict[str, str]:
    "What each service answers to Prometheus."
    urls = {name: getattr(desk.services, f"{name}_url") for name in SERVICES}
    return {name: httpx.get(f"{url}/metrics", timeout=60).text for name, url in urls.items()}


@pytest.mark.parametrize("service", SERVICES)
def test_promtool_has_nothing_to_say_of_the_metrics(
    tool: Callable[..., str], pages: dict[str, str], service: str
) -> None:
    assert tool("promtool", "check", "metrics", text=pages[service]) == ""


def test_every_metric_that_is_asked_for_is_there(pages: dict[str, str]) -> None:
    "Declared, that is: a counter with labels has no sample before it counts for the first time."
    declared = {name for page in pages.values() for name in re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE)}
    asked = {name for expression in expressions().values() for name in names(expression)}
    assert asked - declared == set()


def test_what_alerts_compare_with_has_samples(pages: dict[str, str]) -> None:
    "A gauge that is never there would be an alert that never fires; of the ledger's and the runs' none is missing."
    sampled = {
        name for page in pages.values() for name in re.findall(r"^(tradenb_\w+?)(?:\{.*\})? \S+$", page, re.MULTILINE)
    }
    wanted = {
        "tradenb_orders_unresolved",
        "tradenb_reconciliation_differences",
        "tradenb_kill_switch_scopes",
        "tradenb_broker_up",
        "tradenb_stream_up",
        "tradenb_database_up",
        "tradenb_run_state",
        "tradenb_run_abandoned",
        "tradenb_run_missed_sessions",
        "tradenb_data_age_sessions",
        "tradenb_data_root_free_bytes",
        "tradenb_model_drift_psi",
        "tradenb_model_trouble_timestamp_seconds",
    }
    assert wanted - sampled == set()
    assert wanted <= set(metrics.CATALOGUE)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent)
    try:
        yield
    finally:
        child.terminate()
        child.wait(60)


def watchers(desk: Settings, folder: Path, ports: dict[str, int]) -> dict[str, Path]:
    "Our configurations at the addresses of this test, and in a hurry."
    prometheus = yaml.safe_load((OPS / "prometheus/prometheus.yml").read_text())
    prometheus["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    prometheus["rule_files"] = [str(OPS / "prometheus/rules/*.yml")]
    prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ports['alertmanager']}"]
    job = next(job for job in prometheus["scrape_configs"] if job["job_name"] == "tradenb")
    for target in job["static_configs"]:
        url = getattr(desk.services, f"{target['labels']['service']}_url")
        target["targets"] = [url.removeprefix("http://")]
    prometheus["scrape_configs"] = [job]
    manager = yaml.safe_load((OPS / "alertmanager/alertmanager.yml").read_text())
    manager["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    hook = next(r for r in manager["receivers"] if r["name"] == "desk")["webhook_configs"][0]
    hook["url"] = f"{desk.services.orchestrator_url}/api/v1/alerts"
    key = folder / "api_key"
    key.write_text(desk.services.api_key.get_secret_value())  # type: ignore[union-attr]
    hook["http_config"]["authorization"]["credentials_file"] = str(key)
    files = {"prometheus": folder / "prometheus.yml", "alertmanager": folder / "alertmanager.yml"}
    for name, config in (("prometheus", prometheus), ("alertmanager", manager)):
        files[name].write_text(yaml.safe_dump(config))
    return files


def until(look: Callable[[], Any], what: str) -> Any:
    watch = Stopwatch()
    while not (seen := look()):
        assert watch.seconds < PATIENCE_S, what
        sleep(0.2)
    return seen


def firing(port: int) -> dict[str, dict[str, str]]:  # name: labels
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/alerts", timeout=5).raise_for_status().json()
    except httpx.HTTPError:  # it is still starting
        return {}
    return {a["labels"]["alertname"]: a["labels"] for a in answer["data"]["alerts"] if a["state"] == "firing"}


def test_an_alert_goes_from_the_database_to_a_phone(desk: Settings, phone: Phone, tmp_path: Path) -> None:
    "Prometheus reads our rules and our services, Alertmanager our routes; a failed run and a halt are heard, and so is the release."
    programs = {name: shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"no {' and no '.join(missing)} on PATH: apt-get install prometheus prometheus-alertmanager")
    ports = {name: free_port() for name in ("prometheus", "alertmanager")}
    files = watchers(desk, tmp_path, ports)
    engine = connect(default_url(desk.root))
    switch = Switch(engine, SystemClock())  # nobody of this process tells: the alert has to
    with ExitStack() as stack:
        for name, flags in (
            ("prometheus", ["--storage.tsdb.path=tsdb"]),
            ("alertmanager", ["--storage.path=store", "--cluster.listen-address="]),
        ):
            program = programs["prometheus" if name == "prometheus" else "prometheus-alertmanager"]
            command = [
                str(program),
                f"--config.file={files[name]}",
                f"--web.listen-address=127.0.0.1:{ports[name]}",
                *flags,
            ]
            stack.enter_context(process(command, tmp_path / f"{name}.log"))
        seen = lambda: heard if "RunFailed" in (heard := firing(ports["prometheus"])) else None
        heard = until(seen, "RunFailed does not fire")
        assert heard["RunFailed"]["strategy"] == "alpha158_ls"
        assert "Watchdog" in heard
        assert not {"ServiceDown", "BrokerDown", "DatabaseDown", "TradingHalted", "RunMissed", "DataStale"} & set(heard)
        titles = lambda: [post["title"] for post in phone.posts]
        until(lambda: "critical: The newest run of alpha158_ls failed" in titles(), "the failed run was not told")
        switch.engage("symbol:S001", Level.BLOCK, "ann", "news pending")
        until(lambda: "critical: Scopes in which trading is halted: 1" in titles(), "the halt was not told")
        switch.release("symbol:S001", "ann", "the news is out")
        until(
            lambda: any(t.startswith("resolved: Scopes in which trading") for t in titles()), "the release was not told"
        )
        assert not any("Watchdog" in title or "alarm works" in title for title in titles())
    engine.dispose()
