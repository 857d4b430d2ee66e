"""Leaks: what knew the future is caught, named with its part, and refused; what did not is left alone."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import ExpressionError, InputError
from tradenb.features.engine import FeatureBlock, compute
from tradenb.features.labels import label_expression
from tradenb.features.leaks import LeakReport, changed, cut_days, findings, leak_check, with_other_future
from tradenb.features.panel import Panel, random_panel
from tradenb.features.processors import CSFill, CSRank, FillForward, MinMaxNorm, Pipeline, RobustZScoreNorm, ZScoreNorm
from tradenb.features.sets import FeatureSet, feature_set

PANEL = random_panel(6, 90, seed=2, suspended=0.02)
CLEAN = {"MOM": "$close/Ref($close,20)-1", "CALM": "Std($close/Ref($close,1)-1, 10)"}


def check(expressions: dict[str, str], **how) -> LeakReport:
    return leak_check(PANEL, FeatureSet.of("suspects", expressions), **{"cuts": 3} | how)


@pytest.mark.parametrize("name", ["alpha158", "alpha360"])
def test_qlibs_own_sets_know_nothing_of_the_future(name: str) -> None:
    report = leak_check(random_panel(3, 130, seed=5, suspended=0.05), feature_set(name), cuts=3)
    assert report.clean and report.agree and report.require_clean() is report
    assert repr(report).startswith("LeakReport(no leak: none of the")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Ref($close,-1)", "Ref($close,-1)"),
        ("$close/Ref($open,-20)", "Ref($open,-20)"),
        ("Mean(Ref($volume,-1),5)", "Ref($volume,-1)"),
        ("Ref(Ref($close,-3),1)", "Ref($close,-3)"),
        ("Delta($close,-2)/$close", "Delta($close,-2)"),
        ("Corr($close, Log(Ref($volume,-1)+1), 10)", "Ref($volume,-1)"),
        ("Rank($close-Ref($close,-1), 7)", "Ref($close,-1)"),
        ("EMA(Ref($close,-1), 5)", "Ref($close,-1)"),
        ("If($close>Ref($close,-2), 1, 0)", "Ref($close,-2)"),
        ("Max(Ref($high,-1), 3)-Min(Ref(Ref($low,-1),1), 3)", "Ref($high,-1)"),
    ],
)
def test_a_feature_that_looks_ahead_is_named_with_its_part_and_where_it_showed(text: str, part: str) -> None:
    report = check(CLEAN | {"BAD": text})
    assert report.leaking == ("BAD",) and report.agree and report.static == {"BAD": (part,)}
    (leak,) = report.leaks
    assert (leak.feature, leak.expression, leak.parts) == ("BAD", text, (part,))
    assert leak.day <= leak.cut and leak.symbol in PANEL.symbols
    assert leak.value == leak.value or leak.past == leak.past
    block = compute(PANEL, report.fset)
    at = (PANEL.symbols.index(leak.symbol), PANEL.position(leak.day))
    np.testing.assert_array_equal(np.float32(leak.value), block.feature("BAD")[at])


@pytest.mark.parametrize("text", ["Ref(Ref($close,-1),1)", "Mean(Ref(Ref($close,-5)/$open,5),3)", "EMA($close,3)"])
def test_a_detour_through_the_future_and_a_long_memory_are_no_leaks(text: str) -> None:
    report = check({"FINE": text})
    assert report.clean and report.agree


def test_a_look_ahead_that_only_another_future_shows_is_caught() -> None:
    report = check({"PEEK": "If(Ref($close,-1) > 1.5*$close, 1, 0)"})
    assert report.agree and report.leaks[0].how == "replaced"
    assert (report.leaks[0].past, report.leaks[0].value) in [(0, 1), (1, 0)]


def test_a_look_ahead_that_the_bars_never_show_is_caught_by_the_expression_alone() -> None:
    report = check({"NEVER": "If($close > 0, $open, Ref($close,-1))", "MOM": CLEAN["MOM"]})
    seen = {leak.feature for leak in report.leaks}
    assert report.leaking == ("NEVER",) and not report.clean and report.agree == ("NEVER" in seen)
    quiet = replace(report, leaks=())
    assert quiet.leaking == ("NEVER",) and not quiet.agree and not quiet.clean
    assert findings(quiet).row(0)[:4] == ("NEVER", report.fset.expressions["NEVER"], "Ref($close,-1)", None)
    assert "not in these bars" in quiet._repr_markdown_()
    with pytest.raises(ExpressionError, match="feature NEVER"):
        quiet.require_clean()


WINDOWS = st.sampled_from(["Mean", "Std", "Max", "Min", "Sum"])
SHIFTS = st.integers(-4, 4).filter(bool)


@settings(max_examples=40)
@given(st.lists(st.tuples(WINDOWS, st.integers(2, 9), SHIFTS, SHIFTS), min_size=1, max_size=3))
def test_both_checks_agree_on_any_nest_of_shifts(parts: list[tuple[str, int, int, int]]) -> None:
    text = " + ".join(f"Ref({op}(Ref($close,{a})/$open,{n}),{b})" for op, n, a, b in parts)
    report = leak_check(random_panel(2, 60, seed=1, suspended=0), FeatureSet.of("nest", {"X": text}), cuts=2)
    assert report.agree
    assert report.clean == all(max(-a, 0) <= b for _, _, a, b in parts)


def over_the_whole_sample(step) -> object:
    return lambda block: Pipeline(step).fit(block, end=block.dates[-1]).apply(block)


@pytest.mark.parametrize("step", [ZScoreNorm(), MinMaxNorm(), RobustZScoreNorm(clip=None)], ids=str)
def test_a_scale_fitted_on_the_whole_sample_is_caught_though_no_expression_looks_ahead(step) -> None:
    report = check(CLEAN, then=over_the_whole_sample(step))
    assert set(report.leaking) == set(CLEAN) and report.static == {} and not report.agree
    assert "no part of it" in report._repr_markdown_()
    with pytest.raises(ExpressionError, match=r"feature MOM: S000\d on .* though no part of .* looks ahead"):
        report.require_clean()


def test_processors_of_the_day_and_those_fitted_before_the_cut_are_clean() -> None:
    fset = FeatureSet.of("suspects", CLEAN)
    fitted = Pipeline(FillForward(3), CSRank(), ZScoreNorm(), CSFill()).fit(compute(PANEL, fset), end=PANEL.dates[29])
    assert leak_check(PANEL, fset, cuts=[PANEL.dates[29], PANEL.dates[60]], then=fitted.apply).clean


def backwards(block: FeatureBlock) -> FeatureBlock:
    "The mistake of filling a gap with what came after it."
    values = block.values.copy()
    gap = np.isnan(values[..., :-1])
    values[..., :-1][gap] = values[..., 1:][gap]
    return replace(block, values=values)


def test_filling_backwards_is_caught() -> None:
    assert check(CLEAN, then=backwards, cuts=8).leaking


def test_labels_look_ahead_as_far_as_their_horizon() -> None:
    report = check({"L1": label_expression(), "L5": label_expression(5, "open")})
    assert report.leaking == ("L1", "L5") and report.agree
    assert report.static["L5"] == ("Ref($open,-6)", "Ref($open,-1)")
    assert (PANEL.position(report.leaks[1].cut) - PANEL.position(report.leaks[1].day)) <= 5


@given(st.integers(1, 88), st.integers(0, 99))
def test_the_other_future_leaves_every_bit_of_the_past(known: int, seed: int) -> None:
    other = with_other_future(PANEL, known, np.random.default_rng(seed))
    for name, x in PANEL.fields.items():
        assert (
            np.ascontiguousarray(x[:, :known]).tobytes()
            == np.ascontiguousarray(other.fields[name][:, :known]).tobytes()
        )
    assert (other.listed[:, :known] == PANEL.listed[:, :known]).all() and other.listed[:, known:].all()
    later = changed(PANEL.fields["close"], other.fields["close"])[:, known:]
    assert later[PANEL.traded[:, known:]].mean() > 0.5


def test_missing_is_missing_and_a_zero_has_a_sign() -> None:
    other_nan = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert changed(np.float32([np.nan, 1, 0.0, 2]), np.append(other_nan, np.float32([1, -0.0, np.nan]))).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_the_same_seed_gives_the_same_report() -> None:
    bad = CLEAN | {"PEEK": "If(Ref($close,-1) > 1.5*$close, 1, 0)"}
    assert check(bad, seed=3) == check(bad, seed=3)


def test_cuts_are_sessions_with_one_after_them() -> None:
    assert len(cut_days(PANEL, 5)) == 5 and cut_days(PANEL, 1) == [PANEL.dates[-2].item()]
    assert cut_days(PANEL, 500)[-1] == PANEL.dates[-2].item()
    assert cut_days(PANEL, [PANEL.dates[3]]) == [PANEL.dates[3].item()]
    for cuts in ([PANEL.dates[-1]], [PANEL.dates[0] - 1], [PANEL.dates[0].item() + timedelta(days=9999)]):
        with pytest.raises(InputError, match="expected a day from 2018-01-02"):
            cut_days(PANEL, cuts)
    for panel, n in ((PANEL, 0), (PANEL.tail(1), 3)):
        with pytest.raises(InputError, match="expected at least one cut and two sessions"):
            cut_days(panel, n)


def test_a_cut_between_sessions_is_one_after_the_session_before() -> None:
    friday = next(d for d in PANEL.dates if d.item().weekday() == 4 and d > PANEL.dates[30])
    bad = {"BAD": "Ref($close,-1)"}
    one, other = check(bad, cuts=[friday]).leaks[0], check(bad, cuts=[friday + 1]).leaks[0]
    assert (one.symbol, one.day, one.past) == (other.symbol, other.day, other.past) or np.isnan(one.past)


def test_a_panel_without_bars_has_no_leak_to_show() -> None:
    empty = Panel(PANEL.symbols, PANEL.dates, {f: np.full_like(x, np.nan) for f, x in PANEL.fields.items()}, np.zeros_like(PANEL.listed))  # fmt: skip
    assert leak_check(empty, FeatureSet.of("a", CLEAN), cuts=2).clean
