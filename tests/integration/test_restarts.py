"""Services are killed (`kill -9`) again and again while they trade: when the dust settles, nothing is lost and nothing is there twice.

TRADENB_TEST_KILLS=200 is the long form: 200 kills in a run of 500 orders, on SQLite and on PostgreSQL. The moments are drawn by TRADENB_TEST_SEED.
"""

import os
from pathlib import Path

from sqlalchemy import Engine

from tests.integration.restarts import Arena, arena
from tradenb.core.clock import Stopwatch

KILLS = int(os.environ.get("TRADENB_TEST_KILLS", 20))
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
