"""A whole trading day of 500 names: data, signals, orders over HTTP, fills, reconciliation, P&L and all reports, from the command to its end.

Each day is one `tradenb paper-run` in a process of its own. The first is cold: it takes in six years of history and trains. The days after it
are what a desk lives with: one more session, the model of yesterday. What the stages do not account for is the start of Python, of the
services and of the scheduler, and the index over all runs. On a busy machine the wall's clock says little: `cores_s` is what all cores worked.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tradenb.core.clock import Stopwatch

from . import Result
from ._measure import PROJECT, cores

SYMBOLS, WARM_DAYS = 500, 3
SETTINGS = {"demo.symbols": SYMBOLS, "portfolio.top_n": 50, "portfolio.bottom_n": 50}
PROGRAM = Path(sys.executable).with_name("tradenb")


def day(root: Path) -> dict[str, Any]:
    "One day: seconds of the whole command and of each stage. A day that did not go well is an error."
    told = root.parent / "day.json"
    values = SETTINGS | {"core.root": root}
    options = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    command = [str(PROGRAM), "paper-run", "--output", str(told), *options]
    watch, before = Stopwatch(), cores()
    subprocess.run(command, check=True, capture_output=True, cwd=PROJECT)
    wall, worked, result = watch.seconds, cores() - before, json.loads(told.read_text())
    if result["status"] != "completed":
        raise RuntimeError(f"{result['run_id']} ended as {result['status']}: {result['error']}")
    return {"wall": wall, "cores": worked, "orders": result["summary"]["orders"]} | {
        s["stage"]: s["seconds"] for s in result["stages"]
    }


def main() -> list[Result]:
    "The days after the first, their median; and the first."
    with TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        cold = day(root)
        warm = [day(root) for _ in range(WARM_DAYS)]
    stages = [name for name in cold if name not in ("wall", "cores", "orders")]
    middle = {name: median(one[name] for one in warm) for name in cold}
    around = median(one["wall"] - sum(one[name] for name in stages) for one in warm)
    return [
        ("daily.symbols", SYMBOLS, "names"),
        ("daily.orders", middle["orders"], "orders"),
        ("daily.wall_s", middle["wall"], "s"),
        *((f"daily.{name}_s", middle[name], "s") for name in stages),
        ("daily.around_s", around, "s"),
        ("daily.cores_s", middle["cores"], "s"),
        ("daily.cold_s", cold["wall"], "s"),
        ("daily.cold_etl_s", cold["etl"], "s"),
        ("daily.cold_train_s", cold["train"], "s"),
    ]
