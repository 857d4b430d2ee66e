"""The engine on Alpha158: pyqlib's values, the same bits from any cut of the history, and nothing from the future."""

from datetime import timedelta
from fractions import Fraction

import numpy as np
import polars as pl
import pytest

from tradenb.core.errors import InputError
from tradenb.features import engine, sets
from tradenb.features.labels import label, label_expression
from tradenb.features.oracle import adversarial_panel, disagreement, qlib_alpha158, qlib_values, write_store
from tradenb.features.panel import Panel, random_panel

FSET = sets.feature_set("alpha158")
LABELS = [(1, "close"), (5, "close"), (1, "open")]


@pytest.fixture(scope="module")
def panel() -> Panel:
    return adversarial_panel()


@pytest.fixture(scope="module")
def batch(panel: Panel) -> engine.FeatureBlock:
    return engine.compute(panel, FSET)


@pytest.fixture(scope="module")
def qlib(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    "pyqlib's own answer; an infinite correlation is its running sums' rounding over zero: undefined."
    asked = qlib_alpha158() | {label_expression(*at): label_expression(*at) for at in LABELS}
    answer = qlib_values(panel, write_store(panel, tmp_path_factory.mktemp("qlib")), asked)
    corr = np.array([name.startswith("COR") for name in asked])
    answer[corr] = np.where(np.isinf(answer[corr]), np.nan, answer[corr])
    return dict(zip(asked, answer, strict=True))


def last_cells(block: engine.FeatureBlock, n: int) -> bytes:
    return np.ascontiguousarray(block.values[:, :, -n:]).tobytes()


def test_names_and_order_are_those_of_pyqlib() -> None:
    assert tuple(qlib_alpha158()) == FSET.names


def test_every_value_is_that_of_pyqlib_and_missing_where_it_is_missing(
    batch: engine.FeatureBlock, qlib: dict[str, np.ndarray]
) -> None:
    for name in FSET.names:
        found = disagreement(batch.feature(name), qlib[name])
        assert found["missing"] == found["infinite"] == 0, (name, found)
        assert found["relative"] < 1e-5, (name, found)
    every = disagreement(batch.values, np.stack([qlib[n] for n in FSET.names]))
    assert every["bits"] < 1e-4 * every["cells"], every


@pytest.mark.parametrize("at", LABELS)
def test_every_label_is_that_of_pyqlib_bit_for_bit(
    panel: Panel, qlib: dict[str, np.ndarray], at: tuple[int, str]
) -> None:
    np.testing.assert_array_equal(label(panel, *at), qlib[label_expression(*at)])


def test_where_a_misprint_left_the_window_ours_is_the_exact_value(tmp_path) -> None:
    panel = random_panel(1, 120, 4, suspended=0.0)
    panel.fields["close"][0, 60] *= np.float32(1e6)
    asked = {"WVMA5": qlib_alpha158()["WVMA5"]}
    theirs = qlib_values(panel, write_store(panel, tmp_path), asked)[0, 0, -1]
    close, volume = panel.fields["close"][0], panel.fields["volume"][0]
    moved = [Fraction(float(x)) for x in (np.abs(close[1:] / close[:-1] - np.float32(1)) * volume[1:])[-5:]]
    mean = sum(moved) / 5
    exact = float(sum((x - mean) ** 2 for x in moved) / 4) ** 0.5 / float(mean)
    ours = engine.compute(panel, FSET).feature("WVMA5")[0, -1]
    assert abs(ours / exact - 1) < 1e-7 < abs(theirs / exact - 1)


def test_one_day_from_its_tail_is_the_batch_bit_for_bit(panel: Panel, batch: engine.FeatureBlock) -> None:
    for end in range(1, panel.shape[1] + 1):
        day = panel.sessions_between(0, end).tail(FSET.halo + 1)
        alone = engine.compute(day, FSET, start=day.dates[-1])
        assert last_cells(alone, 1) == np.ascontiguousarray(batch.values[:, :, end - 1]).tobytes(), day.dates[-1]


@pytest.mark.parametrize("bars", [1, 700, 5_000, 10**9])
def test_chunks_of_any_size_on_any_threads_give_the_same_bits(
    panel: Panel, batch: engine.FeatureBlock, bars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNK_BARS", dict.fromkeys(engine.CHUNK_BARS, bars))
    for threads in (1, 3):
        assert engine.compute(panel, FSET, threads=threads).values.tobytes() == batch.values.tobytes()


def test_the_future_changes_no_feature_of_the_past(panel: Panel, batch: engine.FeatureBlock) -> None:
    for end in (1, 61, 200, 333, 419):
        past = panel.until(panel.dates[end - 1])
        other = {f: np.concatenate([x[:, :end], x[:, end:] * np.float32(2)], axis=1) for f, x in panel.fields.items()}
        elsewhere = Panel(panel.symbols, panel.dates, other, panel.listed)
        expected = np.ascontiguousarray(batch.values[:, :, :end]).tobytes()
        assert engine.compute(past, FSET).values.tobytes() == expected
        assert np.ascontiguousarray(engine.compute(elsewhere, FSET).values[:, :, :end]).tobytes() == expected


def test_a_symbol_does_not_depend_on_the_others(panel: Panel, batch: engine.FeatureBlock) -> None:
    for i in (0, 9, 14, 31):
        alone = engine.compute(panel.select([panel.symbols[i]]), FSET)
        assert alone.values.tobytes() == np.ascontiguousarray(batch.values[:, i]).tobytes()


def test_start_cuts_the_values_and_not_their_halo(panel: Panel, batch: engine.FeatureBlock) -> None:
    start = panel.dates[100]
    late = engine.compute(panel, FSET, start=start)
    assert late.dates[0] == start and late.listed.shape == late.values.shape[1:] == (40, 320)
    assert last_cells(late, 320) == last_cells(batch, 320)
    sunday = start.item() - timedelta(days=1) if start.item().weekday() == 0 else start.item()
    assert engine.compute(panel, FSET, start=sunday).dates[0] == start
    assert engine.compute(panel, FSET, start=panel.dates[-1] + 1).values.shape == (158, 40, 0)


def test_a_panel_shorter_than_the_halo_has_growing_windows(panel: Panel) -> None:
    first = engine.compute(panel.sessions_between(0, 1), FSET)
    listed = panel.traded[:, 0]
    assert np.isfinite(first.feature("MA60")[listed, 0]).all() and np.isnan(first.feature("ROC5")).all()


def test_matrix_keys_and_frame_name_the_same_rows(panel: Panel, batch: engine.FeatureBlock) -> None:
    rng = np.random.default_rng(3)
    for mask in (None, batch.traded & (rng.random(batch.traded.shape) < 0.3), np.zeros_like(batch.traded)):
        matrix, frame = batch.matrix(mask), batch.frame(mask)
        assert matrix.flags.c_contiguous and matrix.dtype == np.float32 and matrix.shape == (frame.height, 158)
        np.testing.assert_array_equal(matrix, frame.select(FSET.names).to_numpy().reshape(matrix.shape))
        assert frame.select("symbol", "date").equals(batch.keys(mask))
    key = batch.keys().row(1234, named=True)
    i, t = panel.symbols.index(key["symbol"]), panel.position(key["date"])
    np.testing.assert_array_equal(batch.matrix()[1234], batch.values[:, i, t])
    assert batch.frame().schema["date"] == pl.Date


def test_an_unknown_feature_is_refused(batch: engine.FeatureBlock) -> None:
    with pytest.raises(InputError, match="no feature 'KMID3'"):
        batch.feature("KMID3")


@pytest.mark.parametrize("text", ["EMA($close,12)/EMA($close,26)-1", "$close/Max($close,0)", "Mean(EMA($close,5),20)", "Rank($close,0)"])  # fmt: skip
@pytest.mark.parametrize("back", [1, 20, 250])
def test_the_last_sessions_of_a_recursion_over_all_bars_are_those_of_the_batch(text: str, back: int) -> None:
    panel, fset = random_panel(6, 300, 3), sets.FeatureSet.of("long", {"X": text, "Y": "Mean($close,5)"})
    for how in ("auto", "numpy"):
        whole = engine.compute(panel, fset, engine=how)
        late = engine.compute(panel, fset, start=panel.dates[-back], engine=how)
        assert late.values.tobytes() == last_cells(whole, back)
