"""The same bytes, however a value is come by: by either engine, in one go, in pieces, in any order, or evening by evening.

On random expressions over the whole language, and on bars with all the trouble that there is. Hypothesis keeps what failed once in its
database and tries it first.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.features.strategies import batches, expressions
from tradenb.features import engine as module
from tradenb.features import table
from tradenb.features.engine import FeatureBlock, State, compute
from tradenb.features.graph import graph
from tradenb.features.oracle import adversarial_panel
from tradenb.features.panel import Panel
from tradenb.features.program import program
from tradenb.features.sets import FeatureSet

ENGINES = ("numpy", "numba")
ODD = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 3e38, 1e-30], np.float32)
any_sets = settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failure names its expressions: nothing to shrink
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
texts = st.integers(1, 4).flatmap(lambda depth: batches(size=8, depth=depth))


def odd_bars(panel: Panel, seed: int) -> Panel:
    "With infinities, both zeros, and the smallest and largest numbers here and there."
    rng = np.random.default_rng(seed)
    fields = {f: np.where(rng.random(x.shape) < 0.02, rng.choice(ODD, x.shape), x) for f, x in panel.fields.items()}
    return Panel(panel.symbols, panel.dates, {f: np.where(panel.listed, x, np.float32(np.nan)) for f, x in fields.items()}, panel.listed)  # fmt: skip


def motley() -> Panel:
    "Eleven troubled stocks, two of them with odd numbers, over 130 sessions."
    panel = adversarial_panel(44, 130, 3)
    chosen = panel.select([panel.symbols[i] for i in (0, 8, 12, 15, 20, 26, 28, 31, 32, 40, 42)])
    odd = odd_bars(chosen, 5)
    for f, x in chosen.fields.items():
        x[[1, 4]] = odd.fields[f][[1, 4]]
    return chosen


PANEL = motley()


def asked(texts: list[str]) -> FeatureSet:
    return FeatureSet.of("asked", {f"f{i}": text for i, text in enumerate(texts)})


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def different(fset: FeatureSet, one: np.ndarray, other: np.ndarray) -> list[str]:
    "The expressions whose bytes differ."
    return [text for text, a, b in zip(fset.expressions.values(), one, other, strict=True) if bits(a) != bits(b)]


def causal(texts: list[str]) -> list[str]:
    "Those that know no later session: a value that waits for one is another as long as it has not come."
    return [text for text in texts if graph({"x": text}).ahead == 0]


def resumable(texts: list[str]) -> list[str]:
    return [text for text in causal(texts) if program(graph({"x": text})).resumable]


@any_sets
@given(texts=texts)
def test_numpy_and_compiled_code_give_the_same_bytes(texts: list[str]) -> None:
    fset = asked(texts)
    assert (
        different(fset, compute(PANEL, fset, engine="numpy").values, compute(PANEL, fset, engine="numba").values) == []
    )


@pytest.mark.parametrize("engine", ENGINES)
@any_sets
@given(texts=texts, ends=st.lists(st.integers(1, 130), min_size=3, max_size=3))
def test_a_day_from_its_halo_is_the_batch(engine: str, texts: list[str], ends: list[int]) -> None:
    finite = [text for text in causal(texts) if graph({"x": text}).halo is not None]
    assume(finite)
    fset = asked(finite)
    batch = compute(PANEL, fset, engine=engine)
    for end in (*ends, 130):
        day = PANEL.sessions_between(0, end).tail(fset.halo + 1)
        assert (
            different(fset, compute(day, fset, day.dates[-1], engine=engine).values, batch.values[:, :, end - 1 : end])
            == []
        )


def evenings(fset: FeatureSet, begin: int, days: list[int], engines: tuple[str, ...], file: Path) -> FeatureBlock:
    "The last values of a run over the first sessions and then from saved states, with no more bars than needed."
    block, end = compute(PANEL.sessions_between(0, begin), fset, engine=engines[-1]), begin
    halo = program(fset.graph).halo
    for i, more in enumerate(days):
        assert block.state is not None
        block.state.save(file)
        state, end = State.load(file), end + more
        at = PANEL.position(state.date)
        block = compute(
            PANEL.sessions_between(min(at, at + 1 - halo), end), fset, engine=engines[i % len(engines)], state=state
        )
    return block


@pytest.mark.parametrize("engines", [("numpy",), ("numba",), ENGINES], ids="-".join)
@any_sets
@given(texts=texts, days=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_evening_by_evening_from_saved_states_is_the_batch(
    engines: tuple[str, ...], texts: list[str], days: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    able = [text for text in resumable(texts) if program(graph({"x": text})).folds]
    assume(able)
    fset, begin = asked(able), 130 - sum(days)
    p = program(fset.graph)
    assume(p.resumable and p.halo + p.back < begin)
    batch = compute(PANEL, fset)
    last = evenings(fset, begin, days, engines, tmp_path_factory.mktemp("state") / "evening")
    assert different(fset, last.values, batch.values[:, :, 130 - last.values.shape[2] :]) == []


@pytest.mark.parametrize("engine", ENGINES)
@any_sets
@given(texts=texts, bars=st.sampled_from([1, 300, 1_000, 10**9]), threads=st.sampled_from([1, 2, 5]))
def test_chunks_of_any_size_and_order_on_any_threads_are_the_batch(
    engine: str, texts: list[str], bars: int, threads: int
) -> None:
    fset = asked(texts)
    batch, whole = compute(PANEL, fset, engine=engine, threads=1), module.chunks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BARS", dict.fromkeys(module.CHUNK_BARS, bars))
        assert different(fset, compute(PANEL, fset, threads=threads, engine=engine).values, batch.values) == []
        patch.setattr(module, "chunks", lambda *of: whole(*of)[::-1])
        assert different(fset, compute(PANEL, fset, threads=threads, engine=engine).values, batch.values) == []


@any_sets
@given(texts=texts, lanes=st.sampled_from([2, 3, 8, 16]))
def test_any_number_of_symbols_side_by_side_is_the_batch(texts: list[str], lanes: int) -> None:
    fset = asked(texts)
    batch, alone = compute(PANEL, fset, engine="numba", threads=1), table.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BARS", dict.fromkeys(module.CHUNK_BARS, 10**9))
        patch.setattr(table, "run", lambda *of, **_: alone(*of, lanes=lanes))
        assert different(fset, compute(PANEL, fset, engine="numba", threads=1).values, batch.values) == []


@pytest.mark.parametrize("engine", ENGINES)
@any_sets
@given(texts=texts, order=st.permutations(range(len(PANEL.symbols))), n=st.integers(1, len(PANEL.symbols)))
def test_symbols_in_any_order_and_number_are_those_of_the_batch(
    engine: str, texts: list[str], order: list[int], n: int
) -> None:
    fset, rows = asked(texts), order[:n]
    other = Panel(tuple(PANEL.symbols[i] for i in rows), PANEL.dates, {f: x[rows] for f, x in PANEL.fields.items()}, PANEL.listed[rows])  # fmt: skip
    batch = compute(PANEL, fset, engine=engine)
    assert different(fset, compute(other, fset, engine=engine).values, batch.values[:, rows]) == []


@pytest.mark.parametrize("engine", ENGINES)
@any_sets
@given(text=expressions(4), texts=texts)
def test_a_feature_does_not_depend_on_what_else_is_asked_for(engine: str, text: str, texts: list[str]) -> None:
    alone = compute(PANEL, asked([text]), engine=engine).values[0]
    for among in ([text, *texts], [*texts, text]):
        assert bits(compute(PANEL, asked(among), engine=engine).values[among.index(text)]) == bits(alone), text


@pytest.mark.parametrize("engine", ENGINES)
@any_sets
@given(texts=texts, end=st.integers(1, 129))
def test_the_future_changes_no_byte_of_the_past(engine: str, texts: list[str], end: int) -> None:
    known = causal(texts)
    assume(known)
    fset = asked(known)
    past = compute(PANEL.sessions_between(0, end), fset, engine=engine).values
    assert different(fset, past, compute(PANEL, fset, engine=engine).values[:, :, :end]) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_sign_of_a_zero_does_not_depend_on_the_past(engine: str) -> None:
    "Sorted, 0 and −0 stand in any order; the quantile is 0 whichever was there first."
    zeros = np.where(np.random.default_rng(1).random((2, 60)) < 0.5, np.float32(0), np.float32(-0.0))
    panel = Panel(("A", "B"), PANEL.dates[:60], dict.fromkeys(PANEL.fields, zeros), np.ones((2, 60), bool))
    fset = asked(["Quantile($close,7,0)", "Quantile($close,7,0.5)", "Quantile($close,7,0.3)", "Med($close,0)"])
    assert not np.signbit(compute(panel, fset, engine=engine).values).any()


@pytest.mark.parametrize("engine", ENGINES)
@any_sets
@given(texts=texts, first=st.integers(0, 129))
def test_values_from_any_session_on_are_those_of_the_batch(engine: str, texts: list[str], first: int) -> None:
    fset = asked(texts)
    batch, late = (compute(PANEL, fset, start, engine=engine) for start in (None, PANEL.dates[first]))
    assert different(fset, late.values, batch.values[:, :, first:]) == []
    assert (batch.state is None) == (late.state is None)
    if batch.state is not None and late.state is not None:
        np.testing.assert_array_equal(late.state.values, batch.state.values)
