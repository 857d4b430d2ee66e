"A setting says what computes the features of a training; the model is the same to the last bit."

from collections.abc import Callable
from datetime import date

import pytest
from distributed import LocalCluster

from tests.trading.short_training import SHORT
from tradenb.core.clock import new_york
from tradenb.core.errors import ServiceUnavailable
from tradenb.core.settings import Settings
from tradenb.features import compiled
from tradenb.market.demo import simulate
from tradenb.market.lake import Lake, open_lake
from tradenb.models.regressors import fingerprint
from tradenb.trading.modelling import train_model

AS_OF = date(2023, 6, 30)


@pytest.fixture
def lake(make_settings: Callable[..., Settings]) -> Lake:
    demo = simulate(symbols=12, start=date(2022, 1, 3), end=AS_OF, seed=5, bad_rows=0)
    lake = open_lake(make_settings())
    with lake.writing() as draft:
        draft.merge("bars", demo.truth)
        draft.merge("universe", demo.universe)
        draft.record(AS_OF, "test", new_york(AS_OF, 18))
    return lake.latest()


def test_engine_and_scheduler_change_no_bit_of_a_model(make_settings: Callable[..., Settings], lake: Lake) -> None:
    def trained(**ways: str) -> str:
        settings = make_settings(**SHORT, **{f"features.{key}": value for key, value in ways.items()})
        return fingerprint(train_model(settings, lake, AS_OF, ()).model)

    here = trained()
    assert trained(engine="numpy") == here
    if compiled.load():
        assert trained(engine="numba") == here
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster:
        assert trained(scheduler=cluster.scheduler_address) == here
    with pytest.raises(ServiceUnavailable, match="no Dask scheduler at tcp://nowhere"):
        trained(scheduler="tcp://nowhere.invalid:8786")
