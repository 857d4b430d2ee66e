"The judge of the features is right itself: by pandas on fresh windows, by pyqlib on tame bars, by hand where both err."

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.features.strategies import batches
from tradenb.core.errors import InputError
from tradenb.features.oracle import (
    DEFINITIONS,
    ROUNDING,
    adversarial_panel,
    apart,
    error,
    exact_value,
    judge,
    qlib_alpha158,
    qlib_alpha360,
    qlib_values,
    truths,
    write_store,
)
from tradenb.features.panel import Panel, random_panel

prices = st.one_of(
    st.floats(1, 1e4, width=32), st.sampled_from([10.0, 10.5, 11.0]), st.just(float("nan")), st.just(float("inf"))
)
windows = st.lists(prices, min_size=1, max_size=40).map(np.array)

PANDAS = {
    "Mean": lambda s: s.mean(), "Sum": lambda s: s.sum(min_count=1), "Var": lambda s: s.var(), "Std": lambda s: s.std(), "Max": lambda s: s.max(),
    "Min": lambda s: s.min(), "Med": lambda s: s.median(), "Mad": lambda s: (s - s.mean()).abs().mean(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@given(windows)
@settings(max_examples=200)
def test_the_exact_value_is_what_pandas_says_of_the_window_alone(window: np.ndarray) -> None:
    finite = pd.Series(np.where(np.isinf(window), np.nan, window))
    for operator, ask in PANDAS.items():
        np.testing.assert_allclose(exact_value(operator, window), ask(finite), rtol=1e-9, atol=1e-9)
    for share in (0.0, 0.2, 1.0):
        np.testing.assert_allclose(exact_value("Quantile", window, share=share), finite.quantile(share), rtol=1e-12)
    ranked = finite.rank(pct=True).iloc[-1]
    np.testing.assert_allclose(exact_value("Rank", window), ranked, rtol=1e-12)


@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=30, unique=True).map(np.array))
@settings(max_examples=100)
def test_moments_trends_and_pairs_are_those_of_numpy(window: np.ndarray) -> None:
    at = np.arange(len(window))
    np.testing.assert_allclose(exact_value("Slope", window), np.polyfit(at, window, 1)[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(exact_value("Rsquare", window), np.corrcoef(at, window)[0, 1] ** 2, atol=1e-9)
    np.testing.assert_allclose(exact_value("Cov", window, at), np.cov(window, at)[0, 1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(exact_value("Corr", window, at), np.corrcoef(window, at)[0, 1], atol=1e-9)
    spread = pd.Series(window)
    if spread.std() > 1e-3:
        np.testing.assert_allclose(exact_value("Skew", window), spread.skew(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(exact_value("Kurt", window), spread.kurt(), rtol=1e-6, atol=1e-9)


def test_there_is_a_definition_for_every_window_but_shifts() -> None:
    from tradenb.features.expressions import WINDOWS

    assert set(DEFINITIONS) == WINDOWS - {"Ref", "Delta"}


def test_small_windows_have_the_values_of_a_hand() -> None:
    nan, inf = float("nan"), float("inf")
    assert exact_value("WMA", [1, 2, 3]) == float(Fraction(1 + 4 + 9, 6) / 3)
    assert exact_value("EMA", [1, nan, 4], span=3) == float(Fraction(1 * 1 + 4 * 4, 5))
    assert exact_value("EMA", [1, 4, nan], span=3) == exact_value("EMA", [1, 4], span=3) == 3.0
    assert exact_value("EMA", [1, 2, 4], span=0) == float(Fraction(1 * 1 + 2 * 2 + 4 * 4, 1 + 2 + 4))
    assert exact_value("Count", [1, nan, inf]) == 2
    assert exact_value("IdxMax", [1, inf, 3]) == 2
    assert exact_value("Kurt", [7, 7, 7, 7]) == -3 and exact_value("Skew", [7, 7, nan, 7]) == 0
    assert exact_value("Resi", [1, 2, 4]) == float(Fraction(4) - (Fraction(7, 3) + Fraction(3, 2)))
    undefined = [("Std", [1.0]), ("Rank", [1, inf]), ("Resi", [1, 2, nan]), ("Slope", [1, inf, 2]), ("Rsquare", [5, 5, 5]), ("Skew", [0, 1e-9, 3e-9])]  # fmt: skip
    assert all(np.isnan(exact_value(operator, window)) for operator, window in undefined)
    assert np.isnan(exact_value("Corr", [1, 2, nan], [3, 3, 4])) and exact_value("Cov", [1, 2, nan], [3, 3, 4]) == 0


@pytest.mark.parametrize("operator", sorted(set(DEFINITIONS) - {"Count"}))
@pytest.mark.parametrize("window", [[], [np.nan], [np.inf, np.nan]])
def test_where_nothing_is_known_nothing_is_defined(operator: str, window: list[float]) -> None:
    pair = [window] if operator in ("Corr", "Cov") else []
    parameters = {"Quantile": {"share": 0.8}, "EMA": {"span": 5}}.get(operator, {})
    assert np.isnan(exact_value(operator, window, *pair, **parameters))
    assert exact_value("Count", window) == sum(not np.isnan(x) for x in window)


def test_a_value_beyond_all_floats_is_infinite() -> None:
    large = [1e200, -1e200, 3e200]
    assert exact_value("Var", large) == exact_value("Cov", large, large) == float("inf")
    assert exact_value("Cov", large, [-x for x in large]) == -float("inf")
    assert np.isfinite(exact_value("Std", large))


def test_an_operator_without_definition_and_a_panel_too_small_are_refused() -> None:
    with pytest.raises(InputError, match="no exact value of Ref"):
        exact_value("Ref", [1.0])
    with pytest.raises(InputError, match="20 symbols"):
        adversarial_panel(20)


def test_a_stock_that_was_never_listed_has_no_values() -> None:
    plain = random_panel(2, 30, seed=5, suspended=0.0)
    listed = plain.listed.copy()
    listed[1] = False
    fields = {f: np.where(listed, x, np.float32(np.nan)) for f, x in plain.fields.items()}
    there, never = truths(Panel(plain.symbols, plain.dates, fields, listed))
    assert there.at("Count($close,5)", 29) == 5
    assert np.isnan([never.at(text, 29) for text in ("Count($close,5)", "$close")]).all()


@pytest.fixture(scope="module")
def tame() -> Panel:
    return random_panel(3, 90, seed=2, suspended=0.05)


@pytest.fixture(scope="module")
def tame_store(tame: Panel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tame, tmp_path_factory.mktemp("tame"))


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(texts=batches(depth=2))
def test_on_tame_bars_the_judge_and_pyqlib_agree(texts: list[str], tame: Panel, tame_store: Path) -> None:
    theirs = qlib_values(tame, tame_store, {text: text for text in texts})
    for text, values in zip(texts, theirs, strict=True):
        for stock, answer in zip(truths(tame), values, strict=True):
            truth = stock.at(text, 85)
            assert not apart(answer[85], np.float32(truth)) or error(answer[85], truth, ROUNDING * stock.largest) < 1e-3


def test_the_judge_finds_the_one_who_is_right(tame: Panel, tame_store: Path) -> None:
    asked = {"mean": "Mean($close,5)", "std": "Std($close,5)"}
    right = qlib_values(tame, tame_store, asked)
    wrong = right.copy()
    wrong[0, 1, 60] *= np.float32(1.001)
    wrong[1, 2, 70] = np.nan
    for mine, theirs, winner in ((right, wrong, "ours"), (wrong, right, "qlib")):
        verdicts = judge(tame, asked, mine, theirs)
        assert verdicts.select("feature", "symbol", "winner").rows() == [("mean", "S0001", winner), ("std", "S0002", winner)]  # fmt: skip
        assert verdicts["date"].to_list() == [tame.dates[60].item(), tame.dates[70].item()]
    assert judge(tame, asked, right, right).schema == pl.Schema(verdicts.schema)


def test_a_strained_panel_has_all_troubles_and_the_plain_one_is_as_before() -> None:
    plain, hard = adversarial_panel(), adversarial_panel(44)
    assert plain.shape == (40, 420) and hard.shape == (44, 420)
    close, volume = hard.fields["close"], hard.fields["volume"]
    assert (np.abs(close[40:42] / 1e5 - 1)[np.isfinite(close[40:42])] < 1e-4).all()
    assert (np.nanmedian(volume[42:44], axis=1) > 1e11).all()


def test_sets_come_from_pyqlib_s_own_configuration() -> None:
    assert len(qlib_alpha158()) == 158 and len(qlib_alpha360()) == 360
    assert qlib_alpha360()["VOLUME0"] == "$volume/($volume+1e-12)"
