"A run's row: one per day, one set of settings, and a way back for a run that was stopped before it did anything."

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from sqlalchemy import Engine, insert

from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import run_signals
from tradenb.core.errors import InputError
from tradenb.trading import records
from tradenb.trading.records import RunSpec, begin, begin_stage, end, end_stage, run_id_of

DAY = date(2024, 1, 8)
SPEC = RunSpec(run_id_of("s", DAY), DAY, "s", "5e77", 7, Decimal(1_000_000), (), "a" * 32)
OTHER = replace(SPEC, settings_hash="0ther", capital=Decimal(500_000), symbols=("ACME",), seed=8)


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(new_york(DAY, 9))


def stopped(engine: Engine, clock: SimulatedClock, error: str | None) -> None:
    "A run whose first stage has ended, with an error or without."
    begin(engine, SPEC, clock)
    begin_stage(engine, SPEC.run_id, "etl", clock.now())
    end_stage(engine, SPEC.run_id, "etl", clock.now(), 1.0, error=error)
    end(engine, SPEC.run_id, records.FAILED, clock.now(), error)


def test_a_run_that_the_gate_stopped_may_begin_again_under_other_settings(engine: Engine, clock: SimulatedClock):
    stopped(engine, clock, "7.7% of the rows failed the gate")
    row = begin(engine, OTHER, clock)
    assert (row.status, row.settings_hash, row.capital, row.seed) == (records.RUNNING, "0ther", Decimal(500_000), 8)
    assert row.symbols == ["ACME"] and row.error is None


def test_a_run_without_a_plan_starts_all_its_stages_over_under_other_settings(engine: Engine, clock: SimulatedClock):
    stopped(engine, clock, None)
    records.learn(engine, SPEC.run_id, vintage={"bars": 3}, model_version="1")
    row = begin(engine, OTHER, clock)
    assert (row.settings_hash, row.vintage, row.model_version) == ("0ther", None, None)
    assert records.stages(engine, SPEC.run_id) == {}


def test_settings_are_fixed_once_there_is_a_plan(engine: Engine, clock: SimulatedClock):
    begin(engine, SPEC, clock)
    with engine.begin() as connection:
        leg = dict(
            run_id=SPEC.run_id, symbol="ACME", leg=0, current_qty=0, target_qty=0, target_weight=0.0, reason="none"
        )
        connection.execute(insert(run_signals), leg)
    with pytest.raises(InputError, match="has a plan made under settings 5e77"):
        begin(engine, OTHER, clock)


def test_a_report_that_breaks_after_its_verdict_leaves_the_day_open_and_one_that_says_failed_closes_it(engine, clock):
    begin(engine, SPEC, clock)
    records.learn(engine, SPEC.run_id, summary={"pnl": "-1.00"})
    end(engine, SPEC.run_id, records.COMPLETED, clock.now())
    end(engine, SPEC.run_id, records.FAILED, clock.now(), "report.ipynb, cell 6: KeyError: 'pnl'")
    assert not records.is_over(records.require(engine, SPEC.run_id))
    assert records.last_done(engine, "s") is None
    assert begin(engine, SPEC, clock).status == records.RUNNING
    end(engine, SPEC.run_id, records.FAILED, clock.now())
    assert records.is_over(records.require(engine, SPEC.run_id))
    assert records.last_done(engine, "s").run_id == SPEC.run_id
