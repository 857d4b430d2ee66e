"The kill switch's state: never weakened by accident, kept over restarts, and exclusive with the admission of orders."

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, select

from tradenb.core import db
from tradenb.core.clock import SimulatedClock
from tradenb.core.db import connect
from tradenb.core.errors import InputError
from tradenb.execution.switch import Engaged, Level, Switch, admission_lock, covers, scopes, strongest

LEVELS = [level for level in Level if level is not Level.RELEASE]


@pytest.fixture
def switch(engine: Engine, clock: SimulatedClock) -> Switch:
    return Switch(engine, clock)


def test_nothing_is_forbidden_at_first(switch: Switch) -> None:
    assert switch.level("s", "AAPL") is Level.RELEASE
    assert (switch.state(), switch.history(), switch.standing("s", "AAPL")) == ([], [], None)


def test_engaging_twice_writes_once(switch: Switch) -> None:
    first = switch.engage("*", Level.BLOCK, "ann", "news")
    assert switch.engage("*", Level.BLOCK, "bob", "the same news") == first
    assert len(switch.history()) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_only_a_release_weakens(switch: Switch, level: Level) -> None:
    for asked in (level, *LEVELS):
        before = switch.level("s", "A").strength
        assert switch.engage("*", asked, "p").level.strength == max(before, asked.strength)
    assert switch.release("*", "ann", to=Level.BLOCK).level is Level.BLOCK  # type: ignore[union-attr]
    assert switch.release("*", "ann", to=Level.CANCEL).level is Level.BLOCK  # type: ignore[union-attr]
    switch.release("*", "ann")
    assert switch.level("s", "A") is Level.RELEASE


def test_a_release_is_idempotent_and_touches_its_scope_alone(switch: Switch) -> None:
    switch.engage("symbol:A", Level.BLOCK, "ann")
    switch.engage("strategy:s", Level.FLATTEN, "ann")
    assert switch.level("s", "A") is Level.FLATTEN
    for _ in range(2):
        switch.release("strategy:s", "ann")
    assert switch.release("symbol:NEVER", "ann") is None
    assert (switch.level("s", "A"), switch.level("s", "B")) == (Level.BLOCK, Level.RELEASE)
    assert len(switch.history()) == 3


def test_the_switch_outlives_the_process(engine: Engine, clock: SimulatedClock) -> None:
    Switch(engine, clock).engage("*", Level.FLATTEN, "ann", "fire drill")
    again = connect(engine.url.render_as_string(hide_password=False))
    assert Switch(again, clock).standing("any", "X").why == "fire drill"  # type: ignore[union-attr]
    again.dispose()


@pytest.mark.parametrize("wrong", ["", "all", "strategy", "strategy:", "symbol:aapl", "symbol:A B", "x:y"])
def test_a_scope_that_would_match_nothing_is_refused(switch: Switch, wrong: str) -> None:
    with pytest.raises(InputError):
        switch.engage(wrong, Level.BLOCK, "ann")


def test_release_is_no_level_to_engage(switch: Switch) -> None:
    with pytest.raises(InputError, match="call `release`"):
        switch.engage("*", Level.RELEASE, "ann")


NAMES = st.sampled_from(["A", "B"])
SCOPES = st.one_of(st.just("*"), NAMES.map("symbol:{}".format), NAMES.map("strategy:{}".format))


@given(rows=st.lists(st.tuples(SCOPES, st.sampled_from(list(Level))), max_size=12), strategy=NAMES, symbol=NAMES)
def test_the_strongest_of_the_newest_rows_counts(rows: list[tuple[str, Level]], strategy: str, symbol: str) -> None:
    newest = {scope: Engaged(n, scope, level, "", "", None) for n, (scope, level) in enumerate(rows)}  # type: ignore[arg-type]
    mine = [row for scope, row in newest.items() if covers(scope, strategy, symbol)]
    assert {row.scope for row in mine} <= set(scopes(strategy, symbol))
    found = strongest(mine)
    assert (found.level.strength if found else 0) == max((row.level.strength for row in mine), default=0)


def test_nothing_is_admitted_after_engage_has_returned(
    engine: Engine, clock: SimulatedClock, switch: Switch, eventually: Callable[..., None]
) -> None:
    "An admission that has looked at the switch already is waited for; the next one sees it."
    looked, go_on, seen = threading.Event(), threading.Event(), []
    receipt = {"digest": "admitted", "at": clock.now()}

    def admit() -> None:
        with engine.begin() as connection:
            admission_lock(connection)
            seen.append(switch.level("s", "A", connection))
            looked.set()
            go_on.wait(60)
            connection.execute(insert(db.webhook_receipts), receipt)

    admitting = threading.Thread(target=admit)
    admitting.start()
    assert looked.wait(60)
    committed: list[bool] = []

    def engage() -> None:
        switch.engage("*", Level.BLOCK, "ann")
        with engine.connect() as connection:
            committed.append(connection.execute(select(db.webhook_receipts)).first() is not None)

    engaging = threading.Thread(target=engage)
    engaging.start()
    engaging.join(0.2)
    assert engaging.is_alive()
    go_on.set()
    admitting.join()
    engaging.join()
    assert (seen, committed) == ([Level.RELEASE], [True])
    assert switch.level("s", "A") is Level.BLOCK


def test_many_at_once_leave_one_row(engine: Engine, clock: SimulatedClock) -> None:
    threads = [threading.Thread(target=Switch(engine, clock).engage, args=("*", Level.BLOCK, "p")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Switch(engine, clock).history()) == 1
