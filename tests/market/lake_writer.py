"A day of a lake's work, done in a process that can be killed: `lake_writer.py ROOT day N` dies after its Nth write, `ROOT compact N` likewise, `ROOT hold` keeps the lake for ever."

import os
import signal
import sys
import time
from datetime import UTC, date, datetime

import polars as pl

from tradenb.market import versions
from tradenb.market.actions import ACTION_SCHEMA, place_events
from tradenb.market.lake import Lake
from tradenb.market.upkeep import compact

FIRST, SECOND, THIRD = date(2023, 12, 29), date(2024, 1, 2), date(2024, 1, 3)
NOW = datetime(2024, 1, 9, tzinfo=UTC)


def bars(day: date, close: float) -> pl.DataFrame:
    prices = dict.fromkeys(("open", "high", "low", "close"), close)
    return pl.DataFrame({"symbol": ["A", "B"], "date": [day] * 2, **prices, "volume": [1, 2], "vwap": None})


def work(lake: Lake, day: date, before: date) -> None:
    "Every kind of write: a delivery, a new row, a changed one, a dropped one, an event, the record."
    delivered = bars(day, 2.0).with_columns(source=pl.lit("x"), ingested_at=pl.lit(NOW))
    paid = {"symbol": "A", "ex_date": day, "kind": "dividend", "ratio": 1.0, "cash": 0.5}
    actions = pl.DataFrame([paid], schema=ACTION_SCHEMA)
    member = {"universe": "u", "symbol": "A", "start": FIRST, "end": day, "has_history": True}
    with lake.writing(20) as draft:
        known = draft.read("raw_bars", start=day) if draft.exists("raw_bars") else delivered.clear()
        draft.append("raw_bars", delivered.join(known, on=["symbol", "date"], how="anti"))
        draft.merge("universe", pl.DataFrame([member]))
        draft.merge("bars", pl.concat([bars(before, 1.5), bars(day, 2.0)]))
        draft.merge("corporate_actions", actions)
        draft.merge("adjustments", place_events(actions, draft.read("bars")))
        draft.record(day, "test", NOW)


def die_after(writes: int) -> None:
    "Let the process be killed right after that many commits."
    real, left = versions.commit, [writes]  # what every write of the lake goes through

    def commit(*args: object, **how: object) -> None:
        real(*args, **how)  # type: ignore[arg-type]
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    versions.commit = commit


if __name__ == "__main__":
    lake = Lake(sys.argv[1])
    if sys.argv[2] == "hold":
        with lake.writing(5):
            print("held", flush=True)
            time.sleep(60)
    else:
        die_after(int(sys.argv[3]))
        work(lake, THIRD, SECOND) if sys.argv[2] == "day" else compact(lake, NOW, 2)
