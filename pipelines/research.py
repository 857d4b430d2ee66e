"""From predictions out of sample to a judged strategy: what `tradenb backtest` does.

The predictions are those that were stored with a registered version, those of a file, or those of a training from scratch; the book is production's;
the record lies below `<root>/research` under a name that follows from its orders and its plan, so doing the same again writes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.engine import write_whole
from pipelines.lake import lake_as, newest_session
from tradenb.core.db import connect, database_url, migrate
from tradenb.core.errors import DataError, InputError
from tradenb.core.progress import say
from tradenb.core.report import text_of
from tradenb.core.settings import Settings
from tradenb.market.lake import Lake
from tradenb.models import performance
from tradenb.models.inference import Trials
from tradenb.models.registry import open_registry
from tradenb.models.tracking import record as training_record
from tradenb.models.tracking import trials as trainings
from tradenb.portfolio.backtest import Backtest, Plan, backtest
from tradenb.portfolio.capacity import capacity
from tradenb.portfolio.market import Market
from tradenb.portfolio.tearsheet import Evidence, Judgement, Sheet, chance, evidence_of, judge, tearsheet
from tradenb.trading import records
from tradenb.trading.modelling import SIMULATED, span_of, survivorship_of, tape_of, train_model

SHEET, PLAN, ORDERS, DAILY = "tearsheet.html", "plan.json", "orders.parquet", "daily.parquet"
BIGGER = (1, 3, 10, 30, 100)  # the capital again, so many times


@dataclass(frozen=True)
class Ask:
    "What to judge."

    version: int | None = None  # the predictions that were registered with this version
    predictions: Path | None = None  # a Parquet file of them: date, symbol, prediction, and label where it is known
    start: date | None = None  # first and last session whose predictions are traded
    end: date | None = None
    costs: float = 1.0  # a multiple of the settings' costs
    capacity: bool = False  # with more capital too
    vintage: int | None = None  # of the lake; the newest otherwise
    folder: Path | None = None  # instead of the one below `<root>/research`


@dataclass(frozen=True, eq=False)
class Source:
    "Predictions, and where they are from."

    predictions: pl.DataFrame  # date, symbol, prediction
    evidence: Evidence | None
    title: str
    recipe: Mapping[str, str]  # what makes them a variant of their own: how they were learnt, not on which data
    run_id: str | None = None  # of the training in MLflow
    price: str | None = None  # of the label that was learnt


@dataclass(frozen=True, eq=False)
class Found:
    "A judged record."

    folder: Path
    sheet: Sheet
    judged: Judgement
    repeated: bool  # it was there already

    @property
    def page(self) -> Path:
        return self.folder / SHEET

    @property
    def figures(self) -> pl.DataFrame:  # figure, value, remark
        "The key figures, for a screen."
        f, s, book = self.sheet.book.metrics, self.judged.sharpe, self.sheet.book
        rows = [
            ("sessions", f"{book.daily.height:,}", f"{book.daily['date'][0]} to {book.daily['date'][-1]}"),
            ("annual return", text_of(f["annual_return"], "percent"), "compound, after costs"),
            ("volatility", text_of(f["volatility"], "percent"), "a year"),
            ("Sharpe ratio", text_of(f["sharpe"], "price"), f"{text_of(s.low, 'price')} to {text_of(s.high, 'price')} with 95% confidence"),
            ("deflated Sharpe", chance(self.judged.deflated), f"{self.judged.trials} tried, {text_of(self.judged.luck, 'price')} by luck"),
            ("deepest fall", text_of(f["max_drawdown"], "percent"), ""),
            ("turnover", text_of(f["turnover"], "percent"), "of equity a day"),
            ("costs", text_of(f["costs"], "percent"), "of equity a year"),
            ("orders", f"{book.orders.height:,}", f"fingerprint {book.fingerprint[:12]}"),
        ]  # fmt: skip
        return pl.DataFrame(rows, ["figure", "value", "remark"], orient="row")


def research(settings: Settings, ask: Ask) -> Found:
    "Judge a strategy on the lake, and keep the record."
    view = lake_as(settings, ask.vintage, None, None)
    source = within(source_of(settings, view, ask), ask.start, ask.end)
    plan = plan_of(settings, source, ask.costs)
    market = tape_of(settings, view, source.predictions, newest_session(view))
    say("trading the past")
    book = backtest(source.predictions, market, plan, _ticking("trading the past"))
    more = capacity_of(source.predictions, market, plan) if ask.capacity else None
    papers = papers_of(settings, view, source)
    said = plan_text(plan, source, papers, ask)
    record = hashlib.sha256(f"{book.fingerprint}\n{said}".encode()).hexdigest()
    folder = ask.folder or settings.root / "research" / f"{book.daily['date'][-1]}-{record[:8]}"
    counted, how = trials_of(settings, source, book, folder.name)
    sheet = sheet_of(settings, view, book, source, counted, more, papers | {"Tries counted": how, "Record": record})
    return keep(sheet, said, folder)


# ---- predictions


def source_of(settings: Settings, view: Lake, ask: Ask) -> Source:
    "The predictions asked for."
    if ask.version is not None and ask.predictions is not None:
        raise InputError("--version and --predictions: each names the predictions to judge; give one of them")
    if ask.predictions is not None:
        return from_file(ask.predictions)
    return from_version(settings, ask.version) if ask.version is not None else from_training(settings, view)


def from_file(path: Path) -> Source:
    "Predictions from elsewhere."
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    frame = pl.read_parquet(path)
    if missing := {"date", "symbol", "prediction"} - set(frame.columns):
        raise InputError(f"{path} without {', '.join(sorted(missing))}: found {', '.join(frame.columns)}")
    return Source(frame, None, f"Predictions of {path.name}", {"file": hashlib.sha256(path.read_bytes()).hexdigest()})


def from_version(settings: Settings, version: int) -> Source:
    "What a registered version predicted out of sample when it was trained."
    registry = open_registry(settings, migrate(connect(database_url(settings))))
    say(f"reading the record of version {version}")
    run_id = registry.load(version).run_id
    kept = training_record(registry.tracking, run_id)
    if "predictions" not in kept.tables:
        raise DataError(f"version {version} of {registry.name} came from a file: it has no predictions out of sample")
    tables = kept.tables
    predictions, ic, folds, importance = (tables[n] for n in ("predictions", "ic", "fold_metrics", "importance"))
    horizon = int(kept.params.get("horizon", 1))
    evidence = Evidence(predictions, ic, folds, importance, tables.get("shap"), horizon)
    recipe = dict(kept.params) | {"feature_hash": kept.tags.get("feature_hash", "")}
    return Source(
        predictions,
        evidence,
        f"{registry.name}, version {version}",
        recipe,
        run_id,
        kept.params.get("price"),
    )


def from_training(settings: Settings, view: Lake) -> Source:
    "A training from scratch, as the settings say; nothing is registered."
    result = train_model(settings, view, newest_session(view), settings.market.symbols)
    told = {name: str(value) for name, value in result.config.params().items() if value is not None}
    recipe = told | {"feature_hash": result.feature_set.hash}
    title = f"{settings.run.strategy}, trained through {result.trained_through}"
    return Source(result.predictions, evidence_of(result), title, recipe, None, result.config.price)


def within(source: Source, start: date | None, end: date | None) -> Source:
    "The predictions of some sessions; the evidence is cut alike, and `InputError` says when nothing is left."
    day = pl.col("date")
    inside = day.is_between(start or date.min, end or date.max)
    kept = source.predictions.filter(inside)
    if kept.is_empty():
        there = " to ".join(map(str, span_of(source.predictions)))
        raise InputError(f"no predictions from {start} to {end}: there are some for {there}")
    e = source.evidence
    cut = None if e is None else replace(e, predictions=e.predictions.filter(inside), ic=e.ic.filter(inside))
    return replace(source, predictions=kept, evidence=cut)


# ---- the book


def plan_of(settings: Settings, source: Source, costs: float) -> Plan:
    "Production's plan, with costs so many times as high."
    if costs < 0:
        raise InputError(f"--costs {costs:g}: a multiple of the costs, from 0")
    usual = Plan.of(settings) if source.price is None else Plan.of(settings, label_price=source.price)
    return replace(usual, costs=usual.costs.times(costs))


def _ticking(what: str) -> Any:
    return lambda done, of: say(f"{what} ({done}/{of})") if done % 21 == 0 or done == of else None


def capacity_of(predictions: pl.DataFrame, market: Market, plan: Plan) -> pl.DataFrame:
    "The same predictions with more money."
    capitals = [float(plan.capital) * times for times in BIGGER]
    return capacity(predictions, market, plan, capitals, lambda done, of: say(f"trading with more money ({done}/{of})"))


# ---- how many were tried


def trials_of(settings: Settings, source: Source, book: Backtest, own: str) -> tuple[Trials, str]:  # and in words
    "Every training and search trial of the strategy, and every backtest of another recipe below this root."
    tracked = trainings(open_registry(settings, None).tracking)
    others = tracked.filter(pl.col("run_id") != source.run_id) if source.run_id else tracked
    backtests = earlier(settings.root / "research", variant(source, book.plan), own)
    net = [*backtests, performance.sharpe(book.returns)]
    spreads = [Trials.of(values).variance for values in (tracked["sharpe"].to_list(), net) if len(values) > 1]
    words = f"{others.height} other trainings and search trials of {settings.run.strategy}, {len(backtests)} other backtests"
    return Trials(1 + others.height + len(backtests), max(spreads, default=0.0)), words


def variant(source: Source, plan: Plan) -> dict[str, str]:
    "What would have to be another for it to count as another try."
    return dict(source.recipe) | {"constructor": repr(plan.constructor), "trades_at": plan.price}


def earlier(folder: Path, recipe: Mapping[str, str], own: str) -> list[float]:
    "Net Sharpe ratios of the records of other recipes, the newest of each."
    found = {}
    for file in sorted(folder.glob(f"*/{PLAN}")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if file.parent.name != own and kept["recipe"] != recipe:
            found[json.dumps(kept["recipe"], sort_keys=True)] = float(kept["sharpe"])
    return list(found.values())


# ---- the record


def papers_of(settings: Settings, view: Lake, source: Source) -> dict[str, str]:
    "Where everything is from."
    vintage = ", ".join(f"{table} {version}" for table, version in sorted(view.vintage().items()))
    known = {"Data": f"{settings.market.source}: {vintage}", "Settings": settings.hash, "Seed": str(settings.core.seed)}
    if "feature_hash" in source.recipe:
        known |= {"Features": f"{settings.features.set}, {source.recipe['feature_hash'][:16]}…"}
    if source.run_id:
        known |= {"Training": source.run_id}
    return known | {"Code": records.code_version()}


def plan_text(plan: Plan, source: Source, papers: Mapping[str, str], ask: Ask) -> str:
    "What was done, as JSON; equal for equal records."
    terms = {
        "constructor": repr(plan.constructor), "price": plan.price, "capital": str(plan.capital), "compounding": plan.compounding,
        "costs": asdict(plan.costs), "limits": asdict(plan.limits), "fractional": plan.fractional,
        "max_volume_share": plan.max_volume_share, "from": str(ask.start or ""), "to": str(ask.end or ""),
    }  # fmt: skip
    known = {name: value for name, value in papers.items() if name != "Code"}
    return json.dumps(
        {"title": source.title, "recipe": variant(source, plan), "plan": terms, "papers": known}, default=str
    )


def sheet_of(
    settings: Settings, view: Lake, book: Backtest, source: Source, trials: Trials, capacity: pl.DataFrame | None,
    papers: Mapping[str, str],
) -> Sheet:  # fmt: skip
    "All that the page shows."
    survivors = survivorship_of(view)
    notes = (SIMULATED,) if settings.market.source == "demo" else ()
    return Sheet(
        book, source.evidence, trials, capacity, source.title, papers, (survivors,) if survivors else (), notes
    )


def keep(sheet: Sheet, said: str, folder: Path) -> Found:
    "Write the record, whole or not at all; one that is there stays as it is."
    judged = judge(sheet.returns, sheet.trials)
    plan = folder / PLAN
    if plan.is_file() and json.loads(plan.read_text(encoding="utf-8"))["record"] == sheet.papers["Record"]:
        return Found(folder, sheet, judged, repeated=True)
    say("writing the tear sheet")
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "sharpe": performance.sharpe(sheet.returns),
        "record": sheet.papers["Record"],
        "fingerprint": sheet.book.fingerprint,
    }
    write_whole(folder / SHEET, tearsheet(sheet))
    for name, frame in ((ORDERS, sheet.book.orders), (DAILY, sheet.book.daily)):
        frame.write_parquet(folder / name)
    write_whole(plan, json.dumps(json.loads(said) | figures, indent=1) + "\n")
    return Found(folder, sheet, judged, repeated=False)
