"A model on features with all of history behind them is served what it was trained on."

from dataclasses import replace

import numpy as np
import pytest

from tradenb.features.engine import compute
from tradenb.features.panel import Panel
from tradenb.features.sets import FeatureSet
from tradenb.models.registry import ModelCard
from tradenb.models.training import train
from tradenb.portfolio.weights import LongShort
from tradenb.signals.generator import generate
from tradenb.signals.reader import index_bars, recent_panel

from .conftest import AS_OF, RECIPE

TREND = FeatureSet.of("trend", {"CROSS": "EMA($close,5)/EMA($close,20)-1", "HIGH": "$close/Max($close,0)", "GAP": "$open/Ref($close,1)-1"})  # fmt: skip


@pytest.fixture(scope="module")
def panel(house):
    return Panel.from_bars(house.bars)


@pytest.fixture(scope="module")
def version(house, panel):
    result = train(panel, TREND, replace(RECIPE, walk=replace(RECIPE.walk, warmup=60)))
    return house.registry.log_and_register(result, ModelCard(house.lake.vintage(), house.settings.hash))


def test_all_of_history_is_read_where_the_features_need_it(house):
    lake = house.lake.latest()
    index = index_bars(lake)
    every = recent_panel(lake, index, AS_OF, None)
    assert every.dates[0] == np.datetime64(min(index.first_bars.values())) and every.dates[-1] == np.datetime64(AS_OF)
    assert recent_panel(lake, index, AS_OF, 5).shape[1] == 6


def test_the_service_ranks_like_the_batch(house, panel, version, client):
    house.registry.activate(version, "test", "own features")
    assert client.post("/api/v1/model/reload", headers={"X-API-Key": "the-key-of-the-test"}).status_code == 200
    answer = client.post(
        "/api/v1/signals/generate",
        json={"symbols": None, "as_of_date": str(AS_OF)},
        headers={"X-API-Key": "the-key-of-the-test"},
    ).json()
    model = house.registry.load(version)
    assert generate(model, panel, LongShort(3, 3)).signals["symbol"].to_list() == [
        s["symbol"] for s in answer["signals"]
    ]
    block = compute(panel, TREND)
    today = np.zeros(panel.shape, bool)
    today[:, -1] = panel.traded[:, -1]
    raw = model.predict(block.matrix(today))
    names = [panel.symbols[i] for i in np.flatnonzero(today[:, -1])]
    assert [n for _, n in sorted(zip(-raw, names, strict=True))] == [s["symbol"] for s in answer["signals"]]
