"A market with a planted, learnable order, and one small training on it."

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tradenb.features.panel import FIELDS, Panel, random_panel
from tradenb.features.sets import feature_set
from tradenb.models.splits import WalkForward
from tradenb.models.training import TrainingConfig, TrainingResult, train

SMALL = TrainingConfig(
    WalkForward(train=120, valid=30, test=40, warmup=60),
    rounds=20,
    early_stopping=10,
    num_leaves=7,
    feature_fraction=0.8,
    min_data_in_leaf=20,
    threads=1,
    top_n=4,
    bottom_n=4,
)


def reverting_panel(symbols: int, sessions: int, seed: int, strength: float = 0.4) -> Panel:
    "A random panel whose next return leans against yesterday's."
    base, rng = random_panel(symbols, sessions, seed, suspended=0), np.random.default_rng(seed)
    close, shocks = np.full((symbols, sessions), 100.0), 0.02 * rng.standard_t(5, (symbols, sessions))
    for t in range(2, sessions):
        yesterday = close[:, t - 1] / close[:, t - 2] - 1
        close[:, t] = close[:, t - 1] * np.exp(shocks[:, t] - strength * yesterday)
    scale = np.where(base.listed, close / base.fields["close"], np.nan).astype(np.float32)
    fields = {f: base.fields[f] * (1 if f == "volume" else scale) for f in FIELDS}
    return Panel(base.symbols, base.dates, fields, base.listed)


@pytest.fixture(scope="package")
def market() -> Panel:
    return reverting_panel(24, 330, seed=11)


@pytest.fixture(scope="package")
def result(market: Panel) -> TrainingResult:
    return train(market, feature_set("alpha158"), SMALL)


@pytest.fixture(scope="session")
def root_with_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    "Give a data root MLflow's database without a run in it: making its tables takes longer than most tests."
    from tradenb.models.tracking import Tracking

    made = Tracking(tmp_path_factory.mktemp("template"), "none")
    assert made.client

    def give(root: Path) -> Path:
        (root / "mlflow").mkdir(parents=True)
        shutil.copyfile(made.root / "mlflow" / "mlflow.db", root / "mlflow" / "mlflow.db")
        return root

    return give
