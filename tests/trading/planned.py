"A small market, a model that trains in a second, and a run that plans: what replay and explanation are tried on."

from datetime import date
from decimal import Decimal
from pathlib import Path

from sqlalchemy import Engine

from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.settings import Settings, load
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.market.actions import place_events
from tradenb.market.demo import simulate
from tradenb.market.lake import open_lake
from tradenb.models.registry import ModelCard, open_registry
from tradenb.models.splits import WalkForward
from tradenb.models.training import TrainingConfig, train
from tradenb.signals.reader import MarketReader
from tradenb.trading import records
from tradenb.trading.orchestrator import Leg, keep_plan
from tradenb.trading.planning import learnt_of, plan_day
from tradenb.trading.replay import Unwired

AS_OF, TRADED = date(2023, 6, 30), date(2023, 7, 3)
PROJECT = Path(__file__).resolve().parents[2]
SMALL = {"portfolio.top_n": 3, "portfolio.bottom_n": 3, "portfolio.n_drop": 1, "portfolio.max_position_share": 0.3}
RECIPE = TrainingConfig(
    WalkForward(train=120, valid=30, test=60, warmup=60),
    rounds=12, num_leaves=7, min_data_in_leaf=20, threads=1, top_n=3, bottom_n=3,
)  # fmt: skip
CLOCK = SimulatedClock(new_york(TRADED, 9))


def settings_at(root: Path, **changed: object) -> Settings:
    return load(SMALL | {"core.root": str(root)} | changed, env={}, file=PROJECT / "settings.ini")


def prepare(root: Path, model: str = "lightgbm") -> None:
    "A lake of 24 names over a year and a half, and version 1 of a model."
    settings = settings_at(root)
    market = simulate(symbols=24, start=date(2022, 1, 3), end=AS_OF, seed=5, bad_rows=0)
    lake = open_lake(settings)
    with lake.writing() as draft:
        draft.merge("bars", market.truth)
        draft.merge("adjustments", place_events(market.actions, market.truth))
        draft.merge("universe", market.universe)
        draft.merge("corporate_actions", market.actions)
        draft.record(AS_OF, "test", CLOCK.now())
    result = train(Panel.from_bars(lake.read("bars")), feature_set("alpha158"), RECIPE)
    open_registry(settings, clock=CLOCK).log_and_register(result, ModelCard(lake.vintage(), settings.hash))


def plan_a_run(engine: Engine, settings: Settings) -> list[Leg]:
    "A run of `TRADED` with four positions, planned as the orchestrator does."
    run_id, strategy = records.run_id_of(settings.run.strategy, TRADED), settings.run.strategy
    capital = Decimal(1_000_000)
    spec = records.RunSpec(run_id, TRADED, strategy, settings.hash, settings.core.seed, capital, (), "a" * 32)
    row, lake = records.begin(engine, spec, CLOCK), open_lake(settings)
    names = lake.read("bars", AS_OF, AS_OF, columns=["symbol", "date"])["symbol"].to_list()
    positions = dict(zip(names[:4], map(Decimal, (900, -350, 120, 60)), strict=True))
    model, view = open_registry(settings).load(1), lake.latest()
    market = MarketReader(lake, settings.universe, settings.features.engine)
    day = plan_day(settings, row, view, Unwired(settings, model, market, CLOCK.now()), positions)
    return keep_plan(engine, run_id, day.plan, learnt_of(settings, view, positions, day))
