"A lake with a simulated market, two different registered models, and the service over real HTTP."

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import httpx
import polars as pl
import pytest

import tests.patience  # noqa: F401  (whoever asks a server waits)
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.settings import Settings, load
from tradenb.core.web import serving
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.market.actions import place_events
from tradenb.market.demo import simulate
from tradenb.market.lake import Lake, open_lake
from tradenb.models.registry import ModelCard, Registry, open_registry
from tradenb.models.splits import WalkForward
from tradenb.models.training import TrainingConfig, train
from tradenb.signals.service import create_app

PROJECT = Path(__file__).resolve().parents[2]
RECIPE = TrainingConfig(
    WalkForward(train=120, valid=30, test=100, warmup=60),
    rounds=10,
    num_leaves=7,
    feature_fraction=0.8,
    min_data_in_leaf=20,
    threads=1,
    top_n=3,
    bottom_n=3,
)
KEY = "the-key-of-the-test"
AS_OF = date(2023, 6, 30)


@dataclass(frozen=True)
class House:
    settings: Settings
    lake: Lake
    bars: pl.DataFrame
    registry: Registry
    versions: tuple[int, int]  # two models that predict differently
    clock: SimulatedClock

    def write(self, bars: pl.DataFrame, remove: pl.DataFrame | None = None) -> None:
        "Change the lake's bars, as a later ETL would."
        with self.lake.writing() as draft:
            draft.merge("bars", bars, remove)
            draft.record(AS_OF, "test", self.clock.now())


def settings_at(root: Path) -> Settings:
    values = {"core.root": str(root), "portfolio.top_n": 3, "portfolio.bottom_n": 3, "portfolio.n_drop": 1}
    return load(values, env={"TRADENB_SERVICES__API_KEY": KEY}, file=PROJECT / "settings.ini")


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    settings = settings_at(tmp_path_factory.mktemp("signals"))
    demo = simulate(symbols=24, start=date(2022, 1, 3), end=AS_OF, seed=5, bad_rows=0)
    lake, clock = open_lake(settings), SimulatedClock(new_york(date(2023, 7, 3), 9))
    with lake.writing() as draft:
        draft.merge("bars", demo.truth)
        draft.merge("adjustments", place_events(demo.actions, demo.truth))
        draft.merge("universe", demo.universe)
        draft.record(AS_OF, "test", clock.now())
    bars = lake.read("bars")
    registry, panel = open_registry(settings, clock=clock), Panel.from_bars(bars)
    results = [train(panel, feature_set("alpha158"), replace(RECIPE, seed=seed)) for seed in (1, 2)]
    first, second = (registry.log_and_register(r, ModelCard(lake.vintage(), settings.hash)) for r in results)
    return House(settings, lake, bars, registry, (first, second), clock)


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    "The service with the first model active."
    house.registry.activate(house.versions[0], "test", "start")
    with serving(create_app(house.settings, house.clock)) as url, httpx.Client(base_url=url) as client:
        yield client
