"""Alpha158 of a universe: ours beside pyqlib, plain polars, KunQuant and the memory itself, and what a larger universe costs.

Every contender has a process of its own and two threads (pyqlib: kernels = 2), prepares bars in the form it wants them, warms up, and
is timed in turns with the others. A time goes from bars in memory to float32 values in memory.
TRADENB_BENCH_ROUNDS sets the number of turns, 5 if it is not set.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np

from tradenb.core.calendar import sessions as calendar
from tradenb.core.errors import DataError
from tradenb.features.engine import Engine, compute
from tradenb.features.oracle import disagreement, open_qlib, qlib_alpha158, write_store
from tradenb.features.panel import FIELDS, Panel, random_panel
from tradenb.features.sets import feature_set
from tradenb.features.stream import stream

from . import Result, _kunquant
from ._measure import Measured, explain, in_a_process, in_turns, peak_gib, seconds, serve

ROUNDS = int(os.environ.get("TRADENB_BENCH_ROUNDS", 5))
SYMBOLS, SESSIONS, SEED, THREADS = 500, 2520, 7, 2
SLOPE = (100, SYMBOLS, 2000)
Work = Callable[[], object]

MEANING = {
    "ours": "compiled kernels: panel → values (features, symbols, sessions)",
    "numpy": "the same program executed by NumPy, no compiler",
    "qlib": "D.features on its binary store, which the system holds in memory → frame; plus two worker processes that it starts each time",
    "polars": "long frame → frame of 158 columns, expressions within each symbol",
    "kunquant": f"KunQuant {_kunquant.VERSION}, compiled beforehand: arrays (sessions, symbols) → the same per feature; no missing bars, 32-bit sums",
    "floor": "reads what ours reads, writes as much as ours to fresh pages, computes nothing",
}


def ours(panel: Panel, engine: Engine) -> Work:
    "Ours."
    fset = feature_set("alpha158")
    return lambda: compute(panel, fset, threads=THREADS, engine=engine)


def pyqlib(panel: Panel) -> Work:
    "pyqlib 0.9.7 as its handlers call it."
    from qlib.data import D

    folder = TemporaryDirectory()
    open_qlib(write_store(panel, Path(folder.name)), THREADS)
    symbols, expressions = list(panel.symbols), list(qlib_alpha158().values())
    return lambda: folder and D.features(symbols, expressions, freq="day")


def polars(panel: Panel) -> Work:
    "Plain expressions."
    from ._polars158 import alpha158, bars_of

    bars = bars_of(panel)
    return lambda: alpha158(bars)


def memory(panel: Panel) -> Work:
    "As many bytes as the fields and the values of Alpha158 have."
    fields = [x.ravel() for x in panel.fields.values()]
    cells = 158 * panel.listed.size

    def work() -> object:
        out = np.empty(cells, np.float32)
        parts = [slice(i * cells // THREADS, (i + 1) * cells // THREADS) for i in range(THREADS)]
        threads = [Thread(target=out[part].fill, args=(1.0,)) for part in parts]
        for thread in threads:
            thread.start()
        total = sum(float(x.max()) for x in fields)
        for thread in threads:
            thread.join()
        return out, total

    return work


MAKE: dict[str, Callable[[Panel], Work]] = {
    "ours": partial(ours, engine="numba"),
    "numpy": partial(ours, engine="numpy"),
    "qlib": pyqlib,
    "polars": polars,
    "kunquant": partial(_kunquant.alpha158, threads=THREADS),
    "floor": memory,
}


def held_to_ours(symbols: int = 60, sessions: int = 600) -> None:
    "Plain polars says the same as ours, within 1e-5; raises `DataError` where it does not."
    from ._polars158 import alpha158, bars_of

    panel, fset = random_panel(symbols, sessions, SEED), feature_set("alpha158")
    values, frame = compute(panel, fset).values[:, panel.listed], alpha158(bars_of(panel)).select(fset.names)
    found = disagreement(frame.fill_null(np.nan).to_numpy().T, values)
    if found["missing"] or found["infinite"] or found["relative"] > 1e-5:
        raise DataError(f"polars and ours disagree ({found}): their times cannot be compared")


def race() -> dict[str, Measured]:
    "All contenders on the same panel; ours and the floor on a smaller and a larger one as well."
    entered = {name: (name, SYMBOLS) for name in MAKE}
    if reason := _kunquant.why_not():
        print(f"  left out: KunQuant, {reason}")
        del entered["kunquant"]
    others = {f"{name} {n}": (name, n) for n in SLOPE if n != SYMBOLS for name in ("ours", "floor")}
    return in_turns("features", entered | others, ROUNDS, THREADS)


def compared(measured: dict[str, Measured]) -> list[Result]:
    "Times, and how many times ours goes into them."
    s = {name: measured[name].s for name in MAKE if name in measured}
    times: list[Result] = [(f"features.{name}_s", took, "s") for name, took in s.items()]
    ratios: list[Result] = [
        (f"features.vs_{rival}", s[rival] / s["ours"], "x") for rival in ("qlib", "kunquant", "polars") if rival in s
    ]
    return [
        *times,
        *ratios,
        ("features.vs_floor", s["ours"] / s["floor"], "x"),
        ("features.numpy_vs_qlib", s["qlib"] / s["numpy"], "x"),
        ("features.peak_gib", measured["ours"].peak_gib, "GiB"),
    ]


def slope(measured: dict[str, Measured]) -> list[Result]:
    "Seconds for 100 symbols of each universe; linear is a ratio of 1."
    per_100 = {n: 100 * measured["ours" if n == SYMBOLS else f"ours {n}"].s / n for n in SLOPE}
    each: list[Result] = [(f"features.per_100_of_{n}_s", s, "s") for n, s in per_100.items()]
    return [*each, ("features.slope", per_100[SLOPE[-1]] / per_100[SLOPE[0]], "x")]


def write_bars(file: Path, symbols: int, group: int = 100) -> None:
    "Adjusted bars of many symbols in one file, sorted, a row group for each hundred."
    import pyarrow.parquet as pq

    dates = np.array(calendar(date(2014, 1, 2), date(2024, 12, 31))[:SESSIONS], "datetime64[D]")
    with ExitStack() as stack:
        writer: Any = None
        for at in range(0, symbols, group):
            panel = random_panel(min(group, symbols - at), SESSIONS, SEED + at)
            names = tuple(f"S{at + i:05d}" for i in range(panel.shape[0]))
            rows = replace(panel, symbols=names, dates=dates).frame().rename(lambda c: f"adj_{c}" if c in FIELDS else c)
            table = rows.to_arrow()
            writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema))
            writer.write_table(table)


def streamed(bars: str, few: str) -> dict[str, float]:
    "In this process: bars in Parquet → features in Parquet, warmed up on a file of few symbols."
    fset, times = feature_set("alpha158"), []
    for file in (few, *[bars] * min(ROUNDS, 3)):
        with TemporaryDirectory() as folder:
            times.append(seconds(partial(stream, file, fset, folder, threads=THREADS)))
    return {"s": median(times[1:]), "least": min(times[1:]), "peak_gib": peak_gib()}


def large_universe(symbols: int = 5000) -> list[Result]:
    "More symbols than one would hold in memory at once."
    with TemporaryDirectory() as folder:
        files = [Path(folder) / "bars.parquet", Path(folder) / "few.parquet"]
        for file, n in zip(files, (symbols, 200), strict=True):
            in_a_process("features", "write", file, n)
        found = in_a_process("features", "stream", *files)
    print(f"  {symbols:,} symbols from Parquet to Parquet: {found['s']:.1f} s, at least {found['least']:.1f} s, {found['peak_gib']:.2f} GiB")  # fmt: skip
    return [
        (f"features.stream{symbols}_s", found["s"], "s"),
        (f"features.stream{symbols}_gib", found["peak_gib"], "GiB"),
    ]


def main() -> list[Result]:
    "The race, its ratios, the slope of cost and the large universe."
    held_to_ours()
    print(
        f"{SYMBOLS} symbols × {SESSIONS} sessions, two threads each, {ROUNDS} turns: median and least by the clock, median of all cores together, peak memory of the process"
    )
    measured = race()
    explain(measured, MEANING | {name: f"{name} symbols" for name in measured.keys() - MEANING.keys()})
    return [*compared(measured), *slope(measured), *large_universe()]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", file, n]:
            write_bars(Path(file), int(n))
            print("{}")
        case ["stream", bars, few]:
            print(json.dumps(streamed(bars, few)))
        case [name, n]:
            serve(MAKE[name](random_panel(int(n), SESSIONS, SEED)))
