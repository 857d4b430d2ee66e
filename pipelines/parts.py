"""The parts of a day by themselves: what `tradenb etl`, `train`, `signals`, `serve` and `runs` do."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.day import to_itself
from pipelines.lake import newest_session
from tradenb.core.clock import Clock, SystemClock
from tradenb.core.db import connect, database, database_url, migrate
from tradenb.core.errors import ConfigError, InputError, QualityError
from tradenb.core.progress import say
from tradenb.core.settings import Settings, variable
from tradenb.core.web import Server, serve_forever
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import open_lake
from tradenb.market.quality import GateResult
from tradenb.trading import records
from tradenb.trading.pages.common import counted
from tradenb.trading.services import APPS, exchange_to_itself, note_of, provide_feed, with_addresses


def take_in(settings: Settings, as_of: date, since: date | None = None) -> EtlReport:
    "The ETL of a run, without one; from `since` on the source is asked again for everything. A refusal's evidence goes to `<root>/refused/<as_of>`."
    from tradenb.core.calendar import next_session
    from tradenb.market.catalog import open_source
    from tradenb.trading.services import clock_for
    from tradenb.trading.stages import keeping_refusals

    folder = settings.root / "refused" / str(as_of)
    with to_itself(settings.root):
        clock = clock_for(settings, next_session(as_of))
        try:
            with keeping_refusals(folder):
                report = run_etl(settings, open_source(settings), open_lake(settings), as_of, clock, since)
        except QualityError as refused:
            if refused.gate is not None:
                tell_refusal(refused.gate, folder)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return report


def tell_refusal(gate: GateResult, folder: Path, most: int = 4) -> None:
    "Say which checks failed, worst first, and where their rows are."
    failed = gate.table.filter(pl.col("verdict") == "quarantined").sort("failing", descending=True, maintain_order=True)
    for row in failed.head(most).iter_rows(named=True):
        hit = gate.quarantined.filter(pl.col("check") == row["check"])
        where = f"{counted(hit['symbol'].n_unique(), 'symbol')}, {counted(hit['date'].n_unique(), 'day')}"
        say(f"{row['check']:<10}{row['failing']:>8,} rows  in {where}; expected: {row['claim']}")
    if len(failed) > most:
        say(f"and {counted(len(failed) - most, 'other check')}")
    say(f"the rows and what Great Expectations said of them are in {folder}")


def train_now(settings: Settings, as_of: date | None, why: str) -> tuple[Any, dict[str, float]]:
    "Train on the lake, register and activate; the champion and its out-of-sample metrics."
    from tradenb.models.registry import open_registry
    from tradenb.models.tracking import ModelCard
    from tradenb.trading.modelling import register_training, survivorship_of, train_model

    with to_itself(settings.root):
        lake = open_lake(settings)
        vintage = lake.vintage()
        view = lake.at(vintage)
        newest = newest_session(view)
        if as_of is not None and as_of > newest:
            raise InputError(f"{as_of} lies beyond the lake, which ends with {newest}: `tradenb etl` takes in more")
        registry = open_registry(settings, migrate(connect(database_url(settings))))
        result = train_model(settings, view, as_of or newest, settings.market.symbols)
        card = ModelCard(vintage, settings.hash, records.code_version(), survivorship=survivorship_of(view))
        version, _ = register_training(settings, registry, view, result, card, newest, why)
        return registry.activate(version, who="tradenb train", why=why), result.metrics


def search_now(settings: Settings, trials: int, until: date | None) -> Any:  # tradenb.models.search.Search
    "Search for a better recipe on the lake, and keep every trial beside the trainings."
    from tradenb.models.registry import open_registry
    from tradenb.models.tracking import ModelCard, log_search
    from tradenb.trading.modelling import search_model, survivorship_of

    lake = open_lake(settings)
    vintage = lake.vintage()
    view = lake.at(vintage)
    found = search_model(settings, view, newest_session(view), trials, until, settings.market.symbols)
    card = ModelCard(vintage, settings.hash, records.code_version(), survivorship=survivorship_of(view))
    log_search(open_registry(settings).tracking, found, card, SystemClock().now())
    return found


def signals_now(settings: Settings, as_of: date | None) -> tuple[pl.DataFrame, dict[str, Any]]:
    "The champion's signals for a session, by the service itself within this process."
    from tradenb.core.web import serving
    from tradenb.signals.service import create_app
    from tradenb.trading.clients import Question, SignalsClient

    day, book = as_of or newest_session(open_lake(settings)), settings.portfolio
    with serving(create_app(settings, SystemClock())) as url, closing(SignalsClient(url)) as client:
        answer = client.generate(Question(day, settings.market.symbols or None, book.top_n, book.bottom_n))
    return pl.DataFrame(answer["signals"], infer_schema_length=None).sort("rank"), answer["metadata"]


def require_keys(settings: Settings) -> None:
    "Long-running services are reached by other processes, so their keys must be known to both."
    needed = {("services", "api_key"): settings.services.api_key}
    if settings.execution.broker == "exchange":
        needed[("execution", "broker_key_id")] = settings.execution.broker_key_id
        needed[("execution", "broker_secret")] = settings.execution.broker_secret
    if missing := [variable(*name) for name, value in needed.items() if value is None]:
        raise ConfigError(f"services want keys: set {', '.join(missing)} in the environment or in .env")


def serve_one(
    settings: Settings, name: str, port: int | None, through: date | None, say: Callable[[str], None]
) -> None:
    "Serve one service in the foreground until interrupted."
    require_keys(settings)
    with ExitStack() as stack:
        if name == "exchange":
            stack.enter_context(exchange_to_itself(settings.root))
            feed(settings, through)
        port = port or getattr(settings.services, f"{name}_port")
        say(f"{name} on http://{settings.services.host}:{port}")
        serve_forever(APPS[name](settings, start_of(settings, name)), settings.services.host, port)


def serve_all(settings: Settings, through: date | None, say: Callable[[str], None]) -> None:
    "Serve every service on its port until interrupted."
    require_keys(settings)
    found: dict[str, str] = {}
    with ExitStack() as stack:
        if settings.execution.broker == "exchange":
            stack.enter_context(exchange_to_itself(settings.root))
            feed(settings, through)
        for name, make_app in APPS.items():
            if name == "exchange" and settings.execution.broker != "exchange":
                continue
            port = getattr(settings.services, f"{name}_port")
            found[name] = f"http://{settings.services.host}:{port}"
            settings = with_addresses(settings, found)
            server = Server(make_app(settings, start_of(settings, name)), settings.services.host, port).start()
            stack.callback(server.stop)
            say(f"{name:<14}{server.url}")
        note_of(settings.root).write_text(json.dumps(found))
        wait_for_signal()
        note_of(settings.root).unlink()


def start_of(settings: Settings, name: str) -> Clock:
    "The service's clock; a new exchange begins before the next session to trade, which in a simulated market is not today."
    from pipelines.day import next_trade_date
    from tradenb.market.catalog import open_source
    from tradenb.trading.services import clock_for

    return (
        clock_for(settings, next_trade_date(settings, open_source(settings))) if name == "exchange" else SystemClock()
    )


def wait_for_signal() -> None:
    "Return on Ctrl-C or on a request to terminate."
    import signal
    import threading

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    over.wait()


def feed(settings: Settings, through: date | None) -> None:
    "The exchange's feed, up to `through` or the source's newest session."
    from tradenb.market.catalog import open_source

    provide_feed(settings, through or open_source(settings).last_date)


def list_runs(settings: Settings, limit: int) -> pl.DataFrame:
    "The newest runs with their headline figures."
    with database(settings) as engine:
        rows = [
            dict(
                run=row.run_id,
                status=row.status,
                model=row.model_version,
                orders=(row.summary or {}).get("orders"),
                fills=(row.summary or {}).get("fills"),
                pnl=(row.summary or {}).get("pnl"),
                equity=(row.summary or {}).get("equity"),
                error=row.error,
            )
            for row in records.listing(engine, limit)
        ]
    text = ("run", "status", "model", "pnl", "equity", "error")
    return pl.DataFrame(
        rows,
        schema={
            name: pl.String if name in text else pl.Int64
            for name in ("run", "status", "model", "orders", "fills", "pnl", "equity", "error")
        },
    )
