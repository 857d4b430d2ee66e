"""A parent that has imported everything and forks services: one that dies is born again at once.

usage: nursery.py     the services are a line on stdin, JSON: name → [service, port, environment, begin]. A line `name pid` on stdout per birth; when stdin ends, all are killed. `os.fork` from a single thread that has never opened a database, a socket or a thread pool: a restart costs what the service itself does, and not the imports.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from datetime import date

from tradenb.core.calendar import is_session
from tradenb.core.clock import sleep

USED = """alembic.command alpaca.trading.client alpaca.trading.stream httptools psycopg psycopg_binary
sqlalchemy.dialects.postgresql.psycopg sqlalchemy.dialects.sqlite.pysqlite uvicorn.lifespan.on uvicorn.loops.uvloop
uvicorn.protocols.http.httptools_impl uvicorn.protocols.websockets.websockets_sansio_impl
pipelines.benchmarks._servers tradenb.exchange.service tradenb.execution.service"""


def preload() -> None:
    "What the services import sooner or later, and the calendar, which is built once."
    for name in USED.split():
        importlib.import_module(name)
    is_session(date(2023, 8, 1))


def born(name: str, service: str, port: int, environment: dict[str, str], begin: str) -> int:
    "The child's process id, told to whoever listens."
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            quiet = os.open(os.devnull, os.O_RDWR)
            os.dup2(quiet, 0)
            os.dup2(quiet, 1)
            os.environ.clear()
            os.environ.update(environment)
            from pipelines.benchmarks._servers import serve

            serve(service, port, begin)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(name, pid, flush=True)
    return pid


def main() -> None:
    preload()
    gc.freeze()
    services = json.loads(sys.stdin.readline())
    alive = {born(name, *about): name for name, about in services.items()}
    try:
        while not select.select([sys.stdin], [], [], 0.003)[0]:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                name = alive.pop(pid)
                if not os.WIFSIGNALED(status):
                    sleep(1)  # it cannot start: what it says stands on stderr
                alive[born(name, *services[name])] = name
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
