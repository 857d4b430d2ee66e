"""From raw bars to metrics: Qlib's published workflow for Alpha158 beside ours, on the same real bars.

Four contenders for each file, each in a process of its own, timed in turns, two threads each:
- qlib: pyqlib's Alpha158 handler, DatasetH and LGBModel on its binary store, the information coefficients by its calc_ic;
- same: ours with Qlib's samples, windows, label and LightGBM's parameters: the predictions must be the same;
- ours: the recipe of settings.ini on the same windows, purged: one fit, as Qlib's;
- walk: our recipe walked forward over the same test window as settings.ini says: many fits.
TRADENB_BENCH_ROUNDS sets the number of turns, 2 if it is not set; TRADENB_BENCH_EVERY=8 takes an eighth of the symbols, to see that it works.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from tradenb.core.errors import DataError
from tradenb.core.settings import load
from tradenb.features.oracle import write_store
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.models.inference import newey_west, sharpe_interval
from tradenb.models.performance import ratio
from tradenb.models.training import TrainingConfig, training_config
from tradenb.portfolio.backtest import Plan, backtest
from tradenb.portfolio.market import Market

from . import Result, _qlib_ours, _qlib_theirs, missing
from ._measure import Measured, explain, in_turns, seconds, serve
from ._qlib_case import CASES, Answer, Case, agreement, bars

ROUNDS = int(os.environ.get("TRADENB_BENCH_ROUNDS", 2))
THREADS = 2

MEANING = {
    "qlib": "binary store → Alpha158 handler → LGBModel → calc_ic",
    "same": "bars in Parquet → the same model by our code → IC",
    "ours": "bars in Parquet → our recipe on the same windows, purged → IC",
    "walk": "bars in Parquet → our recipe walked forward, production model included → metrics",
}


def defaults() -> TrainingConfig:
    "The recipe of settings.ini."
    return training_config(load(env={}), feature_set("alpha158").halo or 0)


def answer(contender: str, case: Case, folder: Path) -> Answer:
    "One whole run."
    if contender == "qlib":
        return _qlib_theirs.workflow(case, folder / "store")
    rows = pl.read_parquet(folder / "bars.parquet")
    if contender == "same":
        return _qlib_ours.as_qlib(case, rows)
    return (_qlib_ours.as_ours if contender == "ours" else _qlib_ours.walked)(case, rows, defaults())


def prepare(case: Case, folder: Path) -> float:
    "Bars as each side wants them; the seconds that pyqlib's store took."
    rows = bars(case)
    rows.write_parquet(folder / "bars.parquet")
    return seconds(lambda: write_store(Panel.from_bars(rows, adjusted=False), folder / "store"))


def held_together(case: Case, folder: Path) -> dict[str, float]:
    "Both sides in this process, untimed; raises `DataError` where they part."
    prepare(case, folder)
    found = agreement(*(answer(contender, case, folder) for contender in ("same", "qlib")))
    check(case, found)
    return found


def check(case: Case, found: Mapping[str, float]) -> None:
    if found["unpaired"] or not found["corr"] > 0.999 or max(found["ic_gap"], found["rank_ic_gap"]) >= 5e-5:
        raise DataError(f"{case.file}: Qlib's workflow and ours part ({found}): expected the same samples, a correlation above 0.999 and IC equal to 4 decimals")  # fmt: skip


def every_tree() -> dict[str, float]:
    "Early stopping leaves a tree or two on such data: a hundred trees of fewer symbols say more about sameness."
    few = replace(next(iter(CASES.values())), every=6, rounds=100, early_stopping=0)
    with TemporaryDirectory() as folder:
        return held_together(few, Path(folder))


def race(case: Case, folder: Path) -> tuple[dict[str, Measured], dict[str, Answer]]:
    "The contenders in turns, and what they answered."
    entered = {name: (name, case.file, folder) for name in MEANING}
    measured = in_turns("qlib_workflow", entered, ROUNDS, THREADS)
    return measured, {name: Answer.load(folder / name) for name in MEANING}


def verdicts(answers: Mapping[str, Answer], folder: Path) -> pl.DataFrame:
    "What the predictions are worth: IC and Sharpe ratio after costs, each with its interval, by the production code of the settings."
    panel = Panel.from_bars(pl.read_parquet(folder / "bars.parquet"), adjusted=False)
    market, plan = Market.from_panel(panel), Plan.of(load(env={}))
    rows = []
    for name in ("qlib", "ours", "walk"):  # same is qlib
        one = answers[name]
        traded = backtest(one.predictions.drop_nulls("prediction"), market, plan).returns
        ranks, earned = newey_west(one.daily["rank_ic"]), sharpe_interval(traded)
        rows.append({
            "who": name, "trees": one.trees, "ic": one.daily["ic"].fill_nan(None).mean(), "rank_ic": ranks.value, "from": ranks.low,
            "to": ranks.high, "rank_icir": ratio(one.daily["rank_ic"]), "sharpe": earned.value, "low": earned.low, "high": earned.high,
        })  # fmt: skip
    return pl.DataFrame(rows)


def results(
    name: str, measured: Mapping[str, Measured], answers: Mapping[str, Answer], worth: pl.DataFrame, dump: float
) -> Iterator[Result]:
    "Everything about one file."
    found = agreement(answers["same"], answers["qlib"])
    check(CASES[name], found)
    for who, one in measured.items():
        yield f"qlib_workflow.{name}.{who}_s", one.s, "s"
    for who in ("same", "ours", "walk"):
        yield f"qlib_workflow.{name}.{who}_speedup", measured["qlib"].s / measured[who].s, "x"
        yield f"qlib_workflow.{name}.{who}_speedup_with_store", (measured["qlib"].s + dump) / measured[who].s, "x"
    yield f"qlib_workflow.{name}.corr", found["corr"], "1"
    yield f"qlib_workflow.{name}.ic_gap", max(found["ic_gap"], found["rank_ic_gap"]), "1"
    for row in worth.iter_rows(named=True):
        for figure in ("rank_ic", "rank_icir", "sharpe"):
            yield f"qlib_workflow.{name}.{row['who']}_{figure}", row[figure], "1"


def one_file(name: str, case: Case) -> list[Result]:
    "Race, compare, judge."
    with TemporaryDirectory() as place:
        folder = Path(place)
        dump = prepare(case, folder)
        measured, answers = race(case, folder)
        worth = verdicts(answers, folder)
        print(
            f"{name}: test {' to '.join(map(str, case.test))}, {len(answers['qlib'].predictions):,} predictions; the store took {dump:.2f} s"
        )
        explain(measured, MEANING)
        for who in ("qlib", "same"):
            print(f"  {who}: {', '.join(f'{part} {s:.2f} s' for part, s in answers[who].seconds.items())}")
        with pl.Config(tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=4):
            print(worth)
        return list(results(name, measured, answers, worth, dump))


def main() -> list[Result]:
    "Sameness tree by tree, then the race on each file; the least of both files' ratios, the largest of their gaps."
    cases = {name: case for name, case in CASES.items() if not missing(f"{name}.parquet")}
    if not cases:
        return []
    trees = every_tree()
    found = [row for name, case in cases.items() for row in one_file(name, case)]
    of = lambda ending: [value for name, value, _ in found if name.endswith(ending)]
    return [
        ("qlib_workflow.speedup", min(of(".ours_speedup")), "x"),
        ("qlib_workflow.same_speedup", min(of(".same_speedup")), "x"),
        ("qlib_workflow.ic_gap", max(of(".ic_gap")), "1"),
        ("qlib_workflow.corr", min([*of(".corr"), trees["corr"]]), "1"),
        *found,
    ]


if __name__ == "__main__":
    contender, file, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    serve(lambda: answer(contender, CASES[file], folder).save(folder / contender))
