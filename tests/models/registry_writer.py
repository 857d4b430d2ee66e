"""Acts on a registry in processes that are killed, or that hurry.

`registry_writer.py kill ROOT` tries every act on a copy of ROOT's database, once for each write that it consists of and is
killed at, and prints for each what is left, as a line of JSON. `race URI ROOT` lets two processes activate at once.
`log ROOT` records a training and is killed before the model is there."""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import lightgbm  # noqa: F401 — imported before processes are made, as what follows
from mlflow import MlflowClient
from mlflow.store.model_registry import sqlalchemy_store as versions_store  # noqa: F401
from mlflow.store.tracking import sqlalchemy_store as runs_store  # noqa: F401
from sqlalchemy import Engine, event

from tradenb.core.clock import SimulatedClock
from tradenb.core.db import connect
from tradenb.models.registry import Registry, aliases, entries_of, recorded, registered


@event.listens_for(Engine, "connect")
def _hurry(connection: object, _record: object) -> None:
    "What a killed process has written the system keeps; only a power failure would need more."
    if hasattr(connection, "execute") and "sqlite" in type(connection).__module__:
        connection.execute("PRAGMA synchronous=OFF")


NOW = datetime(2024, 3, 4, 14, tzinfo=UTC)
NAME = "momentum"
WRITES = (
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "create_model_version",
)


def die_before(write: int, engine: object) -> None:
    "Let the process be killed right before its nth write, of MLflow's or of the platform's database."
    left = [write]

    def count(*_args: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in WRITES:
        real = getattr(MlflowClient, name)

        def writing(self: MlflowClient, *args: object, _real: Callable = real, **how: object) -> object:
            count()
            return _real(self, *args, **how)

        setattr(MlflowClient, name, writing)
    event.listen(engine, "commit", lambda connection: count())


def acts(run_id: str) -> dict[str, Callable[[Registry], object]]:
    "Version 1 is the champion, 2 was, 3 is the challenger; the run is a training that is no version yet."
    return {
        "activate": lambda r: r.activate(3, "ada", "better"),
        "retire": lambda r: r.retire(3, "ada", "leaky"),
        "deactivate": lambda r: r.deactivate("ada", "holiday"),
        "register": lambda r: r.register(run_id, "ada", "new"),
    }


def in_a_process(work: Callable[[], None]) -> bool:  # did it live to its end?
    if not (child := os.fork()):
        code = 1
        try:
            work()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the process ended with {os.WEXITSTATUS(status)}")
    return not os.WIFSIGNALED(status)


def opened(root: Path, database: Path) -> Registry:
    engine = connect(f"sqlite:///{database}.platform")
    return Registry(root, NAME, uri=f"sqlite:///{database}", engine=engine, clock=SimulatedClock(NOW))


def left_behind(registry: Registry, action: str, write: int, lived: bool) -> dict[str, object]:
    "What a reader finds, and what the next act makes of it."
    seen, champion = registry.history(), registry.champion_version()
    found = {"action": action, "write": write, "lived": lived, "champion": champion, "seen": seen["action"].to_list()}
    found["says"] = last_champion(list(zip(seen["action"], seen["version"], strict=True)))
    registry.activate(1, "grace", "goes on")
    entries = entries_of(registered(registry).tags)  # type: ignore[union-attr]
    after = registry.history()
    return found | {
        "pending": [e.action for e in entries if not e.done],
        "aliases": dict(aliases(registry)),
        "after": after["action"].to_list(),
        "copied": recorded(registry.engine, NAME).equals(after),  # type: ignore[arg-type]
    }


def last_champion(acts: list[tuple[str, int]]) -> int | None:
    "As a reader of the history would say."
    champion = None
    for action, version in acts:
        if action in ("activate", "rollback", "moved"):
            champion = version
        elif action in ("deactivate", "removed"):
            champion = None
    return champion


def copy_of(root: Path, name: str) -> Path:
    "MLflow's database and the platform's."
    shutil.copyfile(root / "mlflow" / "mlflow.db", root / f"{name}.db")
    shutil.copyfile(root / "platform.db", root / f"{name}.db.platform")
    return root / f"{name}.db"


def attempt(root: Path, database: Path, act: Callable[[Registry], object], write: int) -> None:
    registry = opened(root, database)
    die_before(write, registry.engine)
    act(registry)


def kill(root: Path, run_id: str, action: str) -> None:
    opened(root, copy_of(root, "warm")).activate(1, "ada", "warming up")  # what that compiles every process has
    act, tried, lived = acts(run_id)[action], [], False
    while not lived and len(tried) < 20:
        write, database = len(tried), copy_of(root, f"{action}{len(tried)}")
        lived = in_a_process(partial(attempt, root, database, act, write))
        tried.append((database, action, write, lived))
    for database, *what in tried:
        print(json.dumps(left_behind(opened(root, database), *what)), flush=True)


def race(uri: str, root: Path, times: int) -> None:
    def hurry(version: int) -> None:
        registry = Registry(root, NAME, uri=uri, clock=SimulatedClock(NOW))
        for n in range(times):
            registry.activate(version, f"process {version}", f"time {n}")

    children = []
    for version in (1, 2):
        if not (child := os.fork()):
            hurry(version)
            os._exit(0)
        children.append(child)
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def log(root: Path) -> None:
    from tradenb.features.panel import random_panel
    from tradenb.features.sets import feature_set
    from tradenb.models import tracking
    from tradenb.models.splits import WalkForward
    from tradenb.models.training import TrainingConfig, train

    windows = WalkForward(train=100, valid=30, test=40, warmup=60)
    config = TrainingConfig(windows, rounds=3, min_data_in_leaf=50, threads=1, top_n=4, bottom_n=4)
    result = train(random_panel(12, 300, seed=5), feature_set("alpha158"), config)
    tracking.log_fitted = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    Registry(root, NAME).log_and_register(result, tracking.ModelCard({"bars": 1}, "5e77"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case "kill", root, run_id, action:
            kill(Path(root), run_id, action)
        case "race", uri, root, times:
            race(uri, Path(root), int(times))
        case "log", root:
            log(Path(root))
