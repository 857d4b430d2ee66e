"The same workflow by ours: bars → panel → features and label → LightGBM → metrics; with Qlib's recipe, and with our own."

from dataclasses import replace

import polars as pl

from tradenb.core.clock import Stopwatch
from tradenb.features.engine import compute
from tradenb.features.labels import label
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.models import metrics
from tradenb.models.training import TrainingConfig, fit, learnt, predict, train

from ._qlib_case import Answer, Case, begun, ours, purged


def as_qlib(case: Case, bars: pl.DataFrame) -> Answer:
    """Qlib's samples, windows and parameters.

    Qlib keeps a session without a bar as a sample of missing features where it has a label, and predicts it; our own recipe does not.
    Both order samples by session, then by symbol: LightGBM draws the rows that its bins come from by their position.
    """
    return once(case, bars, ours(case), like_qlib=True)


def as_ours(case: Case, bars: pl.DataFrame, config: TrainingConfig) -> Answer:
    "Our recipe on the same windows, purged: one fit, as Qlib's."
    return once(case, bars, config, like_qlib=False)


def once(case: Case, bars: pl.DataFrame, config: TrainingConfig, like_qlib: bool) -> Answer:
    "Bars to metrics with one fit."
    watch, seconds = Stopwatch(), dict[str, float]()
    lap = lambda name: seconds.update({name: watch.seconds - sum(seconds.values())})
    panel = Panel.from_bars(bars, adjusted=False)
    block, returns = compute(panel, feature_set("alpha158"), threads=case.threads), label(panel)
    fold = case.fold(panel.dates)
    if like_qlib:
        block = replace(block, traded=panel.listed)
    else:
        fold = purged(fold, config.walk)
    lap("features")
    model = fit(block, learnt(returns, config.target), fold, replace(config, threads=case.threads))
    lap("training")
    predictions = predict(model, block, returns, fold)
    daily = judged(predictions)
    lap("judging")
    return Answer(predictions, daily, model.rounds, seconds)


def walked(case: Case, bars: pl.DataFrame, config: TrainingConfig) -> Answer:
    "Our recipe walked forward over the same test window as the settings say: a fit for each fold, and the model for the day after."
    watch = Stopwatch()
    panel = Panel.from_bars(bars, adjusted=False).until(case.test[1])
    walk = begun(config.walk, case.fold(panel.dates).test.start)
    result = train(panel, feature_set("alpha158"), replace(config, walk=walk, threads=case.threads))
    trees = float(result.fold_metrics["trees"].cast(pl.Float64).mean())  # type: ignore[arg-type]
    return Answer(result.predictions, judged(result.predictions), trees, {"all": watch.seconds})


def judged(predictions: pl.DataFrame) -> pl.DataFrame:  # date, ic, rank_ic
    "Information coefficients by session."
    return metrics.ic(predictions).join(metrics.rank_ic(predictions), on="date").select("date", "ic", "rank_ic")
