"""What keeps a desk in order between its days: is a training due, do the books agree, what can be tidied up."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from pipelines.lake import compact_now, newest_session, open_filled, vacuum_now
from tradenb.core.calendar import is_session, next_session, session
from tradenb.core.clock import NEW_YORK, SystemClock
from tradenb.core.db import database, database_url
from tradenb.core.errors import DependencyError, one_line
from tradenb.core.settings import Settings
from tradenb.models.registry import open_registry
from tradenb.trading import records

if TYPE_CHECKING:
    from tradenb.signals.monitor import Drift

# ---- is a training due?


@dataclass(frozen=True)
class Due:
    "Whether a model is to be trained."

    reason: str | None  # None: not yet
    kept: str = ""  # Then: why the champion stays


def training_due(settings: Settings) -> Due:
    "Age, features and code by the rule of the daily run; drift where `schedule.retrain_on_drift` asks for it. `LakeError` when there is no lake."
    from tradenb.trading.stages import reason_to_train

    with database(settings) as engine:
        as_of, registry = newest_session(open_filled(settings)), open_registry(settings, engine)
        asked: Any = SimpleNamespace(settings=settings, as_of=as_of)  # All that the rule wants to know of a run
        if reason := reason_to_train(asked, registry):
            return Due(reason)
        champion = registry.champion()
    if settings.schedule.retrain_on_drift and (moved := drifted(settings)):
        return Due(moved)
    kept = f"version {champion.version}, trained through {champion.trained_through}, is good as of {as_of}"
    return Due(None, kept + (": it is young enough and nothing drifted" if settings.schedule.retrain_on_drift else ""))


def drifted(settings: Settings) -> str | None:
    "Why the newest sessions are too far from the champion's training, as the signal service's monitor measures it; None: they are not."
    from tradenb.signals.service import open_desk

    desk = open_desk(settings, SystemClock())
    desk.holder.reload()
    desk.monitor.look()
    seen = desk.monitor.watched
    return moved_away(seen.drift, settings.signals.max_psi) if seen and seen.drift else None


def moved_away(found: "Drift", max_psi: float) -> str | None:
    "Why this drift asks for a training: the predictions have moved, or many of the inputs."
    from tradenb.models.drift import PREDICTION

    if not found.serious(max_psi):
        return None
    moved = found.moved(max_psi)
    what = (
        "the predictions have" if PREDICTION in moved["name"] else f"{moved.height} of {found.table.height} inputs have"
    )
    return (
        f"{what} moved since the training ({found.start} to {found.end}, population stability index above {max_psi:g})"
    )


def train(settings: Settings, why: str) -> tuple[Any, dict[str, float]]:
    "The champion after a training, and its metrics out of sample."
    from pipelines.parts import train_now

    return train_now(settings, None, why)


# ---- do the books agree?

AFTER_CLOSE = timedelta(hours=1)  # Late fills come in


def market_closed(settings: Settings) -> str | None:
    "Why there is nothing to compare now; None with a simulated market, which is never closed for long, and while a real one is open."
    now = SystemClock().now()
    today = now.astimezone(NEW_YORK).date()
    if settings.execution.broker == "exchange":
        return None
    if not is_session(today):
        return f"{today} is no session of the NYSE: the next one is {next_session(today)}"
    hours = session(today)
    if hours.open <= now <= hours.close + AFTER_CLOSE:
        return None
    opens, closes = (at.astimezone(NEW_YORK).strftime("%H:%M") for at in (hours.open, hours.close))
    return (
        f"the market is open from {opens} to {closes} in New York{' today (early close)' if hours.early_close else ''}"
    )


def reconcile(settings: Settings) -> dict[str, Any]:
    "The gateway's comparison with the broker: the running one's, else that of one that starts for it."
    from tradenb.trading.clients import ExecutionClient
    from tradenb.trading.service import secret
    from tradenb.trading.services import addresses, running, with_addresses

    with ExitStack() as stack:
        ready = with_addresses(settings, addresses(settings.root))
        if not ready.services.execution_url:
            ready = stack.enter_context(running(settings, last_traded(settings)))
        url, key = ready.services.execution_url, secret(ready.services.api_key)
        gateway = stack.enter_context(closing(ExecutionClient(url, key)))
        answer: dict[str, Any] = gateway.call("POST", "/api/v1/reconciliation", json={})
        return answer


def last_traded(settings: Settings) -> date:
    "The date of the last finished run; without one, the session that a first run would trade."
    from pipelines.day import next_trade_date
    from tradenb.market.catalog import open_source

    with database(settings) as engine:
        last = records.last_done(engine, settings.run.strategy)
    return last.trade_date if last else next_trade_date(settings, open_source(settings))


# ---- what can be tidied up?

SNAPSHOTS = 8  # Copies of the databases that are kept


def compact(settings: Settings) -> str:
    "Fewer files in the lake."
    return repr(compact_now(settings))


def vacuum(settings: Settings) -> str:
    "No leftovers in the lake."
    return repr(vacuum_now(settings, dry_run=False))


def snapshot(settings: Settings) -> str:
    "A copy of every database as it is at one moment, below `<root>/snapshots/<date>`; the oldest copies go."
    folder = settings.root / "snapshots" / f"{SystemClock().now():%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    told = [copy_sqlite(file, folder / file.name) for file in sqlite_files(settings)]
    told += [dump_postgres(url, folder) for url in postgres_urls(settings)]
    for old in sorted(folder.parent.iterdir())[:-SNAPSHOTS]:
        shutil.rmtree(old)
    return f"{'; '.join(told)}, in {folder}" if told else "there is no database yet"


def addresses_of(settings: Settings) -> list[str]:
    "The databases of state and of models."
    models = settings.registry.uri or f"sqlite:///{settings.root / 'mlflow' / 'mlflow.db'}"
    return [database_url(settings), models, f"sqlite:///{settings.root / 'state' / 'exchange.db'}"]


def sqlite_files(settings: Settings) -> list[Path]:
    urls = map(make_url, addresses_of(settings))
    files = [Path(url.database or "") for url in urls if url.get_backend_name() == "sqlite"]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def postgres_urls(settings: Settings) -> list[Any]:
    urls = [
        make_url(address).set(drivername="postgresql")
        for address in addresses_of(settings)
        if address.startswith("postgres")
    ]
    return list(dict.fromkeys(urls))


def copy_sqlite(file: Path, copy: Path) -> str:
    "Copy a SQLite database while others write to it: it is whole, as of one moment."
    draft = copy.with_suffix(".part")
    with (
        closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(draft)) as target,
    ):
        source.backup(target)
    os.replace(draft, copy)
    return f"{file.name} {copy.stat().st_size / 1e6:.1f} MB"


def dump_postgres(url: Any, folder: Path) -> str:
    "Dump a PostgreSQL database by its own pg_dump, where this machine has one."
    program, name = shutil.which("pg_dump"), url.database
    if program is None:
        return f"{name} not copied (no pg_dump on this machine: let its server do it)"
    copy, draft = folder / f"{name}.dump", folder / f"{name}.part"
    plain = url.set(password=None).render_as_string()
    command = [program, "--format=custom", f"--file={draft}", f"--dbname={plain}"]
    done = subprocess.run(command, env=os.environ | {"PGPASSWORD": url.password or ""}, capture_output=True, text=True)
    if done.returncode:
        raise DependencyError(f"pg_dump of {name} failed: {one_line(RuntimeError(done.stderr or 'it said nothing'))}")
    os.replace(draft, copy)
    return f"{name} {copy.stat().st_size / 1e6:.1f} MB"


PAGES = ("*.ipynb", "*.html")  # What of an old run goes; its settings and small files stay, for they explain its rows


def prune(settings: Settings) -> str:
    "Remove notebooks and pages of runs older than `schedule.keep_runs_days`; their rows stay."
    if not settings.schedule.keep_runs_days:
        return "every run's pages are kept (schedule.keep_runs_days = 0)"
    oldest = SystemClock().now().astimezone(NEW_YORK).date() - timedelta(days=settings.schedule.keep_runs_days)
    gone = [
        file for folder in old_runs(settings.root / "runs", oldest) for kind in PAGES for file in folder.rglob(kind)
    ]
    for file in gone:
        file.unlink()
    return f"{len(gone)} files of runs before {oldest} removed"


def old_runs(runs: Path, oldest: date) -> list[Path]:
    "Folders of trade dates before `oldest`, by when they were last written: a simulated market's dates are not ours."
    if not runs.is_dir():
        return []
    dated = [folder for folder in runs.iterdir() if folder.is_dir()]
    return [folder for folder in dated if last_written(folder) < oldest]


def last_written(folder: Path) -> date:
    from datetime import datetime

    newest = max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=0.0)
    return datetime.fromtimestamp(newest, NEW_YORK).date()


def renew_schedules(settings: Settings) -> str:
    "Tell the scheduler the holidays of the next two years; nothing where none runs by itself."
    from pipelines.deploy import register
    from pipelines.scheduler import server_of

    url = server_of(settings)
    if url is None:
        return "no scheduler runs by itself (make up)"
    return f"{len(register(settings, url))} deployments renewed"


CHORES: tuple[Callable[[Settings], str], ...] = (compact, vacuum, snapshot, prune, renew_schedules)
