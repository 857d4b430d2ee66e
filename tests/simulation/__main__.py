"`python -m tests.simulation --seed S --days D [--runs N] [--jobs J] [--mutation NAME] [--calm] [--verbose]`."

import sys
from pathlib import Path
import tempfile
import argparse
from .database import Database
from .world import World

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--days", type=int, default=5)
parser.add_argument("--runs", type=int, default=1)
parser.add_argument("--calm", action="store_true")
parser.add_argument("--verbose", action="store_true")
a = parser.parse_args()
root = Path(tempfile.mkdtemp(dir="/dev/shm"))
db = Database(root)
for seed in range(a.seed, a.seed + a.runs):
    r = World(seed, a.days, root, db, a.verbose, a.calm)
    import time; c = time.process_time(); res = r.run(); print(f"cpu {(time.process_time() - c) / res.days * 1000:.0f} ms/day", end=" ")
    print(seed, res.days, f"{res.seconds:.2f}s", res.switches, res.crashes, res.orders, res.fills, res.hash, sum(res.injected.values()))
    for v in res.violations[:6]: print("   ", v)
