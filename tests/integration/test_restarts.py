"""Services are killed (`kill -9`) again and again while they trade: when the dust settles, nothing is lost and nothing is there twice.

TRADENB_TEST_KILLS=200 is the long form: 200 kills in a run of 500 orders, on SQLite and on PostgreSQL. The moments are drawn by TRADENB_TEST_SEED.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, NullPool, create_engine, text

from tests.integration.restarts import Arena, arena
from tradenb.core.clock import Stopwatch, sleep
from tradenb.core.db import connect, migrate

KILLS = int(os.environ.get("TRADENB_TEST_KILLS", 8))
SEED = int(os.environ.get("TRADENB_TEST_SEED", 7))
ORDERS = 5 * KILLS // 2
WAVES = min(10, max(2, ORDERS // 50))


def fight(one: Arena, engine: Engine, kills: int, exchange_kills: float = 0.1) -> None:
    "All waves, then the books."
    watch, spent = Stopwatch(), 0
    for wave in range(WAVES):
        share = kills * (wave + 1) // WAVES - spent
        one.trade(ORDERS // WAVES, share, exchange_kills)
        spent += share
    one.check(engine)
    print(f"\nseed {one.seed}, {engine.dialect.name}: {one.story(watch.seconds)}")


def test_nothing_is_lost_and_nothing_is_doubled_however_often_processes_die(engine: Engine, database_url: str, tmp_path: Path) -> None:  # fmt: skip
    with arena(tmp_path, database_url, seed=SEED) as one:
        fight(one, engine, KILLS)
        assert one.nursery.kills.total() == KILLS


def test_two_gateways_on_one_database_lose_and_double_nothing(postgres_url: str, tmp_path: Path) -> None:
    with connected(postgres_url) as engine, arena(tmp_path, postgres_url, gateways=2, seed=SEED) as one:
        fight(one, engine, KILLS // 2)


def test_cut_connections_to_the_database_lose_and_double_nothing(postgres_url: str, tmp_path: Path) -> None:
    with connected(postgres_url) as engine, arena(tmp_path, postgres_url, seed=SEED) as one:
        with again_and_again(60, 0.05, lambda: cut(engine)):
            one.trade(40, kills=0)
        one.check(engine)
        print(f"\n{dict(one.repeats)}")


def test_a_database_that_is_gone_for_a_while_loses_and_doubles_nothing(postgres_url: str, tmp_path: Path) -> None:
    with connected(postgres_url) as engine, arena(tmp_path, postgres_url, seed=SEED) as one:
        with again_and_again(4, 0.5, lambda: gone(engine, 1.0)):
            one.trade(40, kills=0)
        one.check(engine)
        print(f"\n{dict(one.repeats)}")


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    "A migrated database, to look into and to disturb."
    engine = migrate(connect(url))
    yield engine
    engine.dispose()


@contextmanager
def again_and_again(times: int, pause_s: float, work: Callable[[], object]) -> Iterator[None]:
    "The work, so many times from a thread while the block runs."
    over = threading.Event()

    def repeat() -> None:
        for _ in range(times):
            if over.wait(pause_s):
                return
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def administration(engine: Engine) -> Engine:
    "The server, seen from another of its databases."
    url = engine.url.set(database="postgres")
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)


def cut(engine: Engine) -> None:
    "Every connection to the database ends, whatever it is at."
    ends = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
    with administration(engine).connect() as connection:
        connection.execute(ends, {"name": engine.url.database})


def gone(engine: Engine, seconds: float) -> None:
    "Nobody gets into the database for a while."
    name = engine.url.database
    with administration(engine).connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        cut(engine)
        sleep(seconds)
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
