"What is said of a run, from its rows and pages."

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from pipelines import notices
from pipelines.notices import telling, telling_once, watched
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect, default_url, migrate
from tradenb.core.errors import BrokerUnavailable, FreshnessError
from tradenb.core.notify import settle, told
from tradenb.core.settings import Settings
from tradenb.trading import records
from tradenb.trading.run import run_folder

DAY = date(2024, 1, 8)
GOOD = dict(
    pnl="812.40", daily_return=0.0008, equity="1000812.40", orders=40, fills=40, matched=True, model_version="3"
)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(**{"reports.link": "https://desk.example"})


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    made = migrate(connect(default_url(settings.root)))
    yield made
    made.dispose()


def begun(engine: Engine, day: date = DAY) -> str:
    run_id = records.run_id_of("alpha158_ls", day)
    spec = records.RunSpec(run_id, day, "alpha158_ls", "5e77", 7, 1_000_000, (), "a" * 32)  # type: ignore[arg-type]
    records.begin(engine, spec, SimulatedClock(new_york(day, 9)))
    return run_id


def ended(engine: Engine, status: str, day: date = DAY, **summary: object) -> None:
    run_id = begun(engine, day)
    records.learn(engine, run_id, summary=GOOD | summary)
    records.end(engine, run_id, status, new_york(day, 17))


def page(settings: Settings, name: str) -> Path:
    file = run_folder(settings.root, DAY, records.run_id_of("alpha158_ls", DAY)) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    return file


def said(engine: Engine) -> list[tuple[str, str, str]]:
    "Kind, title and body of what was told, oldest first; nobody is listening, so it stays with the attempt."
    assert settle(30)
    return [(row.kind, row.title, row.body) for row in reversed(told(engine))]


def test_a_good_day_is_told_with_its_figures_and_its_report(settings: Settings, engine: Engine) -> None:
    with telling(settings, engine, DAY):
        ended(engine, "completed")
        for name in ("1_etl.html", "6_report.html"):
            page(settings, name)
    ((kind, title, body),) = said(engine)
    assert (kind, title) == ("success", "2024-01-08-alpha158_ls: +812.40 USD (+0.08%)")
    assert "reconciled" in body
    assert body.endswith("https://desk.example/2024-01-08/2024-01-08-alpha158_ls/6_report.html")
    assert told(engine)[0].trace_id == "a" * 32


@pytest.mark.parametrize(("status", "matched"), [("partially_completed", True), ("failed", False)])
def test_a_day_that_ended_otherwise_is_a_failure_with_figures(
    settings: Settings, engine: Engine, status: str, matched: bool
) -> None:
    with telling(settings, engine, DAY):
        ended(engine, status, matched=matched)
    ((kind, title, body),) = said(engine)
    assert kind == "failure"
    assert status.replace("_", " ") in title
    assert ("NOT RECONCILED" in body) is not matched


def test_a_stage_that_failed_is_named_with_its_page_and_the_way_on(settings: Settings, engine: Engine) -> None:
    def stop() -> None:
        run_id = begun(engine)
        for stage, error in (("etl", None), ("train", "no bars")):
            records.begin_stage(engine, run_id, stage, new_york(DAY, 9))
            records.end_stage(engine, run_id, stage, new_york(DAY, 10), 1.0, error=error)
        page(settings, "1_etl.html"), page(settings, "2_train.html")
        raise FreshnessError("the newest session is 2024-01-04")

    with pytest.raises(FreshnessError), telling(settings, engine, DAY):
        stop()
    ((kind, title, body),) = said(engine)
    assert (kind, title) == ("failure", "2024-01-08-alpha158_ls FAILED in train")
    assert body.splitlines() == [
        "the newest session is 2024-01-04",
        "https://desk.example/2024-01-08/2024-01-08-alpha158_ls/2_train.html",
        "go on: tradenb paper-run --date 2024-01-08",
    ]


def test_a_run_that_could_not_begin_is_told(settings: Settings, engine: Engine) -> None:
    with pytest.raises(BrokerUnavailable), telling(settings, engine, DAY):
        raise BrokerUnavailable("the exchange does not answer")
    assert said(engine)[0][1] == "2024-01-08-alpha158_ls FAILED before its first stage"


def test_a_person_who_interrupts_is_not_told_so(settings: Settings, engine: Engine) -> None:
    with suppress(KeyboardInterrupt), telling(settings, engine, DAY):
        raise KeyboardInterrupt
    assert said(engine) == []


def test_a_database_that_is_gone_does_not_hide_the_reason(settings: Settings) -> None:
    gone = connect("postgresql://nobody@127.0.0.1:1/gone")
    message = notices.failure(settings, gone, DAY, BrokerUnavailable("no broker"))
    assert message.title == "2024-01-08-alpha158_ls FAILED before its first stage"
    assert message.body.startswith("no broker")
    assert notices.ending(settings, gone, DAY) is None


def test_good_days_of_a_backfill_are_one_piece_of_news_and_a_bad_one_its_own(
    settings: Settings, engine: Engine
) -> None:
    days = [DAY + timedelta(days=n) for n in range(3)]
    with telling_once(settings):
        for day, status in zip(days, ("completed", "partially_completed", "completed"), strict=True):
            with telling(settings, engine, day):
                ended(engine, status, day)
    told_of = sorted(said(engine))  # each leaves from a thread of its own
    assert [(kind, title) for kind, title, _ in told_of] == [
        ("failure", "2024-01-09-alpha158_ls partially completed: +812.40 USD (+0.08%)"),
        ("success", "Backfill 2024-01-08 to 2024-01-10: +1,624.80 USD"),
    ]
    assert "2 sessions completed" in told_of[1][2]


def test_a_backfill_that_stopped_tells_its_reason_alone(settings: Settings, engine: Engine) -> None:
    def stop() -> None:
        with telling(settings, engine, DAY):
            ended(engine, "completed")
        with telling(settings, engine, DAY + timedelta(days=1)):
            raise FreshnessError("stale")

    with pytest.raises(FreshnessError), telling_once(settings):
        stop()
    assert [title for _, title, _ in said(engine)] == ["2024-01-09-alpha158_ls FAILED before its first stage"]


def test_a_job_that_fails_at_night_is_told(settings: Settings, engine: Engine) -> None:
    with pytest.raises(FreshnessError), watched(settings, "train", "tradenb train"):
        raise FreshnessError("the newest session is 2024-01-04")
    assert said(engine) == [("failure", "train FAILED", "the newest session is 2024-01-04\nagain: tradenb train")]


def test_an_error_that_is_none_is_not_told(settings: Settings, engine: Engine) -> None:
    with pytest.raises(BrokerUnavailable), watched(settings, "reconcile", "tradenb reconcile", but=BrokerUnavailable):
        raise BrokerUnavailable("somebody else is at it")
    assert said(engine) == []
