"The tear sheet: one verdict, figures that follow from the record, a page that asks nobody for anything."

import math
import re
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.render import external_requests
from tradenb.core.calendar import sessions
from tradenb.market.demo import simulate
from tradenb.models import metrics, performance
from tradenb.portfolio.backtest import Backtest, Plan, backtest
from tradenb.portfolio.costs import Costs
from tradenb.portfolio.market import Market
from tradenb.portfolio.tearsheet import (
    Evidence,
    Judgement,
    Sheet,
    break_even,
    charged_again,
    growth,
    judge,
    rolling_ic,
    sections,
    sentences,
    tearsheet,
    thinned,
)
from tradenb.portfolio.weights import LongShort

DAYS = sessions(date(2020, 1, 2), date(2020, 12, 31))


@pytest.fixture(scope="module")
def predictions() -> pl.DataFrame:
    demo = simulate(symbols=24, start=DAYS[0], end=DAYS[-1])
    known = demo.oracle.join(demo.realised, on=["symbol", "date"], how="left").sort("date", "symbol")
    return known.rename({"expected": "prediction", "realised": "label"})


@pytest.fixture(scope="module")
def book(predictions: pl.DataFrame) -> Backtest:
    demo = simulate(symbols=24, start=DAYS[0], end=DAYS[-1])
    market = Market.from_frames(demo.truth, demo.actions, demo.universe)
    return backtest(
        predictions, market, Plan(LongShort(5, 5), costs=Costs(sell_bps=0.3, half_spread_bps=1, impact=0.5))
    )


@pytest.fixture(scope="module")
def evidence(predictions: pl.DataFrame) -> Evidence:
    ic = metrics.ic(predictions).join(metrics.rank_ic(predictions).drop("names"), on="date")
    spans = {f"{w}_{e}": DAYS[n * 50 + 20 * (e == "end")] for n, w in enumerate(("train", "valid", "test")) for e in ("start", "end")}  # fmt: skip
    folds = pl.DataFrame([{"fold": 1, **spans, **metrics.summary(predictions, 5, 5)}])
    importance = pl.DataFrame({"feature": ["ROC5", "STD20", "A & <B>"], "gain": [0.6, 0.3, 0.1]})
    return Evidence(predictions, ic, folds, importance, importance.rename({"gain": "mean_abs_shap"}))


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        self.ids.add(known.get("id") or "")
        self.targets |= {(known["href"] or "").removeprefix("#")} if tag == "a" else set()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_network_and_its_links_lead_to_its_sections(book: Backtest, evidence: Evidence) -> None:
    html = tearsheet(Sheet(book, evidence, (0.1, 0.5, 1.2), title="Fish & <chips>"))
    page = Page(html)
    assert external_requests(html) == []
    assert "script" not in page.tags
    assert page.targets and page.targets <= page.ids
    assert "Fish & <chips>" in page.text and "A & <B>" in page.text
    assert "default-src 'none'" in html


def test_the_same_sheet_has_the_same_bytes(book: Backtest, evidence: Evidence) -> None:
    assert tearsheet(Sheet(book, evidence)) == tearsheet(Sheet(book, evidence))


def test_no_number_of_the_page_is_written_as_nan(book: Backtest) -> None:
    assert not re.search(r"\bnan\b|\binf\b", Page(tearsheet(Sheet(book))).text, re.IGNORECASE)


def test_ten_years_fit_into_the_page(book: Backtest, evidence: Evidence) -> None:
    days = sessions(date(2010, 1, 4), date(2023, 12, 29))
    rows = np.random.default_rng(1).integers(0, book.daily.height, len(days))
    long = replace(
        book,
        daily=book.daily[rows].with_columns(date=pl.Series(days)),
        benchmarks=book.benchmarks[rows].with_columns(date=pl.Series(days)),
    )
    ic = evidence.ic[np.random.default_rng(2).integers(0, evidence.ic.height, len(days))].with_columns(
        date=pl.Series(days)
    )
    html = tearsheet(Sheet(long, replace(evidence, ic=ic), np.linspace(-1, 2, 200).tolist()))
    assert 100_000 < len(html.encode()) < 600_000


def test_a_short_record_still_makes_a_page(book: Backtest) -> None:
    for height in (2, 5, 40):
        short = replace(book, daily=book.daily.head(height), benchmarks=book.benchmarks.head(height))
        assert "Papers" in tearsheet(Sheet(short))


def test_a_record_without_evidence_has_no_section_on_the_model(book: Backtest, evidence: Evidence) -> None:
    judged = judge(book.returns)
    titles = [[part.title for part in sections(sheet, judged)] for sheet in (Sheet(book), Sheet(book, evidence))]
    assert "Model" not in titles[0] and "Model" in titles[1]


def test_ruin_and_refused_sessions_are_said_beside_the_verdict(book: Backtest) -> None:
    refused = pl.DataFrame({"date": [DAYS[5]], "reason": ["too few symbols: 3"]})
    html = tearsheet(Sheet(replace(book, ruined=DAYS[-1], skipped=refused)))
    said = Page(html).text
    assert f"Nothing was left on the evening of {DAYS[-1]}" in said and "too few symbols: 3" in said
    assert "tn-verdict tn-green" not in html


def returns_of(mean: float, sessions: int = 756, seed: int = 5) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(sessions)
    return 0.01 * ((noise - noise.mean()) / noise.std() + mean)


def test_an_edge_is_called_one_only_when_neither_chance_nor_the_search_explains_it() -> None:
    strong, weak, losing = (judge(returns_of(mean)) for mean in (0.12, 0.03, -0.12))
    assert (strong.verdict, weak.verdict, losing.verdict) == ("green", "amber", "red")
    searched = judge(returns_of(0.12), np.linspace(-2.5, 2.5, 200).tolist())
    assert searched.verdict == "amber"
    assert searched.luck > 1.9 > strong.luck == 0


def test_the_words_say_what_the_verdict_says() -> None:
    said = {judge(returns_of(mean)).verdict: sentences(judge(returns_of(mean)), performance.performance(returns_of(mean)))[0] for mean in (0.12, 0.0, -0.12)}  # fmt: skip
    assert "unlikely to explain" in said["green"]
    assert "indistinguishable from chance" in said["amber"]
    assert "loses money" in said["red"]


@settings(deadline=None, max_examples=20)
@given(st.floats(-0.3, 0.3), st.integers(1, 400))
def test_more_trials_never_make_a_record_better(mean: float, trials: int) -> None:
    returns, tried = returns_of(mean, 200), np.linspace(-2, 2, trials).tolist()
    judged: Judgement = judge(returns, tried, draws=50)
    assert judged.deflated <= judge(returns, draws=50).deflated + 1e-12
    assert judged.trials == trials


def test_costs_charged_once_are_the_record_and_at_break_even_hardly_anything_is_left(book: Backtest) -> None:
    found = charged_again(book, (0.0, 1.0, break_even(book.daily)))
    assert found["sharpe"][1] == pytest.approx(performance.sharpe(book.returns))
    assert abs(found["sharpe"][2]) < 0.1 * found["sharpe"][0]
    assert found["sharpe"].is_sorted(descending=True)


def test_a_free_backtest_breaks_even_nowhere(book: Backtest) -> None:
    free = book.daily.with_columns(pl.col("return").alias("gross_return"))
    assert break_even(free) == math.inf


def test_growth_ends_where_the_equity_does(book: Backtest) -> None:
    assert growth(book)["strategy"][-1] * 1e6 == pytest.approx(book.daily["equity"][-1])


def test_each_point_of_the_rolling_coefficient_knows_its_window_alone(evidence: Evidence) -> None:
    known = rolling_ic(evidence.ic, 60)
    cut = rolling_ic(evidence.ic.filter(pl.col("date") <= known["date"][3]), 60)
    assert cut.equals(known.head(cut.height))
    assert ((known["low"] < known["mean"]) & (known["mean"] < known["high"])).all()


@given(st.integers(1, 5000))
@settings(deadline=None, max_examples=30)
def test_thinning_keeps_the_last_day_and_the_deepest_value(rows: int) -> None:
    values = np.random.default_rng(rows).standard_normal(rows)
    frame = pl.DataFrame(
        {"date": pl.date_range(date(2000, 1, 1), date(2030, 1, 1), "1d", eager=True)[:rows], "x": values}
    )
    few = thinned(frame, lowest=True)
    assert few.height <= 700
    assert few["date"][-1] == frame["date"][-1]
    assert few["x"].min() == frame["x"].min()
    assert few["date"].is_sorted()
