"""Alpha158 in plain polars expressions: no engine, no callbacks, no plugins; a rival for the stopwatch and a second oracle.

Semantics are pyqlib's: fields and element-wise arithmetic in 32 bits, windows in 64, infinity inside a window counts as missing, a
window begins at the symbol's first bar. The expressions are to be evaluated within one symbol; `alpha158` does so for all of them.
"""

import numpy as np
import polars as pl

from tradenb.features.panel import FIELDS, Panel

WINDOWS = (5, 10, 20, 30, 60)
EPS = 1e-12  # Qlib's guard against division by zero
FLAT = 2e-5  # A standard deviation up to this is none: no correlation, no R²
BIG = 1 << 21  # More than any symbol's bars, yet its square is exact in 64 bits
PAIRED = ("log_volume", "ratio", "log_ratio")  # Correlated with something
Named = dict[str, pl.Expr]


def bars_of(panel: Panel) -> pl.DataFrame:  # symbol, date, OHLCV and vwap as float32, null = no bar
    "Long frame of the listed cells of a panel: symbols in order, sessions within."
    row, column = np.nonzero(panel.listed)
    symbols = pl.Series("symbol", panel.symbols, pl.String).gather(pl.Series(row))
    fields = [pl.Series(name, panel.fields[name][row, column]).fill_nan(None) for name in FIELDS]
    return pl.DataFrame([symbols, pl.Series("date", panel.dates[column]).cast(pl.Date), *fields])


def finite(x: pl.Expr) -> pl.Expr:
    "As pandas' windows see it."
    return pl.when(x.is_finite()).then(x).cast(pl.Float64)


def series() -> Named:
    "What the windows look at, float64."
    close, volume = pl.col("close"), pl.col("volume")
    change, volume_change = close - close.shift(1), volume - volume.shift(1)
    ratio, row = close / close.shift(1), pl.int_range(pl.len()).cast(pl.Float64)
    return {
        "c": close.cast(pl.Float64),
        "h": pl.col("high").cast(pl.Float64),
        "l": pl.col("low").cast(pl.Float64),
        "v": volume.cast(pl.Float64),
        "row": row,
        "t": pl.when(close.is_not_null()).then(row),
        "ratio": finite(ratio),
        "log_volume": finite(np.log(volume + 1)),
        "log_ratio": finite(np.log(volume / volume.shift(1) + 1)),
        "turmoil": finite((ratio - 1).abs() * volume),
        "rise": change.clip(0).cast(pl.Float64),
        "move": change.abs().cast(pl.Float64),
        "volume_rise": volume_change.clip(0).cast(pl.Float64),
        "volume_move": volume_change.abs().cast(pl.Float64),
        "rose": (change > 0).fill_null(False).cast(pl.Float64),
        "fell": (change < 0).fill_null(False).cast(pl.Float64),
        "high_key": oldest_first(pl.col("high")),
        "low_key": oldest_first(-pl.col("low")),
    }


def oldest_first(x: pl.Expr) -> pl.Expr:
    "A key whose largest in a window is the window's largest `x`, the oldest of equals; a missing one is larger than any, as in NumPy's argmax."
    return x.rank("dense").cast(pl.Float64).fill_null(BIG) * BIG - pl.int_range(pl.len())


def windows(d: int) -> Named:
    "What the rolling features over `d` sessions are made of, each window once: polars does not share them by itself."
    c, t = pl.col("c"), pl.col("t")
    sums = {"st": t, "sc": c, "stc": t * c, "stt": t * t, "scc": c * c, "n": c.is_not_null().cast(pl.Float64)}
    sums |= {f"sum_{x}": pl.col(x) for x in ("rise", "move", "volume_rise", "volume_move")}
    return {
        "before": pl.col("close").shift(d),
        **{name: x.rolling_sum(d, min_samples=1) for name, x in sums.items()},
        **{f"mean_{x}": pl.col(x).rolling_mean(d, min_samples=1) for x in ("c", "v", "turmoil", "rose", "fell")},
        **{f"std_{x}": pl.col(x).rolling_std(d, min_samples=1) for x in ("c", "v", "turmoil", *PAIRED)},
        "highest": pl.col("h").rolling_max(d, min_samples=1),
        "lowest": pl.col("l").rolling_min(d, min_samples=1),
        **{f"first_{x}": pl.col(x).rolling_max(d, min_samples=1) for x in ("high_key", "low_key")},
        "upper": c.rolling_quantile(0.8, "linear", d, min_samples=1),
        "lower": c.rolling_quantile(0.2, "linear", d, min_samples=1),
        "rank": c.rolling_rank(d, "average", min_samples=1),
        "corr": pl.rolling_corr("c", "log_volume", window_size=d, min_samples=1),
        "cord": pl.rolling_corr("ratio", "log_ratio", window_size=d, min_samples=1),
    }


def candles() -> Named:
    "KMID … KSFT2 and the prices over the close, float32."
    o, h, l, c, w = (pl.col(f) for f in ("open", "high", "low", "close", "vwap"))  # noqa: E741
    known = o.is_not_null() & c.is_not_null()
    top, bottom = (pl.when(known).then(side(o, c)) for side in (pl.max_horizontal, pl.min_horizontal))
    reach = h - l + EPS
    return {
        "KMID": (c - o) / o, "KLEN": (h - l) / o, "KMID2": (c - o) / reach,
        "KUP": (h - top) / o, "KUP2": (h - top) / reach, "KLOW": (bottom - l) / o, "KLOW2": (bottom - l) / reach,
        "KSFT": (2 * c - h - l) / o, "KSFT2": (2 * c - h - l) / reach,
        "OPEN0": o / c, "HIGH0": h / c, "LOW0": l / c, "VWAP0": w / c,
    }  # fmt: skip


def rolling(d: int) -> Named:
    "The 29 features over `d` sessions, from their windows: element-wise."
    c, volume = pl.col("c"), pl.col("volume") + pl.lit(EPS, pl.Float32)
    high, low, turmoil = pl.col("highest"), pl.col("lowest"), pl.col("mean_turmoil")
    at_high, at_low = position("high_key", high, d), position("low_key", low, d)
    rose, fell = pl.col("mean_rose"), pl.col("mean_fell")
    return {
        "ROC": pl.col("before") / pl.col("close"), "MA": pl.col("mean_c") / c, "STD": pl.col("std_c") / c,
        **regression(),
        "MAX": high / c, "MIN": low / c, "QTLU": pl.col("upper") / c, "QTLD": pl.col("lower") / c,
        "RANK": pl.col("rank") / pl.col("n"), "RSV": (c - low) / (high - low + EPS),
        "IMAX": at_high / d, "IMIN": at_low / d, "IMXD": (at_high - at_low) / d,
        "CORR": unless_flat("corr", "c", "log_volume"), "CORD": unless_flat("cord", "ratio", "log_ratio"),
        "CNTP": rose, "CNTN": fell, "CNTD": rose - fell,
        **up_and_down(""),
        "VMA": pl.col("mean_v") / volume, "VSTD": pl.col("std_v") / volume, "WVMA": pl.col("std_turmoil") / (turmoil + EPS),
        **up_and_down("v"),
    }  # fmt: skip


def regression() -> Named:
    "BETA, RSQR, RESI: the close on time, from plain sums."
    n, c, t, st, sc = (pl.col(x) for x in ("n", "c", "t", "st", "sc"))
    covariance, time_variance = n * pl.col("stc") - st * sc, n * pl.col("stt") - st * st
    close_variance, varies = n * pl.col("scc") - sc * sc, (pl.col("std_c") > FLAT).fill_null(False)
    return {
        "BETA": covariance / time_variance / c,
        "RSQR": pl.when(varies).then(covariance * covariance / (time_variance * close_variance)),
        "RESI": ((n * c - sc) * time_variance - covariance * (n * t - st)) / (n * time_variance) / c,
    }


def position(key: str, extreme: pl.Expr, d: int) -> pl.Expr:
    "Of the oldest extreme, 1 = the window's first session."
    largest, row = pl.col(f"first_{key}"), pl.col("row")
    age = row - ((largest / BIG).ceil() * BIG - largest)
    return pl.when(extreme.is_not_null()).then(pl.min_horizontal(row + 1, pl.lit(float(d))) - age)


def unless_flat(correlation: str, x: str, y: str) -> pl.Expr:
    "Missing when one of the two does not move."
    flat = (pl.col(f"std_{x}") <= FLAT) | (pl.col(f"std_{y}") <= FLAT)
    return pl.when(~flat.fill_null(False)).then(pl.col(correlation))


def up_and_down(prefix: str) -> Named:
    "SUMP, SUMN, SUMD: gains, losses and their difference over all movement."
    of = "volume_" if prefix else ""
    up, path = pl.col(f"sum_{of}rise"), pl.col(f"sum_{of}move")
    shares = {"SUMP": up, "SUMN": path - up, "SUMD": 2 * up - path}
    return {prefix.upper() + name: x / (path + EPS) for name, x in shares.items()}


def columns(features: Named, d: int | str = "") -> list[pl.Expr]:
    "As they are delivered."
    return [x.cast(pl.Float32).alias(f"{name}{d}") for name, x in features.items()]


def alpha158(bars: pl.DataFrame) -> pl.DataFrame:  # symbol, date, features
    "All symbols of `bars`: windows within each, formulas on whole columns; polars spreads both over its threads."
    known = bars.lazy().with_columns(x.over("symbol").alias(name) for name, x in series().items()).collect()
    parts = [known.select("symbol", "date", *columns(candles()))]
    for d in WINDOWS:
        within = known.lazy().with_columns(x.over("symbol").alias(name) for name, x in windows(d).items())
        parts.append(within.select(columns(rolling(d), d)).collect())
    return pl.concat(parts, how="horizontal")
