"The signal service over real HTTP: answers that can be repeated, refusals that name the reason, swaps that nobody notices."

from collections.abc import Iterator
from datetime import date

import httpx
import numpy as np
import polars as pl
import pytest

from tradenb.core.settings import Settings, load
from tradenb.core.web import serving
from tradenb.features.engine import compute
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.market.lake import Lake
from tradenb.market.universe import Liquidity, eligible
from tradenb.portfolio.weights import LongShort
from tradenb.signals.generator import generate
from tradenb.signals.reader import index_bars, recent_panel
from tradenb.signals.service import create_app

from .conftest import AS_OF, KEY, PROJECT, House, settings_at

FSET = feature_set("alpha158")
GENERATE = "/api/v1/signals/generate"


@pytest.fixture(scope="module")
def asking(house: House) -> Iterator[httpx.Client]:
    "One service for all who only ask: it has the first model, whatever others activate meanwhile."
    house.registry.activate(house.versions[0], "test", "start")
    with serving(create_app(house.settings, house.clock)) as url, httpx.Client(base_url=url) as client:
        yield client


def ask(client, **question):
    return client.post(GENERATE, json=question)


def test_the_answer_is_that_of_the_generator_on_the_whole_history(house, client):
    body = ask(client).json()
    model = house.registry.load(house.versions[0])
    members = [row["symbol"] for row in body["signals"] + body["left_out"]]
    whole = generate(model, Panel.from_bars(house.bars), LongShort(3, 3), members).signals
    assert pl.DataFrame(body["signals"], schema=whole.schema).equals(whole)
    assert body["metadata"] == {
        "model_version": house.versions[0],
        "strategy_name": "alpha158_ls",
        "constructor": "long_short",
        "as_of_date": str(AS_OF),
        "generated_at": "2023-07-03T13:00:00Z",
        "num_signals": whole.height,
        "vintage": house.lake.vintage(),
        "digests": None,  # told where they are asked for
    }


def test_longs_sum_to_one_and_shorts_to_minus_one(asking):
    weights = np.array([s["target_weight"] for s in ask(asking, top_n=4, bottom_n=5).json()["signals"]])
    assert weights[weights > 0].sum() == pytest.approx(1)
    assert weights[weights < 0].sum() == pytest.approx(-1)
    assert ((weights > 0).sum(), (weights < 0).sum()) == (4, 5)


def test_a_past_session_is_answered_as_it_was_then(house, asking):
    past = house.bars["date"].unique().sort()[-40]
    body = ask(asking, as_of_date=str(past)).json()
    model, until = house.registry.load(house.versions[0]), Panel.from_bars(house.bars.filter(pl.col("date") <= past))
    names = [row["symbol"] for row in body["signals"]]
    assert body["signals"] == generate(model, until, LongShort(3, 3), names).signals.to_dicts()


def test_a_former_vintage_can_still_be_asked(house, client):
    vintage, before = house.lake.vintage(), ask(client).json()
    last = house.bars.filter(pl.col("date") == AS_OF).with_columns(pl.col("close") * 1.5)
    house.write(last)
    try:
        assert ask(client).json()["signals"] != before["signals"]
        assert ask(client, vintage=vintage).json()["signals"] == before["signals"]
    finally:
        house.write(house.bars.filter(pl.col("date") == AS_OF))
    assert ask(client).json()["signals"] == before["signals"]


def test_features_of_the_service_are_those_of_the_training_batch_bit_for_bit(house, tmp_path):
    "Read from the middle of the history, where suspensions straddle the window's start and names are listed within it."
    halo, days = FSET.halo, house.bars["date"].unique().sort()
    at = days.index_of(AS_OF)
    silent = days[at - halo - 10 : at - halo + 10]
    straddling = pl.col("symbol").is_in(house.bars["symbol"].unique().sort()[:6].to_list())
    now_and_then = pl.Series(np.random.default_rng(3).random(house.bars.height) < 0.03)
    gone = (straddling & pl.col("date").is_in(silent.to_list())) | now_and_then
    lake = Lake(tmp_path)
    with lake.writing() as draft:
        draft.merge("bars", house.bars.filter(~gone))
        draft.merge("adjustments", house.lake.read("adjustments"))
        draft.record(AS_OF, "test", house.clock.now())
    bars = lake.read("bars")
    panel, index = Panel.from_bars(bars), index_bars(lake)
    batch = compute(panel, FSET)
    for day in (days[at], days[at - 1], days[at - 9], days[at - 19], days[halo // 2], days[3]):
        served = recent_panel(lake, index, day, halo)
        alone = compute(served, FSET, start=day)
        rows, column = [panel.symbols.index(s) for s in served.symbols], panel.position(day)
        expected = np.ascontiguousarray(batch.values[:, rows, column])
        assert np.ascontiguousarray(alone.values[:, :, 0]).tobytes() == expected.tobytes(), day


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"symbols": ["NOPE", "AAPL2"]}, "unknown symbols: AAPL2, NOPE"),
        ({"symbols": []}, "symbols"),
        ({"as_of_date": "2023-07-01"}, "2023-07-01 is a Saturday"),
        ({"as_of_date": "2023-07-03"}, "no bars on 2023-07-03"),
        ({"as_of_date": "1999-01-04"}, "no bars on 1999-01-04"),
        ({"as_of_date": "1700-01-04"}, "1700-01-04"),
        ({"as_of_date": "soon"}, "as_of_date"),
        ({"top_n": 20, "bottom_n": 20}, "of only"),
        ({"top_n": 500}, "too few symbols"),
        ({"top_n": 0, "bottom_n": 0}, "not both 0"),
        ({"top_n": -1}, "top_n"),
        ({"topn": 3}, "topn"),
        ({"vintage": {"bars": -1}}, "vintage"),
    ],
)
def test_a_question_without_an_answer_gets_a_problem_that_names_the_reason(asking, question, says):
    reply = ask(asking, **question)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert set(reply.json()) == {"type", "title", "status", "detail", "code"}
    assert says in reply.json()["detail"]


@pytest.mark.parametrize("vintage", [{"bars": 99}, {"universe": 0}, {"nothing": 1}])
def test_a_vintage_that_never_was_is_a_client_error(asking, vintage):
    reply = ask(asking, vintage=vintage)
    assert 400 <= reply.status_code < 500


def test_broken_json_is_a_client_error(asking):
    reply = asking.post(GENERATE, content=b"{", headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["code"]) == (422, "RequestInvalid")


def test_liveness_health_and_model_tell_what_is_served(house, client):
    assert client.get("/").json()["service"] == "signals"
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert health.json()["data"] == {"vintage": house.lake.vintage(), "last_session": str(AS_OF), "error": None}
    info = client.get("/api/v1/model/info").json()
    assert (info["version"], info["num_features"], info["tags"]["activated_by"]) == (house.versions[0], 158, "test")
    assert "tradenb_signals_generated_total" in client.get("/metrics").text


def test_without_a_model_and_data_it_starts_and_says_so(tmp_path, house):
    with serving(create_app(settings_at(tmp_path), house.clock)) as url:
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert "tradenb train" in health.json()["model_error"]["reason"]
        assert "tradenb etl" in health.json()["data"]["error"]
        refused = httpx.post(url + GENERATE, json={})
        assert (refused.status_code, refused.json()["code"]) == (409, "NoModelError")


def test_reload_needs_the_key(asking):
    assert asking.post("/api/v1/model/reload").status_code == 401
    assert asking.post("/api/v1/model/reload", headers={"X-API-Key": "guess"}).status_code == 401


def reload(client):
    return client.post("/api/v1/model/reload", headers={"X-API-Key": KEY})


def test_reload_takes_the_new_champion_and_a_second_time_changes_nothing(house, client):
    house.registry.activate(house.versions[1], "test", "new")
    assert client.get("/api/v1/model/info").json()["version"] == house.versions[0]
    assert reload(client).json() == {"reloaded": True, "model_version": house.versions[1]}
    assert reload(client).json() == {"reloaded": False, "model_version": house.versions[1]}


def test_a_champion_that_does_not_fit_is_refused_and_the_old_one_goes_on(house, client):
    first, second = house.versions
    house.registry.activate(second, "test", "will be spoiled")
    kept = house.registry.load(second).tags["digest"]
    house.registry.client.set_model_version_tag(house.registry.name, str(second), "digest", "f" * 64)
    try:
        refused = reload(client)
        assert (refused.status_code, refused.json()["code"]) == (409, "ModelError")
        assert ask(client).json()["metadata"]["model_version"] == first
        health = client.get("/health").json()
        assert health["status"] == "degraded"
        assert "was changed" in health["model_error"]["reason"]
    finally:
        house.registry.client.set_model_version_tag(house.registry.name, str(second), "digest", kept)
    assert reload(client).json()["model_version"] == second
    assert client.get("/health").json()["status"] == "ok"


def test_a_deactivated_model_answers_no_more(house, client):
    house.registry.deactivate("test", "stop")
    assert reload(client).status_code == 409
    assert ask(client).status_code == 409


def test_a_trace_id_is_answered(asking):
    trace = "0af7651916cd43dd8448eb211c80319c"
    assert asking.get("/health", headers={"X-Trace-ID": trace}).headers["x-trace-id"] == trace


def test_symbols_left_without_a_bar_are_told(house, client):
    halted = house.bars.filter(pl.col("date") == AS_OF)["symbol"][0]
    house.write(house.bars.clear(), remove=pl.DataFrame({"symbol": [halted], "date": [AS_OF]}))
    try:
        body = ask(client).json()
        assert body["left_out"] == [{"symbol": halted, "reason": f"no bar on {AS_OF}", "by_settings": False}]
        assert halted not in {s["symbol"] for s in body["signals"]}
    finally:
        house.write(house.bars.filter(pl.col("date") == AS_OF))


def test_the_day_before_a_listing_a_name_is_unknown_to_the_universe(house, asking):
    day = date(2022, 6, 1)
    listed = set(house.bars.filter(pl.col("date") == day)["symbol"])
    body = ask(asking, as_of_date=str(day)).json()
    assert {s["symbol"] for s in body["signals"]} <= listed


def with_universe(house: House, **universe: object) -> Settings:
    "The house's settings with another universe."
    values = {f"universe.{key}": str(value) for key, value in universe.items()}
    book = {"core.root": str(house.settings.root), "portfolio.top_n": "3", "portfolio.bottom_n": "3"}
    return load(book | values, env={"TRADENB_SERVICES__API_KEY": KEY}, file=PROJECT / "settings.ini")


def ask_with(house: House, settings: Settings, **question: object) -> httpx.Response:
    house.registry.activate(house.versions[0], "test", "start")
    with serving(create_app(settings, house.clock)) as url:
        return httpx.post(f"{url}{GENERATE}", json=question)


@pytest.mark.parametrize("limits", [{"min_price": 60}, {"min_dollar_volume": 15e6}, {"min_history_sessions": 300}])
def test_only_names_that_research_would_have_learnt_from_are_ranked(house, limits):
    settings = with_universe(house, **limits)
    allowed = eligible(house.lake.read("universe"), house.bars, Liquidity.of(settings.universe)).filter(date=AS_OF)
    body = ask_with(house, settings).json()
    assert 6 <= len(allowed) < house.bars.filter(pl.col("date") == AS_OF).height
    assert {row["symbol"] for row in body["signals"]} == set(allowed["symbol"])
    assert all(row["by_settings"] for row in body["left_out"]) and body["left_out"]


def test_a_name_asked_for_that_fails_a_limit_is_left_out_with_the_numbers(house):
    day = house.bars.filter(pl.col("date") == AS_OF).sort("close")
    cheap, price = day.select("symbol", "close").row(0)
    settings = with_universe(house, min_price=price + 0.01)
    body = ask_with(house, settings, symbols=day["symbol"].to_list()).json()
    assert body["left_out"][0]["symbol"] == cheap and f"closed at {price:g} USD, below" in body["left_out"][0]["reason"]
    refused = ask_with(house, settings, symbols=[cheap])
    assert (
        refused.status_code == 422 and f"none of 1 names could be held on {AS_OF}: {cheap}" in refused.json()["detail"]
    )


def test_with_a_membership_file_only_its_members_of_the_day_are_ranked(house):
    first = house.bars.group_by("symbol").agg(pl.col("date").min()).sort("date")
    late, listed = first.row(-1)
    day = max(d for d in house.bars["date"].unique() if d < listed)
    names = house.bars.filter(pl.col("date") == day)["symbol"].to_list()
    settings = with_universe(house, membership="index.csv", name="index")
    body = ask_with(house, settings, symbols=[*names, late], as_of_date=str(day)).json()
    assert body["left_out"] == [{"symbol": late, "reason": f"no member of index on {day}", "by_settings": True}]


@pytest.mark.parametrize("body", [{"cash": False}, {"cash": "0.1"}, {"held": {"S000": True}}, {"digests": 1}])
def test_a_number_is_no_text_and_no_yes_or_no(asking, body):
    assert ask(asking, **body).status_code == 422
