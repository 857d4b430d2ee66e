"One session's weights are the same bits from the service, a notebook's call and the backtest, whichever rule makes them."

from collections.abc import Iterator
from decimal import Decimal

import httpx
import numpy as np
import polars as pl
import pytest

from tradenb.core import calendar
from tradenb.core.settings import load
from tradenb.core.web import serving
from tradenb.features.engine import compute
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.portfolio.backtest import Morning, Plan, Run
from tradenb.portfolio.constructors import constructor
from tradenb.portfolio.market import Market
from tradenb.portfolio.weights import normalise
from tradenb.signals.generator import generate
from tradenb.signals.service import create_app

from .conftest import AS_OF, House

RULES = ["long_short", "long_only", "rank_weighted", "sector_neutral", "beta_neutral", "volatility_scaled", "topk_dropout", "mean_variance"]  # fmt: skip
DAYS = [AS_OF, calendar.shift(AS_OF, -1), calendar.shift(AS_OF, -37)]


@pytest.fixture(scope="module")
def service(house: House) -> Iterator[httpx.Client]:
    house.registry.activate(house.versions[0], "test", "parity")
    with serving(create_app(house.settings, house.clock)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def batch(house: House) -> pl.DataFrame:
    "Predictions of all sessions, from features computed in one block: date, symbol, prediction."
    model, panel = house.registry.load(house.versions[0]), Panel.from_bars(house.bars)
    block = compute(panel, feature_set("alpha158"), start=DAYS[-1])
    return block.keys().with_columns(prediction=model.predict(block.matrix()))


@pytest.fixture(scope="module")
def tape(house: House) -> Market:
    "One session longer than the bars: the backtest's morning after the last one."
    lake = house.lake.latest()
    return Market.from_lake(lake, house.bars["date"].min(), calendar.next_session(AS_OF))


def bits(table: pl.DataFrame) -> tuple[list[str], bytes, bytes]:
    "Names by rank, predictions and weights as bytes."
    rows = table.filter(pl.col("rank").is_not_null())
    return rows["symbol"].to_list(), *(rows[c].cast(pl.Float64).to_numpy().tobytes() for c in ("predicted_return", "target_weight"))  # fmt: skip


def settings_with(rule: str, house: House):
    book = {"core.root": str(house.settings.root), "portfolio.top_n": 3, "portfolio.bottom_n": 3}
    return load(book | {"portfolio.constructor": rule, "portfolio.n_drop": 1}, env={})


@pytest.mark.parametrize("rule", RULES)
def test_service_notebook_and_backtest_agree_byte_for_byte(house, service, batch, tape, rule):
    settings, model = settings_with(rule, house), house.registry.load(house.versions[0])
    made = constructor(settings.portfolio, settings.costs)
    for day in DAYS:
        run = Run(batch, tape, Plan.of(settings, made))
        morning = Morning(run, tape.dates.tolist().index(day) + 1)
        names = [tape.symbols[row] for row in morning.ranked.tolist()]
        raw = run.signals[morning.ranked, morning.t - 1]
        backtested = made(pl.DataFrame({"symbol": names, "predicted_return": normalise(raw)}), morning.context)
        answer = service.post(
            "/api/v1/signals/generate",
            json={"symbols": names, "as_of_date": str(day), "constructor": rule, "held": {}},
        )
        assert answer.status_code == 200, answer.text
        served = pl.DataFrame(answer.json()["signals"], schema=dict(backtested.schema))
        assert bits(served) == bits(backtested), (rule, day)
        assert answer.json()["metadata"]["constructor"] == rule
        if not made.needs:
            notebook = generate(model, Panel.from_bars(house.bars).until(day), made, names)
            assert bits(notebook.signals) == bits(backtested)


def test_a_book_that_is_held_is_treated_as_in_the_backtest(house, service, batch, tape):
    settings = settings_with("topk_dropout", house)
    made, day = constructor(settings.portfolio, settings.costs), DAYS[1]
    run = Run(batch, tape, Plan.of(settings, made))
    first = sorted(batch.filter(date=day)["symbol"])[:3]
    for name in first:
        run.account.shares[tape.symbols.index(name)] = Decimal(1000)
    morning = Morning(run, tape.dates.tolist().index(day) + 1)
    context = morning.context
    held = {s: w for s, w in zip(context.symbols, context.held.tolist(), strict=True) if w}
    names = [tape.symbols[row] for row in morning.ranked.tolist()]
    raw = run.signals[morning.ranked, morning.t - 1]
    backtested = made(pl.DataFrame({"symbol": names, "predicted_return": normalise(raw)}), context)
    question = {"symbols": names, "as_of_date": str(day), "constructor": "topk_dropout", "held": held, "cash": context.cash}  # fmt: skip
    answer = service.post("/api/v1/signals/generate", json=question).json()
    assert bits(pl.DataFrame(answer["signals"], schema=dict(backtested.schema))) == bits(backtested)
    assert sum(np.sign([s["target_weight"] for s in answer["signals"]])) >= 3


def test_a_rule_that_trades_from_a_book_wants_to_be_told_it(service):
    refused = service.post("/api/v1/signals/generate", json={"constructor": "topk_dropout"})
    assert refused.status_code == 422
    assert "constructor topk_dropout trades from the book held: give `held`" in refused.json()["detail"]


@pytest.mark.parametrize(
    "ask",
    [{"constructor": "best_guess"}, {"held": {"A": 1e9}}, {"top_n": "3"}, {"as_of_date": 19000}, {"symbols": [""]}],
)
def test_what_is_no_question_is_refused(service, ask):
    refused = service.post("/api/v1/signals/generate", json=ask)
    assert (refused.status_code, refused.json()["code"]) == (422, "RequestInvalid")
