"pyqlib's own backtest in a process of its own: TopkDropoutStrategy through its simulated executor. Arguments: folder, last day."

import sys
import warnings
from pathlib import Path

import pandas as pd

from tradenb.features.oracle import open_qlib


def main(folder: Path, last: str) -> None:
    open_qlib(folder / "store")
    from qlib.contrib.evaluate import backtest_daily
    from qlib.contrib.strategy import TopkDropoutStrategy
    from qlib.data import D

    days = list(D.calendar())
    rows = pd.read_parquet(folder / "predictions.parquet").set_index(["datetime", "instrument"])["prediction"]
    first = days[days.index(rows.index.get_level_values(0).min()) + 1]
    terms = {"freq": "day", "deal_price": "close", "limit_threshold": None, "trade_unit": None, "open_cost": 0.0005, "close_cost": 0.0015, "min_cost": 5}  # fmt: skip
    report, positions = backtest_daily(
        first, pd.Timestamp(last), TopkDropoutStrategy(signal=rows.sort_index(), topk=10, n_drop=2, risk_degree=0.95),
        account=1_000_000, benchmark=pd.Series(0.0, index=days), exchange_kwargs=terms,
    )  # fmt: skip
    report.reset_index().to_parquet(folder / "report.parquet")
    held = [
        (day, symbol, what["amount"])
        for day, book in positions.items()
        for symbol, what in book.position.items()
        if isinstance(what, dict) and "amount" in what
    ]
    pd.DataFrame(held, columns=["date", "symbol", "shares"]).to_parquet(folder / "positions.parquet")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2])
