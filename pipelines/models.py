"""The life of models from the command line: what `tradenb model` asks of the registry, and what it shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from tradenb.core.db import connect, database_url, migrate
from tradenb.core.errors import InputError, one_line
from tradenb.core.settings import Settings, find_file
from tradenb.features.sets import feature_set
from tradenb.models import tracking
from tradenb.models.inference import Deflated, deflated_sharpe
from tradenb.models.metrics import long_short_returns
from tradenb.models.registry import Registry, aliases, open_registry, stored
from tradenb.models.tracking import Comparison, ModelCard, TrainingRecord
from tradenb.trading import records


def registry_of(settings: Settings) -> Registry:
    "The registry, to look at."
    return open_registry(settings)


def writable(settings: Settings) -> Registry:
    "The registry, to change: with the platform's database, which gets a copy of the history."
    return open_registry(settings, migrate(connect(database_url(settings))))


def card_of(settings: Settings) -> ModelCard:
    "Of a model that was not trained on this lake."
    return ModelCard({}, settings.hash, records.code_version())


def register_run(settings: Settings, run_id: str, who: str, why: str) -> int:
    "Register the model of a recorded training."
    return writable(settings).register(run_id, who, why)


@dataclass(frozen=True)
class FromFile:
    "A LightGBM model that was trained elsewhere, as the command line names it."

    model: Path
    metrics: Path  # JSON: name → number, out of sample
    features: str  # alpha158, alpha360, or a TOML file
    trained_through: date
    config: Path | None  # JSON


def register_file(settings: Settings, given: FromFile, who: str, why: str) -> int:
    "Register a model from a file."
    config = read_json(given.config) if given.config else {}
    fset = feature_set(given.features, Path.cwd() if given.features.endswith(".toml") else find_file().parent)
    told = (read_json(given.metrics), config, given.trained_through, card_of(settings), who, why)
    return writable(settings).register_file(given.model, fset, *told)


def read_json(path: Path) -> dict[str, Any]:
    "A JSON object; `InputError` for anything else."
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): expected a JSON object") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}: expected a JSON object, as in {{}}")
    return value


@dataclass(frozen=True)
class Shown:
    "All that is known of a version."

    title: str
    facts: Mapping[str, str]
    metrics: pl.DataFrame  # metric, value, low, high
    checks: pl.DataFrame  # check, passed, found, expected
    history: pl.DataFrame  # action, who, why, at
    trials: Mapping[str, int]  # kind → how many
    deflated: Deflated | None  # None: a model from a file, whose returns nobody knows

    @property
    def tries(self) -> str:
        "How much luck there is to subtract."
        counted = " and ".join(f"{n} {name}" for name, n in self.trials.items()) or "no recorded trial"
        if self.deflated is None:
            return f"tried so far: {counted}"
        d = self.deflated
        return f"tried so far: {counted}; Sharpe ratio {d.sharpe:.2f}, the best of so many shows {d.hurdle:.2f} by luck, deflated Sharpe ratio {d.probability:.1%}"

    def value(self) -> dict[str, Any]:
        "For programs."
        frames = {name: getattr(self, name).to_dicts() for name in ("metrics", "checks", "history")}
        d = self.deflated
        luck = {"probability": d.probability, "sharpe": d.sharpe, "hurdle": d.hurdle} if d else None
        return {"title": self.title, **self.facts, **frames, "trials": dict(self.trials), "deflated_sharpe": luck}


FACTS = {
    "model": "model", "features": "feature_set", "trained through": "trained_through", "vintage": "vintage",
    "settings": "settings_hash", "code": "code_version", "seed": "seed", "daily run": "run_id", "survivorship": "survivorship",
    "registered by": "registered_by", "because": "registered_why", "activated by": "activated_by", "activated because": "activated_why",
    "retired by": "retired_by", "retired because": "retired_why", "digest": "digest",
}  # fmt: skip


def shown(settings: Settings, version: int) -> Shown:
    "A version's papers, what the gate says, its history, and how many were tried beside it."
    registry = registry_of(settings)
    kept = stored(registry, version)
    record = tracking.record(registry.tracking, kept.run_id)
    state = registry.versions().row(by_predicate=pl.col("version") == version, named=True)["state"]
    facts = {name: kept.tags[tag] for name, tag in FACTS.items() if kept.tags.get(tag)} | {"MLflow run": kept.run_id}
    checks = pl.DataFrame([vars(check) for check in registry.checks(version)]).rename({"name": "check"})
    acts = registry.history().filter(version=version).drop("version")
    trials = registry.trials()
    counted = {name: trials.filter(kind=kind).height for name, kind in COUNTED.items()}
    counted = {name: n for name, n in counted.items() if n}
    title = f"version {version} of {registry.name}: {state}"
    return Shown(title, facts, metrics_of(record), checks, acts, counted, deflated(record, trials))


COUNTED = {"trainings": "training", "trials of searches": "search"}


def metrics_of(record: TrainingRecord) -> pl.DataFrame:  # metric, value, low, high
    "The record out of sample with its intervals."
    both = tracking.side_by_side(record, record)
    return both.select(
        "metric", pl.col("a").alias("value"), pl.col("a_low").alias("low"), pl.col("a_high").alias("high")
    )


def deflated(record: TrainingRecord, trials: pl.DataFrame) -> Deflated | None:
    "The record's Sharpe ratio against the luck of all that was tried."
    if "predictions" not in record.tables:
        return None
    top, bottom, horizon = (int(record.params.get(name, n)) for name, n in (("top_n", 20), ("bottom_n", 20), ("horizon", 1)))  # fmt: skip
    daily = long_short_returns(record.tables["predictions"], top, bottom, horizon)
    return deflated_sharpe(daily["return"], trials["sharpe"].to_numpy())


def compared(settings: Settings, a: int, b: int) -> Comparison:
    "Two versions on the sessions and names that both predicted."
    registry = registry_of(settings)
    return tracking.compare(*(tracking.record(registry.tracking, stored(registry, n).run_id) for n in (a, b)))


def who_trades(registry: Registry) -> str:
    "The aliases in words."
    now = aliases(registry)
    champion, challenger = now.get("champion"), now.get("challenger")
    said = "no version trades" if champion is None else f"version {champion} trades"
    return said if challenger is None else f"{said}, version {challenger} is scored in its shadow"
