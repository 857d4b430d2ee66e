"""Signals over HTTP from a warm service, beside MLflow's own server with the same model; and models swapped under load.

The market is simulated, the model a LightGBM of 200 trees on Alpha158 with the platform's recipe. Both servers are single processes on loopback, asked by the same generator in a third process:
- ours is sent names. It checks the newest vintage, takes the names' features from its memory, predicts, puts the predictions on one scale, ranks, weighs, and answers with symbols, weights, versions and vintage.
- MLflow's `mlflow models serve` is sent the feature rows, which whoever asks must have got from somewhere, and answers with bare predictions.

TRADENB_BENCH_ROUNDS sets how long: 2 s a round for each measurement, 12 s and four changes of the model for the proof (5, so 60 s and 20 changes, if it is not set). TRADENB_BENCH_SYMBOLS is the size of the universe, 500 if it is not set.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import httpx
import numpy as np

from tradenb.core.clock import Stopwatch, SystemClock, new_york, sleep
from tradenb.core.settings import Settings, load
from tradenb.core.web import Server, listen
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.market.actions import place_events
from tradenb.market.demo import simulate
from tradenb.market.lake import Lake, open_lake
from tradenb.models.registry import ModelCard, Registry, open_registry, stored
from tradenb.models.splits import WalkForward
from tradenb.models.training import TrainingConfig, train
from tradenb.portfolio.constructors import constructor
from tradenb.signals.generator import Inputs, generate, inputs

from . import Result
from ._load import HEADERS, Job, Load, Outcome
from ._measure import PROJECT, command

ROUNDS = int(os.environ.get("TRADENB_BENCH_ROUNDS", 5))
SYMBOLS = int(os.environ.get("TRADENB_BENCH_SYMBOLS", 500))
SIZES = [size for size in (5, 100, 500) if size <= SYMBOLS]
AS_OF, KEY, CONNECTIONS = date(2023, 6, 30), "the-key-of-the-benchmark", 4
RECIPE = TrainingConfig(
    WalkForward(train=160, valid=40, test=60, warmup=60), rounds=200, min_rounds=200, num_leaves=31, threads=2
)


def settings_of(root: Path) -> Settings:
    book = {"portfolio.top_n": 2, "portfolio.bottom_n": 2, "signals.shadow": "false"}
    return load({"core.root": str(root)} | book, env={"TRADENB_SERVICES__API_KEY": KEY})


@dataclass(frozen=True)
class House:
    "A data root with a market and two versions of a model."

    settings: Settings
    lake: Lake
    registry: Registry
    versions: tuple[int, int]
    day: Inputs
    panel: Panel

    def names(self, size: int) -> list[str]:
        return list(self.day.symbols[:size])


def build(root: Path) -> House:
    "Simulate, train twice, register."
    settings, clock = settings_of(root), SystemClock()
    demo = simulate(symbols=SYMBOLS + SYMBOLS // 6 + 4, start=date(2022, 1, 3), end=AS_OF, seed=5, bad_rows=0)
    lake = open_lake(settings)
    with lake.writing() as draft:
        draft.merge("bars", demo.truth)
        draft.merge("adjustments", place_events(demo.actions, demo.truth))
        draft.merge("universe", demo.universe)
        draft.record(AS_OF, "benchmark", new_york(AS_OF, 18))
    panel, fset = Panel.from_bars(lake.read("bars")), feature_set("alpha158")
    registry, card = open_registry(settings, clock=clock), ModelCard(lake.vintage(), settings.hash)
    made = (train(panel, fset, replace(RECIPE, seed=seed)) for seed in (1, 2))
    first, second = (registry.log_and_register(result, card) for result in made)
    registry.activate(first, "benchmark", "first")
    house = House(settings, lake, registry, (first, second), inputs(panel, fset), panel)
    print(f"  {len(house.day.symbols)} names traded on {AS_OF}, model of {RECIPE.rounds} trees")
    return house


@contextlib.contextmanager
def process(arguments: list[str], heard: bool, **environment: str) -> Iterator[subprocess.Popen[str]]:
    "A server's process group of our own, ended with the block. One that is not heard talks into a file: a full pipe would hold it up."
    errors = TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE if heard else errors}
    environment = os.environ | environment
    one = subprocess.Popen(
        arguments, text=True, cwd=PROJECT, env=environment, start_new_session=True, stderr=errors, **pipes
    )
    try:
        yield one
    except Exception:
        errors.seek(0)
        print("".join(errors.readlines()[-20:]), file=sys.stderr)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()
        for pipe in (one.stdin, one.stdout, errors):
            if pipe:
                pipe.close()


@contextlib.contextmanager
def ours(root: Path) -> Iterator[str]:
    "The service as it runs in production; yields its address."
    with process(command("signals", ["serve", root]), heard=True, POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1") as one:
        assert one.stdout
        yield one.stdout.readline().strip()


@contextlib.contextmanager
def mlflows(house: House) -> Iterator[str]:
    "MLflow's server of the first version; yields its address."
    with contextlib.closing(listen("127.0.0.1")) as free:
        port = free.getsockname()[1]
    model = house.settings.root / "served_by_mlflow"  # a copy: it writes into the folder that it serves
    shutil.copytree(stored(house.registry, house.versions[0]).model, model)
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where it looks for uvicorn
    with process(
        serve, heard=False, MLFLOW_TRACKING_URI=house.registry.tracking_uri, OMP_NUM_THREADS="1", PATH=path
    ) as one:
        url, watch = f"http://127.0.0.1:{port}", Stopwatch()
        while not answers(url):
            if one.poll() is not None or watch.seconds > 300:
                raise ChildProcessError("MLflow's server did not start")
            sleep(0.1)
        yield url


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/ping").status_code == 200
    return False


def question(house: House, size: int) -> str:
    return json.dumps({"symbols": house.names(size)})


def rows(house: House, size: int) -> str:
    "The same names as MLflow's server wants them: their features."
    x = house.day.x[:size].tolist()
    data = [[value if math.isfinite(value) else None for value in row] for row in x]
    return json.dumps({"dataframe_split": {"columns": list(feature_set("alpha158").names), "data": data}})


def same_work(house: House, url: str) -> None:
    "Both servers predict alike, or there is nothing to compare."
    answer = httpx.post(f"{url}/invocations", content=rows(house, 5), headers=HEADERS, timeout=60)
    told = np.ravel(answer.raise_for_status().json()["predictions"])
    np.testing.assert_allclose(told, house.registry.load(house.versions[0]).predict(house.day.x[:5]), rtol=1e-12)


def together(outcomes: list[Outcome]) -> Outcome:
    "Several rounds as one."
    failed = [wrong for one in outcomes for wrong in one.failed]
    assert not failed, failed[:3]
    return Outcome(sum(one.seconds for one in outcomes), sorted(ms for one in outcomes for ms in one.ms))


def loaded(url: str, body: str, connections: int, seconds: float) -> Outcome:
    with Load(Job(url, body, seconds, connections)) as load:
        return load.outcome()


def compared(house: House, service: str, other: str, size: int) -> list[Result]:
    "Round after round, one after the other: with one client for the latency, with four for the throughput."
    asks = {"ours": (f"{service}/api/v1/signals/generate", question(house, size)), "mlflow": (f"{other}/invocations", rows(house, size))}  # fmt: skip
    found: dict[tuple[str, int], list[Outcome]] = {}
    for number in range(ROUNDS + 1):
        for clients in (1, CONNECTIONS):
            for name, (url, body) in asks.items():
                outcome = loaded(url, body, clients, 2 if number else 1)
                if number:  # the first warms up
                    found.setdefault((name, clients), []).append(outcome)
    sums = {key: together(outcomes) for key, outcomes in found.items()}
    for (name, clients), one in sums.items():
        print(f"  {size:3} symbols, {clients} connections, {name:6}: {one.per_second:7.1f} answers a second, p50 {one.quantile(0.5):7.2f} ms, p99 {one.quantile(0.99):7.2f} ms")  # fmt: skip
    ratio = sums["ours", CONNECTIONS].per_second / sums["mlflow", CONNECTIONS].per_second
    return [
        (f"signals.p50_ms_{size}", sums["ours", 1].quantile(0.5), "ms"),
        (f"signals.p99_ms_{size}", sums["ours", 1].quantile(0.99), "ms"),
        (f"signals.p99_ms_{size}_four", sums["ours", CONNECTIONS].quantile(0.99), "ms"),
        (f"signals.per_second_{size}", sums["ours", CONNECTIONS].per_second, "1/s"),
        (f"signals.vs_mlflow_{size}", ratio, "×"),
    ]


def first_answer(house: House) -> float:  # ms
    "From a service that has only just started; its start is not counted."
    with ours(house.settings.root) as url, httpx.Client(base_url=url, timeout=60) as client:
        asked = client.post("/api/v1/signals/generate", content=question(house, SIZES[-1]), headers=HEADERS)
        return asked.raise_for_status().elapsed.total_seconds() * 1e3


def reloads(house: House, url: str, changes: int) -> list[float]:  # ms each
    "Activate the other version and tell the service, again and again."
    took = []
    for number in range(changes):
        house.registry.activate(house.versions[(number + 1) % 2], "benchmark", "swap")
        answer = httpx.post(f"{url}/api/v1/model/reload", headers={"X-API-Key": KEY}, timeout=60).raise_for_status()
        assert answer.json()["reloaded"]
        took.append(answer.elapsed.total_seconds() * 1e3)
    return took


def swapped(house: House, url: str) -> list[Result]:
    "Activations and rollbacks under load: every answer must be wholly of the version that it names."
    names = house.names(SIZES[-1])
    made = constructor(house.settings.portfolio)
    told = {v: generate(house.registry.load(v), house.panel, made, names).signals.to_dicts() for v in house.versions}
    assert told[house.versions[0]] != told[house.versions[1]]
    file = house.settings.root / "expected.json"
    file.write_text(json.dumps(told))
    calm = reloads(house, url, 6)
    job = Job(f"{url}/api/v1/signals/generate", json.dumps({"symbols": names}), 12 * ROUNDS, CONNECTIONS, str(file))
    with Load(job) as load:
        busy = reloads(house, url, 4 * ROUNDS)
        outcome = load.outcome()
    print(f"  {len(outcome.ms)} answers in {outcome.seconds:.0f} s during {len(busy)} changes of the model, by version {outcome.versions}: {len(outcome.failed)} failed; p99 {outcome.quantile(0.99):.1f} ms {outcome.failed[:3]}")  # fmt: skip
    return [
        ("signals.reload_ms", median(calm), "ms"),
        ("signals.reload_ms_under_load", median(busy), "ms"),
        ("signals.swaps", len(busy), "changes"),
        ("signals.failed", len(outcome.failed), "answers"),
        ("signals.answered_while_swapped", len(outcome.ms), "answers"),
    ]


def main() -> list[Result]:
    "All of it in a folder that is thrown away."
    with TemporaryDirectory() as folder:
        house = build(Path(folder))
        cold = median(first_answer(house) for _ in range(min(3, ROUNDS)))
        found: list[Result] = [("signals.cold_ms", cold, "ms")]
        with ours(house.settings.root) as url:
            with mlflows(house) as other:
                same_work(house, other)
                for size in SIZES:
                    found += compared(house, url, other, size)
            found.append(("signals.vs_mlflow", min(v for name, v, _ in found if "vs_mlflow" in name), "×"))
            return found + swapped(house, url)


def serve(root: Path) -> None:
    "The service's process: its address on stdout, until stdin ends."
    from tradenb.core.logs import configure
    from tradenb.signals.service import create_app

    settings = settings_of(root)
    configure("signals", root, "INFO")
    server = Server(create_app(settings, SystemClock())).start()
    print(server.url, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[2]))
