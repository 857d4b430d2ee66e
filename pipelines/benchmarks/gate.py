"""The quality gate: what it costs on sixteen years of real bars, what it sets aside there, and what it finds where the truth is known.

For each real file the share quarantined by check, and twenty cases with the gate's reason and the bars around them to judge by eye; on
simulated markets how many of the planted bad rows are found, and how many good rows are quarantined with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from statistics import median

import polars as pl

from tradenb.market.actions import ACTION_SCHEMA
from tradenb.market.demo import simulate
from tradenb.market.quality import PRICES, GateResult, Limits, run_gate
from tradenb.market.tickers import from_lean_factors

from . import Result, missing, real_data
from ._measure import seconds

FILES = ("sp_raw_adj_1998_2014", "sp500_daily_2013_2018", "lean_daily_raw")
CASES, AROUND, ROUNDS = 20, 3, 5
SYMBOLS, START, END, BAD_ROWS = 500, date(2018, 1, 2), date(2021, 12, 31), 100  # simulated
SEEDS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Delivery:
    "What a vendor delivered."

    rows: pl.DataFrame  # raw_bars
    actions: pl.DataFrame  # corporate_actions

    def gate(self, limits: Limits | None = None) -> GateResult:
        "Judged on the evening of its last day."
        last = self.rows["date"].max()
        assert isinstance(last, date)
        return run_gate(self.rows, last, self.actions, limits or Limits())


def delivery(name: str) -> Delivery:
    "A real file with the corporate actions that are known for it: its own splits, or Lean's factor files."
    bars = pl.read_parquet(real_data() / f"{name}.parquet")
    rows = bars.select("symbol", "date", *PRICES, "volume", vwap=pl.lit(None, pl.Float64), source=pl.lit("files"))
    actions = pl.DataFrame(schema=ACTION_SCHEMA)
    if "split_ratio" in bars.columns:
        splits = bars.filter(pl.col("split_ratio") != 1)
        none = {name: pl.lit(None, ACTION_SCHEMA[name]) for name in ("declared_at", "target")}
        event = {
            "kind": pl.lit("split"),
            "ratio": pl.col("split_ratio"),
            "cash": pl.lit(0.0),
            "source": pl.lit("files"),
        }
        actions = splits.select("symbol", ex_date="date", **event, **none).select(list(ACTION_SCHEMA))
    if name == "lean_daily_raw":
        actions = from_lean_factors(pl.read_parquet(real_data() / "lean_factor_files.parquet"))
    return Delivery(rows, actions)


def shares(name: str, result: GateResult) -> pl.DataFrame:
    "What each check caught in a file, per 100,000 rows."
    caught = result.table.filter(pl.col("failing") > 0)
    rate = (100_000 * pl.col("failing") / result.rows).round(2)
    return caught.select(pl.lit(name).alias("file"), "check", "verdict", "failing", rate.alias("per_100k"))


def representative(
    found: dict[str, GateResult],  # By file
    count: int,
) -> Iterator[tuple[str, dict]]:  # File and row
    "Cases of every file and check in turn, each of another symbol where there are so many."
    queues = [
        (name, part.unique("symbol", keep="first", maintain_order=True).rows(named=True))
        for name, result in found.items()
        for part in result.quarantined.partition_by("check", maintain_order=True)
    ]
    turn, shown = 0, 0
    while shown < count and any(turn < len(rows) for _, rows in queues):
        for name, rows in queues:
            if turn < len(rows) and shown < count:
                shown += 1
                yield name, rows[turn]
        turn += 1


def around(rows: pl.DataFrame, case: dict) -> list[str]:
    "The bars around a case as lines of text, the case marked."
    mine = rows.filter(symbol=case["symbol"]).sort("date").with_row_index("at")
    at = mine.filter(pl.col("date") == case["date"])["at"][0]
    near = mine.filter((pl.col("at").cast(pl.Int64) - at).abs() <= AROUND)
    return [
        f"  {'>' if row['date'] == case['date'] else ' '} {row['date']}  "
        + "  ".join("–".rjust(9) if row[p] is None else f"{row[p]:9.2f}" for p in PRICES)
        + f"  {row['volume'] or 0:>12,}"
        for row in near.iter_rows(named=True)
    ]


def print_cases(files: dict[str, Delivery], found: dict[str, GateResult]) -> None:
    "What a person needs to say whether the gate was right."
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        print(pl.concat([shares(name, result) for name, result in found.items()]))
    for number, (name, case) in enumerate(representative(found, CASES), 1):
        print(f"{number:2}. {name}: {case['symbol']} {case['date']}, {case['check']}: {case['reason']}")
        print("\n".join(around(files[name].rows, case)))


def on_real_data() -> list[Result]:
    "Time on the longest file, and the share quarantined of each."
    names = [name for name in FILES if not missing(f"{name}.parquet")]
    files = {name: delivery(name) for name in names}
    found = {name: one.gate() for name, one in files.items()}
    if not found:
        return []
    print_cases(files, found)
    took = [seconds(files[names[0]].gate) for _ in range(ROUNDS)]
    rows = len(files[names[0]].rows)
    results: list[Result] = [("gate.run_s", median(took), "s"), ("gate.rows_per_s", rows / median(took), "rows/s")]
    return results + [(f"gate.bad_share.{name}", 100 * result.bad_share, "%") for name, result in found.items()]


def on_known_truth() -> list[Result]:
    "Planted bad rows found, and good rows quarantined, over several simulated markets."
    rows = planted = hit = wrong = 0
    for seed in SEEDS:
        market = simulate(SYMBOLS, START, END, seed, bad_rows=BAD_ROWS)
        result = run_gate(market.delivered, END, market.actions, Limits())
        key = ["symbol", "date", "check"]
        caught = pl.concat([part.select(key) for part in (result.quarantined, result.reported)]).unique()
        rows, planted = rows + result.rows, planted + len(market.planted)
        hit += len(market.planted.join(caught, on=key, how="semi").unique())
        gaps = market.planted.filter(check="gap").select("symbol", pl.col("date").alias("gone")).sort("gone")
        late = (
            caught.filter(check="gap")
            .sort("date")
            .join_asof(gaps, left_on="date", right_on="gone", by="symbol", check_sortedness=False)
        )
        hit += late.filter(pl.col("gone").is_not_null())["gone"].n_unique()
        wrong += len(result.quarantined.join(market.planted, on=["symbol", "date"], how="anti"))
    return [
        ("gate.demo_rows", rows, "rows"),
        ("gate.demo_recall", 100 * hit / planted, "%"),
        ("gate.demo_false_per_100k", 100_000 * wrong / rows, "rows"),
    ]


def main() -> list[Result]:
    return on_real_data() + on_known_truth()
