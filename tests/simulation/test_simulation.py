"The simulation in small: some worlds, the seeds that once failed, and every deliberate mistake. `make simulate` runs as many as one likes."

import os
import shlex

import pytest

from tests.simulation.__main__ import arguments, main
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runner import Summary, simulate
from tests.simulation.seeds import SEEDS, Found

DAYS = int(os.environ.get("TRADENB_TEST_SIMULATED_DAYS", "120"))  # of all worlds together
LIFE = 6  # days of a world
GROUP = 5  # worlds per test


def lived(seeds: range, days: int, calm: bool = False) -> Summary:
    "Worlds without a broken promise."
    summary = Summary()
    for result in simulate(seeds, days, calm=calm):
        summary.add(result)
        assert not result.violations, "\n".join(map(str, [*result.violations, *result.tail]))
    return summary


@pytest.mark.parametrize("first", range(1, 1 + DAYS // LIFE, GROUP))
def test_every_promise_holds_on_days_with_faults(first: int) -> None:
    summary = lived(range(first, first + GROUP), LIFE)
    assert summary.days == GROUP * LIFE
    assert summary.injected, "a simulation without faults proves little"


def test_without_faults_every_order_ends_and_nothing_halts() -> None:
    summary = lived(range(500, 503), 4, calm=True)
    assert summary.orders
    assert summary.fills
    assert not summary.injected
    assert not summary.crashes


def test_a_seed_tells_the_same_story_again() -> None:
    once, again = (next(iter(simulate([77], 3))) for _ in range(2))
    assert (once.hash, once.switches, once.injected) == (again.hash, again.switches, again.injected)


def test_the_story_is_told_however_many_processes_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "77", "--days", "1", "--jobs", "2", "--verbose"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) > 100 and "1 process(es)" in told[-1]
    assert len({line for line in told if line.startswith("seed 77: ")}) == 1


def test_a_broken_promise_names_the_command_that_breaks_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1000", "--days", "4", "--runs", "3", "--mutation", "blind_resend"]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if "again: " in line or line.startswith("VIOLATION")]
    first, again = told[0], next(line for line in told if "again: " in line)
    assert main(shlex.split(again.partition("tests.simulation ")[2])) == 1
    assert first in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "words", [["--days", "0"], ["--days", "31"], ["--days", "many"], ["--runs", "0"], ["--jobs", "0"]]
)
def test_what_cannot_be_simulated_is_refused_in_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(words)
    assert "expected a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize("found", SEEDS, ids=lambda found: str(found.seed))
def test_a_seed_that_once_failed_holds_now(found: Found) -> None:
    lived(range(found.seed, found.seed + 1), found.days)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_deliberate_mistake_is_caught(name: str) -> None:
    mutation, days = MUTATIONS[name], 0
    for result in simulate(range(mutation.seed, mutation.seed + 100), 4, name):
        days += result.days
        if result.violations:
            return
        assert days < mutation.days, f"{mutation.says}: not caught in {days} days"
