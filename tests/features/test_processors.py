"""Processors: Qlib's numbers, the names of one day and no other day, and nothing fitted on what came later."""

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.features import processors
from tradenb.features.engine import FeatureBlock
from tradenb.features.panel import random_panel
from tradenb.features.processors import (
    CSFill,
    CSNeutralise,
    CSRank,
    CSRobustZScore,
    CSWinsorise,
    CSZScore,
    FillForward,
    Fitted,
    MinMaxNorm,
    Peers,
    Pipeline,
    RobustZScoreNorm,
    Scaled,
    Step,
    ZScoreNorm,
    sector_codes,
)

F, S, T = 3, 31, 40
CROSS_SECTIONAL = [
    CSRank(),
    CSRank(qlib=True),
    CSZScore(),
    CSRobustZScore(),
    CSWinsorise(spread=2),
    CSWinsorise(share=0.1),
    CSNeutralise(),
    CSNeutralise(sectors=False, exposures=True),
    CSNeutralise(exposures=True),
    CSFill("median"),
    CSFill("mean"),
    CSFill("zero"),
]
FITTED = [ZScoreNorm(), RobustZScoreNorm(), RobustZScoreNorm(clip=None), MinMaxNorm()]


def name(step: Step) -> str:
    return str(step)


def block_of(seed: int, missing: float = 0.1, ties: bool = False) -> FeatureBlock:
    "Features of heavy tails, some missing, some names absent."
    rng, panel = np.random.default_rng(seed), random_panel(S, T, seed, suspended=0.05)
    values = rng.standard_t(3, (F, S, T))
    values = np.round(values * 3) if ties else values
    values[rng.random(values.shape) < missing] = np.nan
    names = tuple(f"X{i}" for i in range(F))
    return FeatureBlock(names, panel.symbols, panel.dates, values.astype(np.float32), panel.listed, panel.traded)


def peers_of(block: FeatureBlock, seed: int = 1) -> Peers:
    rng, shape = np.random.default_rng(seed), block.traded.shape
    return Peers(block.traded, rng.integers(-1, 4, shape), rng.normal(size=(2, *shape)))


def qlib_frame(block: FeatureBlock) -> pd.DataFrame:
    "Qlib's frame of the rows that traded: (datetime, instrument) × (feature, name)."
    rows = block.frame().to_pandas().rename(columns={"date": "datetime", "symbol": "instrument"})
    rows = rows.set_index(["datetime", "instrument"]).sort_index()
    rows.index = rows.index.set_levels(pd.to_datetime(rows.index.levels[0]), level=0)
    rows.columns = pd.MultiIndex.from_product([["feature"], rows.columns])
    return rows.astype(np.float64)


def asked_of_qlib(step: object, block: FeatureBlock, fit: bool = False) -> np.ndarray:
    frame = qlib_frame(block)
    if fit:
        step.fit(frame)
    answer = step(frame)
    out = np.full(block.values.shape, np.nan)
    t = np.searchsorted(block.dates, answer.index.get_level_values(0).to_numpy().astype("datetime64[D]"))
    s = [block.symbols.index(x) for x in answer.index.get_level_values(1)]
    out[:, s, t] = answer.to_numpy().T
    return out


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (CSRank(qlib=True), ("CSRankNorm", {})),
        (CSZScore(), ("CSZScoreNorm", {"fields_group": "feature"})),
        (CSRobustZScore(), ("CSZScoreNorm", {"fields_group": "feature", "method": "robust"})),
        (CSFill("mean"), ("CSZFillna", {"fields_group": "feature"})),
        (CSFill("zero"), ("Fillna", {})),
    ],
    ids=str,
)
def test_a_cross_sectional_step_gives_the_values_of_qlibs(ours: Step, theirs: tuple[str, dict], ties: bool) -> None:
    from qlib.data.dataset import processor

    block = block_of(5, ties=ties)
    found = Pipeline(ours).apply(block).values
    expected = asked_of_qlib(getattr(processor, theirs[0])(**theirs[1]), block)
    undefined = np.isnan(expected) & np.isfinite(found)  # 0/0 at Qlib's
    assert not undefined.any() or (found[undefined] == 0).all()
    np.testing.assert_allclose(np.where(undefined, np.nan, found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ours", FITTED, ids=str)
def test_a_fitted_step_gives_the_values_of_qlibs(ours: Step) -> None:
    from qlib.data.dataset import processor

    block = block_of(6)
    block.values[2] = 7  # a feature that never moves
    window = {"fit_start_time": str(block.dates[3]), "fit_end_time": str(block.dates[24]), "fields_group": "feature"}
    options = {"clip_outlier": ours.clip is not None} if isinstance(ours, RobustZScoreNorm) else {}
    theirs = asked_of_qlib(getattr(processor, type(ours).__name__)(**window, **options), block, fit=True)
    fitted = Pipeline(ours).fit(block, start=block.dates[3], end=block.dates[24])
    np.testing.assert_allclose(fitted.apply(block).values, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("step", [*CROSS_SECTIONAL, FillForward(3)], ids=str)
def test_one_day_alone_has_the_bits_of_the_whole(step: Step) -> None:
    block = block_of(7)
    peers = peers_of(block)
    whole = step.of(block.values, peers)
    for t in (0, 9, T - 1):
        first = max(0, t - step.halo)
        alone = step.of(block.values[..., first : t + 1], peers.between(first, t + 1))
        assert alone[..., -1].tobytes() == np.ascontiguousarray(whole[..., t]).tobytes()


@pytest.mark.parametrize("step", CROSS_SECTIONAL, ids=str)
def test_a_name_that_is_no_peer_changes_no_bit_of_the_others(step: Step) -> None:
    block = block_of(8)
    peers = peers_of(block)
    absent = np.isin(np.arange(S), [0, 5, 6, 20])
    there = Peers(peers.mask & ~absent[:, None], peers.sectors, peers.exposures)
    without = Peers(peers.mask[~absent], peers.sectors[~absent], peers.exposures[:, ~absent])
    wild = np.where(absent[:, None], np.float32(1e30), block.values)
    assert step.of(wild, there)[:, ~absent].tobytes() == step.of(block.values[:, ~absent], without).tobytes()
    assert np.isnan(step.of(wild, there)[:, absent]).all()


@given(st.integers(0, 999), st.integers(1, 400), st.integers(0, 400))
def test_a_sum_is_the_same_whoever_is_absent_and_however_many_days_are_summed(seed: int, n: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    x, among = rng.normal(size=(1, n, 5)), np.zeros((1, n + more, 5))
    among[:, np.sort(rng.choice(n + more, n, replace=False))] = x
    expected = processors.total(x)
    assert processors.total(among).tobytes() == expected.tobytes()
    for t in range(5):
        assert processors.total(np.ascontiguousarray(among[..., t : t + 1])).item() == expected[0, 0, t]


@pytest.mark.parametrize("cells", [1, 500, 3_000, 10**9])
def test_chunks_of_any_size_give_the_same_bits(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = block_of(9)
    pipeline = Pipeline(CSWinsorise(spread=3), FillForward(2), CSNeutralise(), CSZScore(), FillForward(3), CSFill())
    expected = pipeline.apply(block, peers_of(block)).values.tobytes()
    monkeypatch.setattr(processors, "CHUNK_CELLS", cells)
    assert pipeline.apply(block, peers_of(block)).values.tobytes() == expected


@given(st.integers(0, 999), st.sampled_from([*CROSS_SECTIONAL, FillForward(4)]), st.integers(1, T - 1))
def test_no_later_day_changes_a_processed_value(seed: int, step: Step, cut: int) -> None:
    block = block_of(seed)
    peers, later = peers_of(block), block.values.copy()
    later[..., cut:] = np.random.default_rng(seed).normal(size=later[..., cut:].shape) * 100
    assert step.of(block.values, peers)[..., :cut].tobytes() == step.of(later, peers)[..., :cut].tobytes()


@given(st.integers(0, 999), st.sampled_from(FITTED), st.integers(2, T - 2))
def test_no_day_after_the_training_window_changes_what_is_learnt(seed: int, step: Step, end: int) -> None:
    block = block_of(seed)
    later = replace(block, values=np.where(np.arange(T) > end, block.values * np.float32(9), block.values))
    pipeline = Pipeline(CSWinsorise(share=0.05), step)
    assert pipeline.fit(block, end=block.dates[end]) == pipeline.fit(later, end=block.dates[end])


@given(st.integers(0, 999), st.booleans())
def test_ranks_are_spread_evenly_around_zero(seed: int, ties: bool) -> None:
    block = block_of(seed, ties=ties)
    x, y = np.where(block.traded, block.values, np.nan), Pipeline(CSRank()).apply(block).values
    assert (np.isnan(x) == np.isnan(y)).all()
    with np.errstate(all="ignore"):
        expected = pd.DataFrame(x[0]).rank().to_numpy()
    n = np.isfinite(x[0]).sum(axis=0)
    np.testing.assert_allclose(y[0], ((expected - 0.5) / np.maximum(n, 1) - 0.5) * np.sqrt(12), rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=30))
def test_ranks_of_any_floats_are_those_of_pandas(values: list[float]) -> None:
    x = np.array(values, np.float32).reshape(1, -1, 1)
    found, n = processors.ranks(x)
    np.testing.assert_array_equal(found[0, :, 0], pd.Series(x[0, :, 0]).rank())
    assert n.item() == (~np.isnan(x)).sum()


def test_winsorised_values_lie_within_the_edges_and_the_rest_is_untouched() -> None:
    block = block_of(11)
    block.values[0, 3, :] = np.inf
    for step in (CSWinsorise(spread=2), CSWinsorise(share=0.1)):
        x = np.where(block.traded, block.values, np.nan)
        y = step.of(block.values, Peers(block.traded))
        low, high = step.edges(x)
        inside = (x >= low) & (x <= high)
        np.testing.assert_array_equal(y[inside], x[inside])
        known = ~np.isnan(x)
        assert np.isfinite(y[known]).all() and not np.isnan(y[known]).any()
    frame = pd.DataFrame(np.where(np.isfinite(x[1]), x[1], np.nan))
    np.testing.assert_allclose(high[1, 0], frame.quantile(0.9), rtol=1e-6)


def test_a_day_on_which_most_names_agree_is_not_winsorised() -> None:
    day = np.float32([0, 0, 0, 0, 0, 3, -8]).reshape(1, -1, 1)
    assert CSWinsorise(spread=3).of(day, Peers(np.ones((7, 1), bool))).tobytes() == day.tobytes()


def test_neutral_values_are_the_residuals_of_a_regression_on_dummies_and_exposures() -> None:
    block = block_of(12)
    peers = peers_of(block)
    y = CSNeutralise(exposures=True).of(block.values, peers)
    for f, t in ((0, 0), (1, 17), (2, T - 1)):
        at = peers.mask[:, t] & np.isfinite(block.values[f, :, t])
        sectors = pd.get_dummies(peers.sectors[at, t]).to_numpy(float)
        design = np.column_stack([sectors, peers.exposures[:, at, t].T])
        target = block.values[f, at, t].astype(float)
        expected = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        np.testing.assert_allclose(y[f, at, t], expected, atol=1e-5)
        assert np.isnan(y[f, ~at, t]).all()


def test_an_exposure_given_twice_changes_nothing() -> None:
    block = block_of(13)
    once = peers_of(block)
    twice = replace(once, exposures=np.concatenate([once.exposures, once.exposures[:1]]))
    step = CSNeutralise(sectors=False, exposures=True)
    np.testing.assert_allclose(step.of(block.values, twice), step.of(block.values, once), atol=1e-5)


def test_a_name_alone_in_its_sector_is_zero() -> None:
    day = np.float32([1, 2, 3, 50]).reshape(1, -1, 1)
    out = CSNeutralise().of(day, Peers(np.ones((4, 1), bool), np.array([0, 0, 0, 7])[:, None]))
    assert out.ravel().tolist() == [-1, 0, 1, 0]


def test_a_sector_may_have_any_number_for_a_name() -> None:
    block = block_of(21)
    peers = peers_of(block)
    gics = replace(peers, sectors=np.choose(peers.sectors + 1, [-1, 45102010, 10, 20103010, -7]).astype(np.int64))
    assert CSNeutralise().of(block.values, gics).tobytes() == CSNeutralise().of(block.values, peers).tobytes()


def test_a_name_without_an_exposure_has_no_neutral_value() -> None:
    block = block_of(14, missing=0)
    exposures = np.random.default_rng(2).normal(size=(1, S, T))
    exposures[0, 4] = np.nan
    out = CSNeutralise(sectors=False, exposures=True).of(block.values, Peers(np.ones((S, T), bool), None, exposures))
    assert np.isnan(out[:, 4]).all() and np.isfinite(np.delete(out, 4, axis=1)).all()


def test_filling_forward_takes_the_last_known_value_within_its_limit() -> None:
    block = block_of(15, missing=0.6)
    y = FillForward(2).of(block.values, Peers(np.ones((S, T), bool)))
    expected = np.stack([pd.DataFrame(x.T).ffill(limit=2).to_numpy().T for x in block.values])
    np.testing.assert_array_equal(y, expected)


def test_filling_makes_every_peer_known_on_a_day_with_any_value() -> None:
    block = block_of(16, missing=0.5)
    for how in ("median", "mean", "zero"):
        y = CSFill(how).of(block.values, Peers(block.traded))
        any_known = np.isfinite(np.where(block.traded, block.values, np.nan)).any(axis=1, keepdims=True)
        assert np.isfinite(y[(block.traded & any_known)]).all()


@pytest.mark.parametrize("step", FITTED, ids=str)
def test_a_pipeline_that_learns_is_refused_before_its_fit(step: Step) -> None:
    block = block_of(17)
    with pytest.raises(InputError, match=f"{type(step).__name__} not fitted: call fit"):
        Pipeline(CSRank(), step).apply(block)
    with pytest.raises(InputError, match="was not fitted"):
        step.of(block.values, Peers(block.traded))


def test_each_step_is_fitted_on_what_the_steps_before_it_made() -> None:
    block = block_of(18)
    block.values[0, 0, 0] = 1e6
    fitted = Pipeline(CSWinsorise(spread=3), ZScoreNorm(), MinMaxNorm()).fit(block, end=block.dates[-1])
    x = Pipeline(CSWinsorise(spread=3)).apply(block).values[0]
    z = fitted.steps[1]
    assert isinstance(z, Scaled) and z.centre[0] == pytest.approx(np.nanmean(x), abs=1e-6)
    y = fitted.apply(block).values
    assert np.nanmin(y[0]) == pytest.approx(0, abs=1e-6) and np.nanmax(y[0]) == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 999))
@settings(max_examples=20)
def test_a_fitted_pipeline_comes_back_from_text_bit_for_bit(seed: int) -> None:
    block = block_of(seed)
    steps = [*CROSS_SECTIONAL, FillForward(2), *FITTED]
    fitted = Pipeline(*np.random.default_rng(seed).permutation(np.array(steps, object))[:5]).fit(
        block, end=block.dates[20], peers=peers_of(block)
    )
    again = Fitted.from_json(fitted.to_json())
    assert again == fitted and json.loads(fitted.to_json())["end"] == str(block.dates[20])
    assert again.apply(block, peers_of(block)).values.tobytes() == fitted.apply(block, peers_of(block)).values.tobytes()


def test_a_feature_unknown_in_the_training_window_stays_as_it_is() -> None:
    block = block_of(19)
    block.values[1, :, :20] = np.nan
    fitted = Pipeline(ZScoreNorm()).fit(block, end=block.dates[19])
    out, traded = fitted.apply(block).values[1], block.traded
    np.testing.assert_array_equal(out[traded], block.values[1][traded])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda b: CSWinsorise(), "either spread above 0 or share"),
        (lambda b: CSWinsorise(spread=3, share=0.1), "either spread above 0 or share"),
        (lambda b: CSWinsorise(share=0.5), "between 0 and 0.5"),
        (lambda b: CSFill("backward"), "looks at later sessions leaks"),
        (lambda b: FillForward(-1), "later sessions would leak"),
        (lambda b: Pipeline(CSNeutralise()).apply(b), "got no sectors"),
        (lambda b: Pipeline(CSNeutralise(False, True)).apply(b), "got no exposures"),
        (lambda b: Peers(b.traded, np.zeros((2, 2), int)), "sectors have the shape"),
        (lambda b: Pipeline(ZScoreNorm()).fit(b, end=date(2001, 1, 1)), "nothing to fit on"),
        (lambda b: Pipeline(CSRank()).apply(b, Peers(b.traded[:5])), r"peers of \(symbols, sessions\) = \(5, 40\)"),
        (lambda b: Pipeline(ZScoreNorm()).fit(b, b.dates[9], peers=Peers(b.traded[:5])), r"= \(5, 40\) for values"),
        (lambda b: Fitted.from_json("{}"), "no fitted pipeline in this text"),
        (lambda b: Fitted.from_json('{"steps":[{"step":"CSMagic"}]}'), "unknown step 'CSMagic'"),
        (
            lambda b: Pipeline(ZScoreNorm()).fit(b, end=b.dates[9]).apply(replace(b, names=b.names[::-1])),
            "another order",
        ),
    ],
)
def test_what_cannot_be_processed_is_refused_by_name(ask, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(block_of(20))


def test_sectors_are_those_of_the_day() -> None:
    stays = pl.DataFrame(
        {
            "symbol": ["B", "B", "C", "X"],
            "start": [date(2020, 1, 1), date(2020, 1, 6), date(2020, 1, 3), date(2020, 1, 1)],
            "end": [date(2020, 1, 3), None, date(2020, 1, 6), None],
            "sector": ["Energy", "Materials", None, "Energy"],
        }
    )
    dates = np.array(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"], "datetime64[D]")
    codes, names = sector_codes(stays, ("A", "B", "C"), dates)
    assert names == ("Energy", "Materials")
    assert codes.tolist() == [[-1] * 4, [0, 0, 1, 1], [-1] * 4]
