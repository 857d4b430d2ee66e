"""Prefect for one process: its server as a thread of ours, unless somebody runs one already.

Prefect's own ephemeral server is a child process that outlives a killed parent. Served from a thread, on a free loopback port, it ends with this
process however that ends, and starts in a fraction of the time. A server that runs already is used instead: the one that the environment names, the
one of `prefect.api_url`, or the one that `make up` started on this data root.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tradenb.core.settings import Settings

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
}


def server_of(settings: Settings) -> str | None:
    "The URL of the API of a Prefect server that runs already; None: there is none."
    from pipelines.services import running_scheduler

    return os.environ.get("PREFECT_API_URL") or settings.prefect.api_url or running_scheduler(settings.root)


def ui_of(settings: Settings) -> str | None:
    "The address of that server's pages."
    api = server_of(settings)
    return api.rstrip("/").removesuffix("/api") if api else None


@contextmanager
def scheduler(settings: Settings) -> Iterator[str]:
    "Flows within the block report to a Prefect server; yields the URL of its API. Call it before anything imports prefect."
    prepare(settings.root)
    found = server_of(settings)
    if found is None:
        with served() as url, pointed_at(url):
            yield url
    else:
        there = found == os.environ.get("PREFECT_API_URL")
        with nullcontext() if there else pointed_at(found), written_down():
            yield found


@contextmanager
def served() -> Iterator[str]:
    "Prefect's server as a thread of this process."
    from prefect.server.api.server import create_app

    from tradenb.core.web import Server

    server = Server(create_app(ephemeral=True)).start(timeout_s=120)
    try:
        yield f"{server.url}/api"
    finally:
        server.stop()


@contextmanager
def pointed_at(url: str) -> Iterator[None]:
    "Within the block this process reports to the server at `url`."
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            deliver_events()


@contextmanager
def written_down() -> Iterator[None]:
    "Within the block what flows and tasks say stands in the pages of their server, and not on the terminal, which has its own way to show it. Where the environment lets Prefect talk (a worker), it talks as told."
    import prefect.main  # sets up Prefect's logging, which would undo this  # noqa: F401

    loggers = [logging.getLogger(f"prefect.{kind}_runs") for kind in ("flow", "task")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers if os.environ.get("PREFECT_LOGGING_LEVEL") == QUIET["PREFECT_LOGGING_LEVEL"] else ():
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate


def deliver_events() -> None:
    "Hand over what the flows have to tell, and forget the way to this server: its events would be tried for minutes after it is gone."
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=5, at_exit=False)
    APILogWorker.drain_all(timeout=5, at_exit=False)


def prepare(root: Path) -> None:
    "Prefect's home below the data root, and no chatter; what the environment says already stands."
    home = root / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    for name, value in (QUIET | {"PREFECT_HOME": str(home)}).items():
        os.environ.setdefault(name, value)
