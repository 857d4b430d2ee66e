"Which session a run is for, and what a flow is told."

import os
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines.day import NoSession, begun, choose_date, differing, to_itself, todays_session
from tradenb.core.clock import SimulatedClock
from tradenb.core.errors import InputError
from tradenb.core.settings import load
from tradenb.trading.run import start_run
from tradenb.trading.services import secrets_in_environment


def at(day: int, hour: int, minute: int = 0) -> datetime:
    "In November 2025, UTC; New York is five hours behind."
    return datetime(2025, 11, day, hour, minute, tzinfo=UTC)


@pytest.fixture
def real(make_settings, tmp_path: Path):
    "Settings of a real broker, with bars up to the evening before."
    days = pl.date_range(date(2025, 11, 3), date(2025, 11, 24), eager=True)
    prices = dict.fromkeys(("open", "high", "low", "close"), 10.0)
    pl.DataFrame({"symbol": "GE", "date": days, **prices, "volume": 1}).write_csv(tmp_path / "bars.csv")
    return make_settings(
        **{"execution.broker": "paper", "market.source": "files", "files.bars": str(tmp_path / "bars.csv")}
    )


def test_with_a_real_broker_a_run_is_for_todays_session_before_it_has_a_bar(real):
    assert choose_date(real, None, SimulatedClock(at(25, 14))) == date(2025, 11, 25)


def test_no_session_is_missed_in_silence_by_trading_an_older_one(real):
    start_run(real, date(2025, 11, 18)).engine.dispose()
    assert choose_date(real, None, SimulatedClock(at(25, 14))) == date(2025, 11, 25)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (at(27, 14), "2025-11-27 is no session of the NYSE: the next one is 2025-11-28"),  # Thanksgiving
        (at(23, 14), "2025-11-23 is no session"),  # a Sunday
        (at(28, 18, 5), "closed at 13:00 in New York: the next one is 2025-12-01"),  # an early close
        (at(25, 21, 5), "closed at 16:00"),
    ],
)
def test_a_day_without_a_session_or_after_it_says_which_is_the_next(real, now, said):
    with pytest.raises(NoSession, match=said):
        todays_session(real, now)


def test_a_run_that_was_begun_goes_on_after_the_close(real):
    start_run(real, date(2025, 11, 25)).engine.dispose()
    assert begun(real, date(2025, 11, 25))
    assert todays_session(real, at(25, 22)) == date(2025, 11, 25)


def test_a_simulated_market_goes_on_with_its_own_next_session_whatever_today_is(make_settings):
    settings = make_settings(**{"demo.symbols": 20, "demo.years": 1})
    assert choose_date(settings, None, SimulatedClock(at(27, 14))) == date(2019, 1, 3)
    with pytest.raises(InputError, match="lies outside the demo source"):
        choose_date(settings, date(2017, 1, 4))


def test_a_flow_is_told_what_differs_from_the_machines_settings_and_no_secret(make_settings, monkeypatch):
    monkeypatch.setenv("TRADENB_SERVICES__API_KEY", "s3cret")
    monkeypatch.setenv("TRADENB_TRAINING__ROUNDS", "30")
    mine = load({"core.root": "/srv/desk", "portfolio.top_n": 7, "market.symbols": "AA,BB"})
    told = differing(mine)
    assert told == {"core.root": "/srv/desk", "portfolio.top_n": 7, "market.symbols": ["AA", "BB"]}
    assert load(told) == mine


def test_secrets_are_in_the_environment_for_as_long_as_the_flow_runs(monkeypatch):
    monkeypatch.delenv("TRADENB_EXECUTION__BROKER_SECRET", raising=False)
    settings = load(env={"TRADENB_EXECUTION__BROKER_SECRET": "s3cret"})
    with secrets_in_environment(settings):
        assert load(differing(settings)).execution.broker_secret == settings.execution.broker_secret
    assert "TRADENB_EXECUTION__BROKER_SECRET" not in os.environ


def test_one_process_holds_a_root_once_however_often_it_asks(tmp_path: Path):
    with to_itself(tmp_path), to_itself(tmp_path):
        pass
    with to_itself(tmp_path):
        pass


def test_a_run_that_no_worker_took_on_its_day_is_missed_and_not_made_up_for():
    from pipelines.flows import missed

    due = at(25, 14)
    assert missed(None, due) is None  # started by hand
    assert missed(due, at(25, 20)) is None  # late, and still its day
    assert missed(at(26, 4), at(26, 6)) is None  # the flow waited over midnight in New York
    late = missed(due, at(26, 14))
    assert late is not None and late.is_failed()
    assert (late.name, "it was due at 2025-11-25 09:00 in New York" in str(late.message)) == ("Missed", True)
