"Another feature set in the settings is another model on the next day."

from datetime import date
from pathlib import Path

import pytest

from tradenb.core.errors import ConfigError
from tradenb.core.settings import find_file
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.market.demo import simulate
from tradenb.models.registry import ModelCard, open_registry
from tradenb.models.splits import WalkForward
from tradenb.models.training import TrainingConfig, train
from tradenb.trading.modelling import wanted_features
from tradenb.trading.run import start_run
from tradenb.trading.stages import reason_to_train

AS_OF, TRADED = date(2023, 6, 30), date(2023, 7, 3)
TINY = TrainingConfig(
    WalkForward(train=120, valid=30, test=60, warmup=60),
    rounds=5, num_leaves=4, min_data_in_leaf=20, threads=1, top_n=3, bottom_n=3,
)  # fmt: skip


def write(path: Path, window: int) -> str:
    path.write_text(f'[features]\nMOM = "$close/Ref($close,{window})-1"\n')
    return str(path)


def test_a_champion_on_other_features_than_the_settings_name_is_replaced(make_settings, tmp_path: Path) -> None:
    named = {"features.set": write(tmp_path / "mine.toml", 10)}
    settings = make_settings(**named)
    panel = Panel.from_bars(
        simulate(symbols=12, start=date(2022, 1, 3), end=AS_OF, seed=5, bad_rows=0).truth, adjusted=False
    )
    registry = open_registry(settings)
    result = train(panel, feature_set(named["features.set"]), TINY)
    registry.activate(registry.log_and_register(result, ModelCard({"bars": 1}, settings.hash)), "test", "first")
    run = start_run(settings, TRADED)
    assert reason_to_train(run, registry) is None
    write(tmp_path / "mine.toml", 12)
    assert "the champion was trained on other features (mine " in str(reason_to_train(run, registry))
    write(tmp_path / "mine.toml", 10)
    assert reason_to_train(run, registry) is None


def test_a_relative_path_counts_from_the_settings_own_folder(make_settings) -> None:
    with pytest.raises(ConfigError, match=f"no feature set at {find_file().parent / 'sets' / 'gone.toml'}"):
        wanted_features(make_settings(**{"features.set": "sets/gone.toml"}))
    assert wanted_features(make_settings()) is feature_set("alpha158")
