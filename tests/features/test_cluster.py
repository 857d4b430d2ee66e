"Features from a Dask cluster: the bits of this machine, or an error of ours."

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
from distributed import LocalCluster
from numpy._core._multiarray_umath import __cpu_dispatch__

from tradenb.core.errors import ConfigError, DataError, ExpressionError, InputError, ServiceUnavailable
from tradenb.core.progress import heard_by
from tradenb.features import cluster as module
from tradenb.features.cluster import compute_on, connected, worker_errors
from tradenb.features.engine import compute
from tradenb.features.expressions import parse
from tradenb.features.panel import Panel, random_panel
from tradenb.features.sets import FeatureSet, feature_set

FSET = feature_set("alpha158")
MARKET = random_panel(40, 200, seed=6, suspended=0.02)
HERE = compute(MARKET, FSET).values.tobytes()
RECURSIVE = FeatureSet.of("recursive", {"SLOW": "EMA($close, 10)", "ALL": "Mean($close, 0)", "NEAR": "Mean($close, 5)"})


def two_workers() -> LocalCluster:
    ours = {"n_workers": 2, "processes": True, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    return LocalCluster(**ours, silence_logs=50)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with two_workers() as cluster:
        yield cluster


@pytest.mark.parametrize("symbols", [7, None, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 40))])
def test_two_processes_give_the_bytes_of_this_one(cluster: LocalCluster, symbols: int | None) -> None:
    block = compute_on(cluster.scheduler_address, MARKET, FSET, symbols_per_chunk=symbols)
    assert block.values.tobytes() == HERE
    assert (block.symbols, block.names) == (MARKET.symbols, FSET.names)
    assert (block.traded == MARKET.traded).all()


def test_compute_goes_where_the_scheduler_is(cluster: LocalCluster) -> None:
    assert compute(MARKET, FSET, scheduler=cluster.scheduler_address).values.tobytes() == HERE
    with pytest.raises(ServiceUnavailable, match="no Dask scheduler at tcp://nowhere"):
        compute(MARKET, FSET, scheduler="tcp://nowhere.invalid:8786")


def test_both_workers_take_part(cluster: LocalCluster) -> None:
    with connected(cluster.scheduler_address, 10) as client:
        before = client.run(os.getpid)
    assert len(set(before.values()) - {os.getpid()}) == 2


def test_a_day_from_a_cluster_is_the_day_of_a_batch(cluster: LocalCluster) -> None:
    day = compute_on(cluster.scheduler_address, MARKET.tail(61), FSET, start=MARKET.dates[-1], symbols_per_chunk=9)
    assert day.values.tobytes() == np.ascontiguousarray(compute(MARKET, FSET).values[:, :, -1:]).tobytes()


def test_an_empty_span_asks_for_nothing(cluster: LocalCluster) -> None:
    after = compute_on(cluster.scheduler_address, MARKET, FSET, start=MARKET.dates[-1] + 1)
    assert after.values.shape == (158, 40, 0)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_a_worker_killed_on_the_way_changes_no_bit(cluster: LocalCluster, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deadline, victim = int(rng.integers(1, 12)), int(rng.integers(2))
    said: list[str] = []

    def kill_one(text: str) -> None:
        said.append(text)
        if len(said) == deadline:
            os.kill(pids[victim], signal.SIGKILL)

    cluster.wait_for_workers(2, timeout=60)
    with connected(cluster.scheduler_address, 30) as client:
        pids = sorted(client.run(os.getpid).values())
    with heard_by(kill_one):
        block = compute_on(cluster.scheduler_address, MARKET, FSET, symbols_per_chunk=2)
    assert block.values.tobytes() == HERE, f"seed {seed}"
    assert said[-1] == "Features: 40 of 40 symbols"


def test_symbols_that_kill_every_worker_end_the_computation() -> None:
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), two_workers() as doomed:
        address = doomed.scheduler_address
        with (
            connected(address, 30) as client,
            pytest.raises(ServiceUnavailable, match="died on the same symbols"),
            worker_errors(address),
        ):
            client.submit(os._exit, 1, pure=False).result()


def test_a_scheduler_that_goes_away_is_a_service_that_is_not_there() -> None:
    doomed = two_workers()
    address, said = doomed.scheduler_address, []

    def close(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(doomed.close).result()

    with pytest.raises(ServiceUnavailable, match=r"connection to the Dask scheduler at .* was lost"), heard_by(close):
        compute_on(address, MARKET, FSET, symbols_per_chunk=1)


def test_no_scheduler_and_no_workers_are_told_apart() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceUnavailable, match="no Dask scheduler at"):
            compute_on(f"tcp://127.0.0.1:{free.getsockname()[1]}", MARKET, FSET, timeout_s=1)
    with pytest.raises(ServiceUnavailable, match="no Dask scheduler at nonsense"):
        compute_on("nonsense", MARKET, FSET, timeout_s=1)
    with (
        LocalCluster(n_workers=0, processes=True, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(ServiceUnavailable, match="has no workers"),
    ):
        compute_on(empty.scheduler_address, MARKET, FSET, timeout_s=1)


def test_errors_of_ours_come_back_as_they_are_and_others_as_a_failed_service(cluster: LocalCluster) -> None:
    address = cluster.scheduler_address
    with (
        connected(address, 10) as client,
        pytest.raises(ConfigError, match="no feature set 'alpha159'"),
        worker_errors(address),
    ):
        client.submit(feature_set, "alpha159", pure=False).result()
    broken = Panel(MARKET.symbols, MARKET.dates, {"close": MARKET.fields["close"]}, MARKET.listed)
    with pytest.raises(InputError, match="the panel has no field high, low, open"):
        compute_on(address, broken, FSET)
    with (
        connected(address, 10) as client,
        pytest.raises(ServiceUnavailable, match=r"a worker of tcp.* failed with ZeroDivisionError"),
        worker_errors(address),
    ):
        client.submit(divmod, 1, 0, pure=False).result()


def test_a_worker_that_gives_other_bits_is_refused(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "proof", lambda fset: "what another processor gives")
    with pytest.raises(DataError, match="gives other bits than this machine for alpha158"):
        compute_on(cluster.scheduler_address, MARKET, FSET)


def test_a_worker_whose_processor_rounds_a_logarithm_differently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    "NumPy can be told to leave instructions alone; then it is a NumPy on an older processor."
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", " ".join(__cpu_dispatch__))
    code = "from tradenb.features.cluster import proof; from tradenb.features.sets import feature_set; print(proof(feature_set('alpha158')))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if there.stdout.strip() in ("", module.proof(FSET)):
        pytest.skip("this NumPy rounds alike without its processor's newer instructions")
    with two_workers() as cluster, pytest.raises(DataError, match="gives other bits than this machine for alpha158"):
        compute_on(cluster.scheduler_address, MARKET, FSET)


def test_states_of_recursions_come_back_joined_and_go_out_again(cluster: LocalCluster) -> None:
    past = MARKET.until(MARKET.dates[-2])
    there = compute_on(cluster.scheduler_address, past, RECURSIVE, symbols_per_chunk=7)
    here = compute(past, RECURSIVE)
    assert there.state is not None
    assert here.state is not None
    assert there.state.symbols == here.state.symbols
    for name in ("values", "listed", "bars"):
        assert getattr(there.state, name).tobytes() == getattr(here.state, name).tobytes()
    day = compute_on(cluster.scheduler_address, MARKET.tail(20), RECURSIVE, state=there.state, symbols_per_chunk=9)
    assert day.values.tobytes() == np.ascontiguousarray(compute(MARKET, RECURSIVE).values[:, :, -1:]).tobytes()
    with pytest.raises(InputError, match="another feature set's"):
        compute_on(cluster.scheduler_address, MARKET.tail(20), FSET, state=there.state)


def test_an_error_of_the_language_crosses_machines_with_all_it_says(cluster: LocalCluster) -> None:
    with (
        connected(cluster.scheduler_address, 10) as client,
        pytest.raises(ExpressionError) as caught,
        worker_errors(cluster.scheduler_address),
    ):
        client.submit(parse, "Mean($clse, 5)", pure=False).result()
    with pytest.raises(ExpressionError) as here:
        parse("Mean($clse, 5)")
    assert str(caught.value) == str(here.value)
    assert vars(caught.value) == vars(here.value)
