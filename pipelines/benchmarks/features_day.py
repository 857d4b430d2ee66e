"""One more day: Alpha158 of five hundred symbols on the newest session, from bars in memory.

Ours takes a panel of many years, cuts the last sessions that the features look at and computes them; a third turn begins one step
before, at a long frame of those sessions' bars. pyqlib is asked for the same session of its own store, which the system holds in memory.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tradenb.features.engine import Engine, compute
from tradenb.features.oracle import open_qlib, qlib_alpha158, write_store
from tradenb.features.panel import Panel, random_panel
from tradenb.features.sets import feature_set

from . import Result
from ._measure import explain, in_turns, serve
from .features import SEED, SESSIONS, SYMBOLS, THREADS, Work

ROUNDS = 10 * int(os.environ.get("TRADENB_BENCH_ROUNDS", 5))
MEANING = {
    "ours": "compiled kernels: the panel's last 61 sessions → values (features, symbols, 1)",
    "numpy": "the same program executed by NumPy",
    "frame": "compiled kernels, from a frame of the last 61 sessions' bars → panel → values",
    "qlib": f"D.features of the newest session, kernels = {THREADS}",
}


def day(panel: Panel, engine: Engine) -> Work:
    "From the panel of all years."
    fset, newest = feature_set("alpha158"), panel.dates[-1]
    return lambda: compute(panel.tail((fset.halo or 0) + 1), fset, start=newest, threads=THREADS, engine=engine)


def from_frame(panel: Panel) -> Work:
    "From bars as the lake returns them."
    fset = feature_set("alpha158")
    last = panel.tail((fset.halo or 0) + 1)
    bars, dates = last.frame(), last.dates
    return lambda: compute(
        Panel.from_bars(bars, dates, adjusted=False), fset, start=dates[-1], threads=THREADS, engine="numba"
    )


def pyqlib(panel: Panel) -> Work:
    "Its own cut: pyqlib reads what each expression needs."
    from qlib.data import D

    folder = TemporaryDirectory()
    open_qlib(write_store(panel, Path(folder.name)), THREADS)
    symbols, expressions, newest = list(panel.symbols), list(qlib_alpha158().values()), str(panel.dates[-1])
    return lambda: folder and D.features(symbols, expressions, newest, newest, freq="day")


MAKE: dict[str, Callable[[Panel], Work]] = {
    "ours": partial(day, engine="numba"),
    "numpy": partial(day, engine="numpy"),
    "frame": from_frame,
    "qlib": pyqlib,
}


def main() -> list[Result]:
    "Ours in turns, then pyqlib, which takes too long for as many."
    ours = in_turns("features_day", {name: [name] for name in MAKE if name != "qlib"}, ROUNDS, THREADS)
    measured = ours | in_turns("features_day", {"qlib": ["qlib"]}, max(1, ROUNDS // 10), THREADS)
    print(f"The newest of {SESSIONS} sessions, {SYMBOLS} symbols, {ROUNDS} turns (pyqlib {ROUNDS // 10})")
    explain(measured, MEANING)
    ms: list[Result] = [(f"features.day{'' if name == 'ours' else '_' + name}_ms", one.s * 1e3, "ms") for name, one in measured.items()]  # fmt: skip
    return [*ms, ("features.day_vs_qlib", measured["qlib"].s / measured["ours"].s, "x")]


if __name__ == "__main__":
    serve(MAKE[sys.argv[1]](random_panel(SYMBOLS, SESSIONS, SEED)))
