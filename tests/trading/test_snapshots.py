"What is written down of an account is what it was worth, or nothing is."

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import insert

from tradenb.core import db, web
from tradenb.core.errors import BrokerUnavailable
from tradenb.core.settings import load
from tradenb.trading.run import Run
from tradenb.trading.snapshots import keep_account, keep_positions, kept_account

MON = date(2024, 1, 8)
BLIND = {"cash": "-16000", "equity": None, "long_value": None, "short_value": None, "unrealised_pnl": None}
SEEING = {"cash": "-16000", "equity": "1000000", "long_value": "1016000", "short_value": "0", "unrealised_pnl": "0"}


@pytest.fixture
def gateway() -> Iterator[Any]:
    "A gateway that cannot see prices for its first `blind` answers."
    app = FastAPI()
    app.state.blind, app.state.asked = 0, 0

    def sees() -> bool:
        app.state.asked += 1
        return app.state.asked > app.state.blind

    @app.get("/api/v1/account")
    def account() -> Any:
        return SEEING if sees() else BLIND

    @app.get("/api/v1/positions")
    def positions() -> Any:
        price = dict.fromkeys(("price", "market_value"), "10") if sees() else dict.fromkeys(("price", "market_value"))
        return {"positions": [{"symbol": "A", "qty": "1", "avg_entry_price": "9"} | price]}

    with web.serving(app) as url:
        app.state.url = url
        yield app.state


@pytest.fixture
def run(tmp_path: Path, gateway: Any) -> Iterator[Run]:
    engine = db.migrate(db.connect(f"sqlite:///{tmp_path / 'state.db'}"))
    row = dict(run_id="r", trade_date=MON, strategy="s", status="running", settings_hash="", code_version="", seed=7)
    with engine.begin() as connection:
        connection.execute(insert(db.runs), row | dict(trace_id="", capital=Decimal(1), started_at=datetime(2024, 1, 8, tzinfo=UTC)))  # fmt: skip
    values = {"core.root": str(tmp_path), "services.execution_url": gateway.url, "execution.backoff_s": "0.01"}
    yield Run(load(values, env={}), "r", engine)
    engine.dispose()


def test_a_broker_that_is_away_for_a_moment_makes_no_account_worth_nothing(run: Run, gateway: Any) -> None:
    gateway.blind = 2
    assert keep_account(run, "close")["equity"] == 1_000_000
    assert kept_account(run, "close")["equity"] == 1_000_000
    gateway.asked = 0
    assert [row["market_value"] for row in keep_positions(run)] == [10]
    assert gateway.asked == 3


def test_without_prices_nothing_is_stored_and_the_stage_can_be_resumed(run: Run, gateway: Any) -> None:
    gateway.blind = 99
    for keep in (lambda: keep_account(run, "close"), lambda: keep_positions(run)):
        with pytest.raises(BrokerUnavailable, match=r"no price of .* resume the run"):
            keep()
    assert kept_account(run, "close") == {}
