"The watch says what changed, stays out of the way, and takes nothing that is unknown for good news."

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import httpx
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logged import lines, logging_to
from tradenb.core import calendar
from tradenb.core.clock import Stopwatch, sleep
from tradenb.core.errors import ModelError, NoModelError, ServiceUnavailable, TradenbError
from tradenb.core.web import serving
from tradenb.features.panel import Panel
from tradenb.signals.holder import ModelHolder, Repeated
from tradenb.signals.monitor import Agreement, Watched, agreement, drift, measured, realised, warnings
from tradenb.signals.service import create_app, open_desk, watch_of

from .conftest import AS_OF, KEY, House, settings_at

GENERATE = "/api/v1/signals/generate"


def turn(app) -> None:
    "A turn of the monitor, here and now."
    app.state.desk.monitor.look()


@pytest.fixture
def shadowed(house: House) -> Iterator[tuple[object, httpx.Client]]:
    first, second = house.versions
    house.registry.activate(first, "test", "start")
    house.registry.challenge(second, "test", "in the shadow")
    app = create_app(house.settings, house.clock)
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield app, client
    house.registry.challenge(None, "test", "over")


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=40, unique=True))
def test_a_model_agrees_with_itself(scores: list[float]) -> None:
    names = [f"S{i:02d}" for i in range(len(scores))]
    same = agreement(AS_OF, (1, 1), names, np.array(scores), np.array(scores), (3, 3))
    assert (same.rank_correlation, same.long_overlap, same.short_overlap) == (pytest.approx(1), 1, 1)
    turned = agreement(AS_OF, (1, 2), names, np.array(scores), -np.array(scores), (3, 3))
    assert (turned.rank_correlation, turned.long_overlap) == (pytest.approx(-1), 0)


def test_a_challenger_is_scored_on_the_sessions_that_are_answered(house, shadowed):
    app, client = shadowed
    turn(app)
    client.post(GENERATE, json={})
    turn(app)
    seen = client.get("/api/v1/model/shadow").json()
    assert (seen["champion"], seen["challenger"], seen["model_error"]) == (*house.versions, None)
    (newest,) = seen["sessions"]
    assert newest["as_of"] == str(AS_OF) and 0 < newest["rank_correlation"] < 1
    assert client.get("/health").json()["watch"]["rank_correlation"] == newest["rank_correlation"]
    earlier = str(calendar.shift(AS_OF, -3))
    asked = client.get("/api/v1/model/shadow", params={"as_of_date": earlier}).json()
    assert [row["as_of"] for row in asked["sessions"]] == [earlier, str(AS_OF)]
    assert client.get("/health").json()["watch"]["rank_correlation"] == newest["rank_correlation"]  # of the newer one


def test_what_was_seen_of_a_former_model_is_not_told_of_the_present_one(house):
    first, second = house.versions
    house.registry.activate(first, "test", "start")
    desk = open_desk(house.settings, house.clock)
    desk.holder.reload()
    desk.monitor.look()
    desk.monitor.remember(Agreement(AS_OF, first, second, 20, 0.5, 0.5, 0.5))
    assert watch_of(desk.monitor).measured_at is not None
    house.registry.activate(second, "test", "another")
    desk.holder.reload()  # and the monitor has had no turn yet
    seen = watch_of(desk.monitor)
    assert (seen.measured_at, seen.drift_serious, seen.worst, seen.rank_correlation) == (None, None, [], None)


def test_no_agreement_is_lost_where_two_threads_compare(house):
    monitor = open_desk(house.settings, house.clock).monitor
    days = [calendar.shift(AS_OF, -n) for n in range(200)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda day: monitor.remember(Agreement(day, 1, 2, 20, 0.5, 0.5, 0.5)), days))
    finally:
        sys.setswitchinterval(before)
    assert {a.as_of for a in monitor.agreements} == set(days)


def test_a_broken_challenger_disturbs_nobody(house, shadowed):
    app, client = shadowed
    second, tags = house.versions[1], house.registry.client
    kept = tags.get_model_version(house.registry.name, str(second)).tags["digest"]
    turn(app)
    app.state.desk.monitor.challenger.served = replace(app.state.desk.monitor.challenger.served, model=None)
    tags.set_model_version_tag(house.registry.name, str(second), "digest", "0" * 64)
    try:
        turn(app)
        assert client.post(GENERATE, json={}).status_code == 200
        health = client.get("/health").json()
        assert (health["status"], health["model_error"]) == ("ok", None)
        assert any("the challenger is not scored" in said and "digest" in said for said in health["watch"]["warnings"])
    finally:
        tags.set_model_version_tag(house.registry.name, str(second), "digest", kept)


def test_the_watch_is_in_health_and_metrics(house, client):
    health = client.get("/health").json()
    assert health["status"] == "ok" and set(health["watch"]) >= {"worst", "realised_rank_ic", "warnings"}
    lines = client.get("/metrics").text
    assert f"tradenb_model_version {float(house.versions[0])}" in lines
    assert "tradenb_model_trouble_timestamp_seconds NaN" in lines
    assert "tradenb_model_rank_ic NaN" in lines  # no session after the training has its label


def test_measures_are_taken_once_per_model_and_vintage(house):
    house.registry.activate(house.versions[0], "test", "start")
    desk = open_desk(house.settings, house.clock)
    desk.holder.reload()
    desk.monitor.look()
    first = desk.monitor.watched
    assert first is not None and first.error is None and first.drift is not None and first.realised is None
    assert first.drift.end == AS_OF and first.drift.table.height == 159
    desk.monitor.look()
    assert desk.monitor.watched is first
    house.write(house.bars.filter(pl.col("date") == AS_OF).with_columns(pl.col("close") * 1.01))
    try:
        desk.monitor.look()
        assert desk.monitor.watched is not first
    finally:
        house.write(house.bars.filter(pl.col("date") == AS_OF))


def test_a_process_measures_a_model_once_for_a_vintage_whoever_asks(house):
    "The page of a run and the service of the same day."
    model, later = house.registry.load(house.versions[0]), house.clock.now() + timedelta(hours=1)
    seen = []
    for at in (house.clock.now(), later):
        desk = open_desk(house.settings, house.clock)
        seen.append(measured(house.settings, desk.market, model, desk.market.view(), at))
    assert seen[0].drift is seen[1].drift
    assert (seen[0].at, seen[1].at) == (house.clock.now(), later)
    fewer = house.settings.model_copy(
        update={"signals": house.settings.signals.model_copy(update={"drift_sessions": 10})}
    )
    other = measured(fewer, desk.market, model, desk.market.view(), later)
    assert other.drift.start > seen[0].drift.start


def test_where_a_session_is_on_its_way_drift_is_looked_at_when_it_is_there(house):
    house.registry.activate(house.versions[0], "test", "start")
    app = create_app(house.settings, house.clock, news_to_come=True)
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health").json()["model"]["version"] == house.versions[0]
        assert app.state.desk.monitor.watched is None
        client.post("/api/v1/model/reload", headers={"X-API-Key": KEY}).raise_for_status()
        watch = Stopwatch()
        while app.state.desk.monitor.watched is None and watch.seconds < 60:
            sleep(0.01)
        assert app.state.desk.monitor.watched.drift is not None


def test_realised_skill_is_of_the_sessions_after_the_training_alone(house):
    model, panel = house.registry.load(house.versions[0]), Panel.from_bars(house.bars)
    assert realised(model, panel) is None
    earlier = replace(model, trained_through=calendar.shift(AS_OF, -30))
    found = realised(earlier, panel)
    assert found.daily["date"].min() == calendar.shift(AS_OF, -29)
    assert found.daily["date"].max() == calendar.shift(AS_OF, -2)  # the label of a session looks two ahead
    again = realised(earlier, panel, start=calendar.shift(AS_OF, -10))
    assert again.daily.equals(found.daily.tail(9))
    assert found.mean.low < found.mean.value < found.mean.high


def test_a_feature_that_was_broken_on_the_way_is_named(house):
    model, panel = house.registry.load(house.versions[0]), Panel.from_bars(house.bars)
    start = calendar.shift(AS_OF, -20)
    cents = {name: values.copy() for name, values in panel.fields.items()}
    cents["open"][:, panel.position(start) :] *= 100
    found = drift(model, replace(panel, fields=cents), start)
    assert {"OPEN0", "KLEN", "KMID"} <= set(found.moved(0.25)["name"])
    said = warnings(Watched(1, (), house.clock.now(), drift=found), None, 0.25)
    assert len(said) == 1 and "have moved since the training" in said[0]


def test_a_model_without_a_reference_has_no_drift(house):
    model = replace(house.registry.load(house.versions[0]), reference=None)
    assert drift(model, Panel.from_bars(house.bars), AS_OF) is None


def test_the_poll_finds_a_new_champion_by_itself(house):
    house.registry.activate(house.versions[0], "test", "start")
    holder, swapped = ModelHolder(house.registry, house.clock), threading.Event()
    holder.reload()

    def look() -> None:
        if holder.reload():
            swapped.set()

    poll = Repeated("poll", look, every_s=0.05).start()
    try:
        house.registry.activate(house.versions[1], "test", "next")
        assert swapped.wait(60)
        assert holder.get().version == house.versions[1]
    finally:
        poll.stop()


def test_work_that_crashes_is_done_again_and_ends_when_told():
    turns, third = [], threading.Event()

    def work() -> None:
        turns.append(1)
        if len(turns) == 3:
            third.set()
        raise RuntimeError("once more")

    thread = Repeated("crashing", work, every_s=0.001).start()
    assert third.wait(60)
    thread.stop()
    done = len(turns)
    threading.Event().wait(0.02)
    assert len(turns) == done


def test_without_a_pause_work_is_done_only_when_woken():
    woken = threading.Event()
    thread = Repeated("sleeping", woken.set).start()
    assert not woken.wait(0.05)
    thread.wake()
    assert woken.wait(60)
    thread.stop()


class Fails:
    "A registry whose every call raises; the edge where a network would fail."

    name = "alpha158_ls"

    def __init__(self, error: Exception):
        self.error = error

    def champion_version(self) -> int:
        raise self.error


@pytest.mark.parametrize("error", [ServiceUnavailable("no database"), OSError("disk"), ValueError("odd")])
def test_whatever_a_reload_fails_with_the_model_in_place_answers(house, error: Exception):
    house.registry.activate(house.versions[0], "test", "start")
    holder = ModelHolder(house.registry, house.clock)
    holder.reload()
    before = holder.get()
    holder.registry = Fails(error)
    for attempts in (1, 2):
        with pytest.raises((ServiceUnavailable, ModelError)):
            holder.reload()
        assert holder.get() is before and holder.served.trouble.attempts == attempts
    holder.registry = house.registry
    assert holder.reload() is False and holder.served.trouble is None


def test_a_service_that_starts_without_its_registry_answers_when_it_is_there(house, tmp_path):
    settings = settings_at(tmp_path)
    (tmp_path / "mlflow" / "artifacts").mkdir(parents=True)
    with serving(create_app(settings, house.clock)) as url:
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["model_error"]["code"]) == (503, "ServiceUnavailable")
        refused = httpx.post(f"{url}/api/v1/model/reload", headers={"X-API-Key": KEY})
        assert refused.status_code == 503


def test_a_deactivation_stops_the_answers_and_an_activation_begins_them_again(house, tmp_path):
    house.registry.activate(house.versions[0], "test", "start")
    holder = ModelHolder(house.registry, house.clock)
    holder.reload()
    house.registry.deactivate("test", "halt")
    with logging_to(tmp_path):
        for one in (holder, holder, ModelHolder(house.registry, house.clock)):  # a second look, a first start
            with pytest.raises(NoModelError):
                one.reload()
    told = [(line["event"], line["context"]) for line in lines(tmp_path)]
    assert told == [("model_deactivated", {"before": house.versions[0]})]  # nothing changed the other times
    with pytest.raises(TradenbError):
        holder.get()
    house.registry.activate(house.versions[0], "test", "again")
    assert holder.reload() and holder.served.trouble is None
