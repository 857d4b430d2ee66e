"A name's day adds up: contributions to the prediction, from the bars to the order."

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.trading.planned import TRADED, plan_a_run, prepare, settings_at
from tradenb.core.db import connect, default_url, migrate
from tradenb.core.errors import InputError, ModelError
from tradenb.models.regressors import Ridge, Samples
from tradenb.trading.explain import (
    Explanation,
    contributions,
    explain,
    page_file,
    page_of,
    parts_of,
    sentences,
    verdict_of,
)
from tradenb.trading.orchestrator import Sent, keep_refusals, read_plan
from tradenb.trading.run import Run

RUN = f"{TRADED}-alpha158_ls"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory):
    "A run that is planned, and never changed."
    root = tmp_path_factory.mktemp("explain") / "data"
    prepare(root)
    settings = settings_at(root)
    engine = migrate(connect(default_url(root)))
    plan_a_run(engine, settings)
    yield Run(settings, RUN, engine)
    engine.dispose()


@pytest.fixture(scope="module")
def told(planned: Run) -> dict[str, Explanation]:
    "The best name, the worst, one in the middle, and one that is held."
    plan = read_plan(planned.engine, RUN)
    by_rank = {leg.order.rank: leg.order.symbol for leg in plan}
    held = next(leg.order.symbol for leg in plan if leg.order.current_qty)
    names = {"best": by_rank[1], "worst": by_rank[max(by_rank)], "middle": by_rank[12], "held": held}
    return {what: explain(planned.engine, planned.settings, RUN, name, planned.folder) for what, name in names.items()}


def test_the_parts_add_up_to_the_prediction_and_the_plan_says_the_same_again(told) -> None:
    for one in told.values():
        assert one.same
        assert one.features.height == 158
        assert one.expected + one.features["contribution"].sum() == pytest.approx(one.prediction, rel=1e-9, abs=1e-12)
        sizes = one.features["contribution"].abs()
        assert sizes.is_sorted(descending=True)


def test_the_best_name_has_a_larger_prediction_than_the_worst(told) -> None:
    assert told["best"].prediction > told["middle"].prediction > told["worst"].prediction
    assert told["best"].asked == pytest.approx(1 / 3)
    assert told["best"].line.order.target_weight == pytest.approx(0.3)
    assert told["best"].cut
    assert told["middle"].asked == 0


def test_places_among_the_names_are_those_of_the_features(told) -> None:
    one = told["best"]
    day = one.again.inputs
    for feature, value, place in one.features.head(10).select("feature", "value", "percentile").iter_rows():
        column = day.x[:, one.again.model.feature_names.index(feature)].astype(float)
        assert value == column[day.rows[one.symbol]]
        assert np.mean(column < value) <= place <= np.mean(column <= value)


def test_a_linear_model_is_coefficient_times_value() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    y = x @ np.array([0.5, -0.2, 0.0, 0.1, 0.3]) + 0.01 * rng.normal(size=300)
    samples = Samples(x, y, tuple("abcde"))
    fitted = Ridge().fit(samples, samples, 0, 1)

    class Linear:
        name, version, predict = "line", 1, staticmethod(fitted.predict)

        def __init__(self) -> None:
            self.fitted = fitted

    parts, expected, predicted = parts_of(Linear(), x[:20])
    z = (x[:20] - fitted.mean) / fitted.std
    inside = np.abs(z) <= fitted.winsor
    assert np.allclose(parts[inside], ((z - fitted.centre) * fitted.slopes)[inside])
    assert np.allclose(parts.sum(axis=1) + expected, predicted)

    class Boaster(Linear):
        predict = staticmethod(lambda rows: fitted.predict(rows) + 1)

    with pytest.raises(ModelError, match="they explain nothing"):
        parts_of(Boaster(), x[:20])


def test_the_page_is_whole_reads_without_a_network_and_names_what_matters(told, tmp_path: Path) -> None:
    from pipelines.render import external_requests

    for what, one in told.items():
        page = page_of(one)
        assert external_requests(page) == []
        assert page.count("<h2") == 5, what
        assert "<script" not in page
        for text in (one.symbol, "Adjusted close", "knowing nothing", f"of {one.ranked}", "Price it was sized at"):
            assert text in page, (what, text)
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().replace("finance", "")
    assert sentences(told["best"])[0].startswith("Buy ")
    assert "No order" in sentences(told["middle"])[0]
    assert page_file(tmp_path, "BRK/B").name == "explain_BRK_B.html"


def test_an_order_that_the_gateway_did_not_take_says_why(planned: Run, told) -> None:
    best = told["best"]
    keep_refusals(planned.engine, RUN, [Sent(best.line, "failed", "qty 0.5: a cls order is for whole shares")])
    once = explain(planned.engine, planned.settings, RUN, best.symbol, planned.folder)
    keep_refusals(planned.engine, RUN, [Sent(best.line, "accepted", "")])
    assert once.refused == ("qty 0.5: a cls order is for whole shares",)
    assert "The gateway did not take it: qty 0.5: a cls order is for whole shares." in sentences(once)
    assert verdict_of(once) == "amber"
    assert explain(planned.engine, planned.settings, RUN, best.symbol, planned.folder).refused == best.refused == ()


def test_many_names_are_explained_at_once_as_each_by_itself(planned: Run, told) -> None:
    names = [one.symbol for one in told.values()]
    table = contributions(planned, [*names, "NOBODY"], most=4)
    assert table["symbol"].unique(maintain_order=True).to_list() == list(dict.fromkeys(names))
    for one in told.values():
        mine = table.filter(pl.col("symbol") == one.symbol)
        assert mine["contribution"].abs().to_list() == pytest.approx(one.features["contribution"].abs().to_list()[:4])


def test_an_unknown_name_is_refused_with_the_one_that_was_meant(planned: Run, told) -> None:
    symbol = told["best"].symbol
    with pytest.raises(InputError, match=f"has no bar of {symbol.lower()}: did you mean {symbol}"):
        explain(planned.engine, planned.settings, RUN, symbol.lower(), planned.folder)
