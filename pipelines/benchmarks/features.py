"""Alpha158: ours beside pyqlib in one run, and what a day and a decade cost."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tradenb.features.oracle import open_qlib, qlib_alpha158, write_store
from tradenb.features.panel import Panel, random_panel
from tradenb.features.sets import compute, feature_set

FSET = feature_set("alpha158")
Result = tuple[str, float, str]


def seconds(work: Callable[[], object]) -> float:
    "Wall-clock time of one call."
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def ask_pyqlib(panel: Panel, expressions: list[str]) -> object:
    "All expressions of the open store as one frame."
    from qlib.data import D

    return D.features(list(panel.symbols), expressions, freq="day")


def against_pyqlib(panel: Panel, kernels: int = 2, rounds: int = 3) -> list[Result]:
    "Both make a long frame of the same panel, in turns; medians and their ratio."
    expressions = list(qlib_alpha158().values())
    ours, theirs = [], []
    with TemporaryDirectory() as tmp:
        open_qlib(write_store(panel, Path(tmp)), kernels)
        for _ in range(rounds):
            theirs.append(seconds(lambda: ask_pyqlib(panel, expressions)))
            ours.append(seconds(lambda: compute(panel, FSET, threads=kernels).frame()))
    return [
        ("features.pyqlib_s", median(theirs), "s"),
        ("features.ours_s", median(ours), "s"),
        ("features.vs_qlib", median(theirs) / median(ours), "x"),
    ]


def one_day(panel: Panel, rounds: int = 15) -> list[Result]:
    "The newest session of the whole universe from its last 61 bars."
    day = panel.tail(FSET.halo + 1)
    took = median(seconds(lambda: compute(day, FSET, start=day.dates[-1])) for _ in range(rounds))
    return [("features.day_ms", took * 1e3, "ms")]


def batch(panel: Panel, rounds: int = 3) -> list[Result]:
    "The whole history, values and model matrix."
    took = median(seconds(lambda: compute(panel, FSET)) for _ in range(rounds))
    block = compute(panel, FSET)
    matrix = median(seconds(block.matrix) for _ in range(rounds))
    return [("features.batch_s", took, "s"), ("features.matrix_s", matrix, "s")]


def main() -> list[Result]:
    "Ratio to pyqlib on 100 symbols × 1,260 sessions; a day and ten years of 500 symbols."
    universe = random_panel(500, 2520, seed=7)
    return [*against_pyqlib(random_panel(100, 1260, seed=7)), *one_day(universe), *batch(universe)]


if __name__ == "__main__":
    for name, value, unit in main():
        print(f"RESULT {name} {value:.4g} {unit}")
