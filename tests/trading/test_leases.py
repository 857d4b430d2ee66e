"One process at a time works on a strategy's day, and a dead one holds up nobody: real processes on both databases."

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

import tests.patience  # noqa: F401  (whoever asks a server waits)
from tests.trading.holder import DAY, SPEC
from tradenb.core import web
from tradenb.core.clock import SimulatedClock, SystemClock, new_york, sleep
from tradenb.core.errors import InputError, RunBusy
from tradenb.core.settings import load
from tradenb.trading import records
from tradenb.trading.leases import LEASE, Hold, Owner, birth_of, holding, is_dead, place, this_process
from tradenb.trading.service import create_app

ELSEWHERE = "desk2:4711:815:other1"
PROJECT = Path(__file__).resolve().parents[2]


class Process:
    "A real process that begins a run when told, and holds it until it is killed."

    def __init__(self, url: str, run_id: str = SPEC.run_id):
        command = [sys.executable, "-m", "tests.trading.holder", url, run_id]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=PROJECT, text=True, **pipes)  # type: ignore[call-overload]
        assert self.said() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        print(file=self.process.stdin, flush=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def processes(url: str, *run_ids: str) -> Iterator[list[Process]]:
    started = [Process(url, run_id) for run_id in run_ids]
    try:
        yield started
    finally:
        for one in started:
            one.kill()


def test_of_processes_that_begin_at_once_one_works_and_the_others_name_it(engine: Engine, database_url: str):
    with processes(database_url, SPEC.run_id, SPEC.run_id, "by-hand") as rivals:
        for one in rivals:
            one.go()
        said = {one.pid: one.said() for one in rivals}
        (winner,) = (pid for pid, words in said.items() if words == "mine")
        losers = [words for words in said.values() if words != "mine"]
        assert all(f"is being worked on by process {winner} of " in words for words in losers), said
        with pytest.raises(RunBusy, match=f"process {winner} of"):
            records.begin(engine, SPEC, SystemClock())
        next(one for one in rivals if one.pid == winner).kill()
        assert records.begin(engine, SPEC, SystemClock()).lease_owner == this_process()


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(new_york(DAY, 9))


def test_a_silent_holder_on_another_machine_is_waited_for_until_its_lease_runs_out(engine, clock):
    records.begin(engine, SPEC, clock, ELSEWHERE)
    clock.advance(LEASE / 2)
    assert Hold(engine, SPEC.run_id, ELSEWHERE, clock).renew()
    clock.advance(LEASE / 2)
    with pytest.raises(RunBusy, match=f"process 4711 of desk2 until {clock.now() + LEASE / 2:%H:%M:%S} UTC"):
        records.begin(engine, SPEC, clock)
    clock.advance(LEASE / 2)
    assert records.begin(engine, SPEC, clock).lease_owner == this_process()


def test_who_lost_the_lease_neither_goes_on_nor_says_how_the_run_ended(engine, clock):
    records.begin(engine, SPEC, clock, ELSEWHERE)
    clock.advance(LEASE)
    records.begin(engine, SPEC, clock)
    with pytest.raises(RunBusy, match="taken over"):
        Hold(engine, SPEC.run_id, ELSEWHERE, clock).require()
    with pytest.raises(RunBusy):
        records.end(engine, SPEC.run_id, records.FAILED, clock.now(), "frozen", owner=ELSEWHERE)
    assert records.require(engine, SPEC.run_id).status == records.RUNNING


def test_a_late_holder_goes_on_when_nobody_took_the_run(engine, clock):
    records.begin(engine, SPEC, clock, ELSEWHERE)
    clock.advance(3 * LEASE)
    assert Hold(engine, SPEC.run_id, ELSEWHERE, clock).renew()


def test_a_run_that_ended_is_held_by_nobody_and_one_that_is_over_by_nobody_again(engine, clock):
    records.begin(engine, SPEC, clock, ELSEWHERE)
    records.end(engine, SPEC.run_id, records.FAILED, clock.now(), "stage etl", owner=ELSEWHERE)
    assert records.begin(engine, SPEC, clock).lease_owner == this_process()
    records.end(engine, SPEC.run_id, records.COMPLETED, clock.now())
    assert records.begin(engine, SPEC, clock, ELSEWHERE).lease_owner is None
    assert not records.hold(engine, SPEC.run_id, ELSEWHERE, clock)


def test_another_day_and_another_strategy_are_nobody_elses_business(engine, clock):
    records.begin(engine, SPEC, clock, ELSEWHERE)
    for other in (replace(SPEC, run_id="a", trade_date=date(2024, 1, 9)), replace(SPEC, run_id="b", strategy="t")):
        assert records.begin(engine, other, clock).lease_owner == this_process()
    with pytest.raises(InputError, match="not one of t for 2024-01-08"):
        records.begin(engine, replace(SPEC, strategy="t"), clock)


def test_a_block_that_ends_in_an_error_gives_the_run_back(engine):
    records.begin(engine, SPEC, SystemClock())
    with pytest.raises(ZeroDivisionError), holding(engine, SPEC.run_id, this_process()):
        raise ZeroDivisionError
    assert records.require(engine, SPEC.run_id).lease_owner is None


def test_only_a_process_of_this_machine_that_has_ended_is_dead():
    me = Owner.parse(this_process())
    assert me is not None and len(str(me)) <= 64
    assert not is_dead(str(me))
    assert is_dead(str(replace(me, birth=me.birth - 1)))  # the same id, given to another process since
    assert not is_dead(str(replace(me, birth=me.birth - 1, place="other1")))
    assert not is_dead("somebody by hand")
    assert birth_of(2**22 + 1) is None
    assert len(place()) == 6


SERVE = """
import sys
from tests.trading.test_leases import served
port, root, url, edge = sys.argv[1:]
served(int(port), root, url, edge)
"""


def desk_settings(root: str, edge: str):
    urls = {f"services.{name}_url": edge for name in ("signals", "execution", "exchange")}
    return {"core.root": root} | urls, {"TRADENB_SERVICES__API_KEY": "k3y"}


def served(port: int, root: str, url: str, edge: str) -> None:
    "The orchestrator in a process of its own."
    values, env = desk_settings(root, edge)
    settings = load(values, env=env | {"TRADENB_CORE__DATABASE_URL": url}, file=PROJECT / "settings.ini")
    web.serve_forever(create_app(settings, SystemClock()), "127.0.0.1", port)


def slow_edge(asked: threading.Event, answer: threading.Event) -> FastAPI:
    "A gateway that takes its time to say what is held, and then cannot."
    app = FastAPI()

    @app.get("/api/v1/positions", status_code=503)
    def positions() -> dict[str, str]:
        asked.set()
        answer.wait(60)
        return {"code": "ServiceUnavailable", "detail": "the gateway is stopping"}

    return app


def ask(url: str) -> httpx.Response:
    "Have the day's orders planned and sent."
    body, headers = {"trade_date": str(DAY)}, {"X-API-Key": "k3y"}
    return httpx.post(f"{url}/api/v1/orchestration/run", json=body, headers=headers, timeout=60)


def started(port: int, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(port), *arguments], cwd=PROJECT)
    while True:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/", timeout=60)
            return process
        assert process.poll() is None
        sleep(0.1)


def free_port() -> int:
    with web.listen("127.0.0.1") as one:
        return int(one.getsockname()[1])


def test_of_two_orchestrators_one_works_and_the_other_answers_409_and_says_who(engine, database_url, tmp_path):
    asked, answer, port = threading.Event(), threading.Event(), free_port()
    first = f"http://127.0.0.1:{port}"
    with web.serving(slow_edge(asked, answer)) as edge:
        process = started(port, str(tmp_path / "data"), database_url, edge)
        values, env = desk_settings(str(tmp_path / "data"), edge)
        settings = load(values, env=env, file=PROJECT / "settings.ini")
        with web.serving(create_app(settings, SystemClock(), engine)) as second:
            thread = threading.Thread(target=cut, args=(first,))
            thread.start()
            assert asked.wait(60)
            busy = ask(second)
            listed = httpx.get(f"{first}/api/v1/orchestration/runs").json()["runs"]
            process.kill()
            process.wait()
            thread.join()
            answer.set()
            after = ask(second)
    assert (busy.status_code, busy.json()["code"]) == (409, "RunBusy")
    assert f"process {process.pid} of" in busy.json()["detail"]
    assert f"process {process.pid} of" in listed[0]["held_by"]
    assert (after.status_code, after.json()["code"]) == (503, "ServiceUnavailable")
    assert records.require(engine, "2024-01-08-alpha158_ls").lease_owner is None


def cut(url: str) -> None:
    "A request whose service dies."
    with contextlib.suppress(httpx.HTTPError):
        ask(url)
