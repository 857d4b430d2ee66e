"The samples of the study: real bars through the gate, Alpha158, the label in three forms; computed once, kept in a folder."

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.benchmarks.gate import delivery
from tradenb.features.engine import compute
from tradenb.features.labels import label
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.market.actions import adjust
from tradenb.models.regressors import Samples
from tradenb.models.splits import Window
from tradenb.models.training import learnt

FILE = "sp_raw_adj_1998_2014"
TARGETS = ("rank", "zscore", "return")
QUICK_END = date(2003, 7, 1)


@dataclass(frozen=True, eq=False)
class Table:
    "All rows with a bar and a label, by session and by symbol within."

    x: NDArray[np.float32]  # (rows, features)
    day: NDArray[np.int32]  # (rows,) session
    symbol: NDArray[np.int32]  # (rows,)
    label: NDArray[np.float32]  # (rows,) return
    targets: dict[str, NDArray[np.float32]]  # (rows,) each
    dates: NDArray[np.datetime64]

    def rows(self, window: Window) -> slice:
        "Where the rows of some sessions are."
        first, stop = np.searchsorted(self.day, (window.start, window.stop)).tolist()
        return slice(first, stop)

    def samples(self, window: Window, target: str, every: int = 1) -> Samples:
        "What can be learnt in a window from one of `every` symbols."
        at = self.rows(window)
        rows = np.arange(at.start, at.stop)[self.symbol[at] % every == 0]
        return Samples(np.ascontiguousarray(self.x[rows]), self.targets[target][rows], feature_set("alpha158").names)

    def keys(self, window: Window) -> pl.DataFrame:  # date, symbol, label
        "The rows of some sessions, to be judged."
        at = self.rows(window)
        days = pl.Series("date", self.dates[self.day[at]]).cast(pl.Date)
        return pl.DataFrame(
            [days, pl.Series("symbol", self.symbol[at]), pl.Series("label", self.label[at].astype(float))]
        )


def prices(quick: bool) -> Panel:
    """Bars that the gate lets pass, adjusted for splits.

    Not for dividends: the file's total-return prices are rounded to cents, and a rounded price of 0.30 jumps by 3 %, down today and up
    tomorrow: a reversal to be learnt that nobody could trade.
    """
    whole = delivery(FILE)
    if quick:
        some = pl.col("symbol").is_in(whole.rows["symbol"].unique().sort().gather_every(9).to_list())
        whole = replace(
            whole, rows=whole.rows.filter(some, pl.col("date") < QUICK_END), actions=whole.actions.filter(some)
        )
    good = whole.gate().good.with_columns(vwap=pl.lit(None, pl.Float64))
    return Panel.from_bars(adjust(good, whole.actions, "split", "prev_close"))


def made(panel: Panel) -> Table:
    "Features and labels of a panel."
    block, returns = compute(panel, feature_set("alpha158")), label(panel)
    wanted = block.traded & np.isfinite(returns)
    symbol, day = np.nonzero(wanted)
    order = np.lexsort((symbol, day))
    column = lambda values: values[wanted][order]
    forms = {name: column(learnt(returns, name)) for name in TARGETS}  # type: ignore[arg-type]
    x = block.matrix(wanted)[order]
    return Table(x, day[order].astype(np.int32), symbol[order].astype(np.int32), column(returns), forms, panel.dates)


def stored(folder: Path, quick: bool) -> Table:
    "The table in a folder, made there if it is not."
    file = folder / "table.npz"
    if not file.exists():
        table = made(prices(quick))
        np.save(folder / "x.npy", table.x)
        rest: dict[str, NDArray] = {
            "day": table.day,
            "symbol": table.symbol,
            "label": table.label,
            "dates": table.dates,
        }
        np.savez(file, allow_pickle=False, **(rest | table.targets))
    with np.load(file) as kept:
        rest = {name: kept[name] for name in kept.files}
    forms = {name: rest.pop(name) for name in TARGETS}
    return Table(np.load(folder / "x.npy", mmap_mode="r"), targets=forms, **rest)
