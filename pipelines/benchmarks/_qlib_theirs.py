"Qlib's published workflow by pyqlib's own classes: binary store → handler → dataset → LGBModel → metrics."

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tradenb.core.clock import Stopwatch
from tradenb.features.oracle import open_qlib

from ._qlib_case import Answer, Case, theirs


def spare_the_recorder() -> None:
    "LGBModel.fit sends the loss of each round to MLflow, one by one: that is not what is compared here."
    from qlib.workflow import R

    type(R).log_metrics = lambda self, step=None, **losses: None


def dataset(case: Case) -> Any:
    "Alpha158 with its own label and processors: rows without a label dropped, labels standardised by session."
    from qlib.contrib.data.handler import Alpha158
    from qlib.data.dataset import DatasetH

    spans = {name: (str(first), str(last)) for name, (first, last) in case.windows.items()}
    start, end = spans["train"][0], spans["test"][1]
    return DatasetH(Alpha158("all", start, end, fit_start_time=start, fit_end_time=spans["train"][1]), spans)


def workflow(case: Case, store: Path) -> Answer:
    "From the store to the information coefficients."
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return _workflow(case, store)


def _workflow(case: Case, store: Path) -> Answer:
    from qlib.contrib.eva.alpha import calc_ic
    from qlib.contrib.model.gbdt import LGBModel
    from qlib.data.dataset.handler import DataHandlerLP

    watch, seconds = Stopwatch(), dict[str, float]()
    lap = lambda name: seconds.update({name: watch.seconds - sum(seconds.values())})
    open_qlib(store, case.threads)
    spare_the_recorder()
    data = dataset(case)
    lap("features")
    model = LGBModel(early_stopping_rounds=case.early_stopping, num_boost_round=case.rounds, **theirs(case))
    model.fit(data, verbose_eval=0)
    lap("training")
    scores = model.predict(data)
    label = data.prepare("test", col_set="label", data_key=DataHandlerLP.DK_R).iloc[:, 0]
    ic, rank_ic = calc_ic(scores, label)
    lap("judging")
    daily = pl.DataFrame(
        {"date": days(ic.index), "ic": ic.to_numpy(np.float64), "rank_ic": rank_ic.to_numpy(np.float64)}
    )
    return Answer(rows(scores, label), daily.sort("date"), model.model.best_iteration, seconds)


def rows(scores: Any, label: Any) -> pl.DataFrame:
    "Predictions beside the returns that came."
    frame = pl.DataFrame({
        "date": days(scores.index.get_level_values("datetime")),
        "symbol": scores.index.get_level_values("instrument").to_numpy(str),
        "prediction": scores.to_numpy(np.float64),
        "label": label.reindex(scores.index).to_numpy(np.float64),
    })  # fmt: skip
    return frame.with_columns(pl.col("label").fill_nan(None)).sort("date", "symbol")


def days(index: Any) -> pl.Series:
    return pl.Series(index.to_numpy("datetime64[D]")).cast(pl.Date)
