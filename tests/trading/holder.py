"""A process that begins a run when told, and holds it until it is killed.

usage: holder.py DATABASE RUN_ID     says `ready`, waits for a line, says `mine` or who is busy with the day, and waits again.
"""

import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal

from tradenb.core.clock import SystemClock
from tradenb.core.db import connect
from tradenb.core.errors import RunBusy
from tradenb.trading import records

DAY = date(2024, 1, 8)
SPEC = records.RunSpec("2024-01-08-s", DAY, "s", "5e77", 7, Decimal(1_000_000), (), "a" * 32)


def main(url: str, run_id: str) -> None:
    engine = connect(url)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        records.begin(engine, replace(SPEC, run_id=run_id), SystemClock())
        print("mine", flush=True)
        sys.stdin.readline()
    except RunBusy as busy:
        print(busy, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
