"""Prefect for one process: its server as a thread of ours, unless somebody runs one already.

Prefect's own ephemeral server is a child process that outlives a killed parent. Served from a thread, on a free loopback port, it ends with this
process however that ends, and starts in a fraction of the time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
}


@contextmanager
def scheduler(root: Path) -> Iterator[str]:
    "Flows within the block report to a Prefect server; yields the URL of its API. Call it before anything imports prefect."
    prepare(root)
    if running := os.environ.get("PREFECT_API_URL"):
        yield running
        return
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tradenb.core.web import Server

    server = Server(create_app(ephemeral=True)).start(timeout_s=120)
    try:
        with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
            yield f"{server.url}/api"
    finally:
        deliver_events()
        server.stop()


def deliver_events() -> None:
    "Hand over what the flows have to tell, and forget the way to this server: its events would be tried for minutes after it is gone."
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=5, at_exit=False)


def prepare(root: Path) -> None:
    "Prefect's home below the data root, and no chatter; what the environment says already stands."
    home = root / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    for name, value in (QUIET | {"PREFECT_HOME": str(home)}).items():
        os.environ.setdefault(name, value)
