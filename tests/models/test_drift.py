"How far today's features are from the training's: an index that is zero for the same, grows with the distance, and survives any column."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradenb.core.errors import InputError
from tradenb.models.drift import BINS, Reference, edges_of, psi, reference, shares_of, stability

columns = st.sampled_from(["normal", "few values", "constant", "missing", "infinite", "huge"])


def column(kind: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    x = {
        "normal": rng.normal(size=rows),
        "few values": rng.integers(0, 3, rows) / 2,
        "constant": np.full(rows, 5.0),
        "missing": np.full(rows, np.nan),
        "infinite": np.where(rng.random(rows) < 0.5, np.inf, rng.normal(size=rows)),
        "huge": rng.normal(size=rows) * 1e30,
    }[kind]
    return x.astype(np.float32)


@given(st.lists(columns, min_size=1, max_size=5), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_columns_have_a_picture_that_text_keeps_to_the_bit(kinds, rows, seed):
    rng = np.random.default_rng(seed)
    x = np.column_stack([column(kind, rows, rng) for kind in kinds])
    known = reference(tuple(f"F{i}" for i in range(len(kinds))), x, rng.normal(size=rows))
    again = Reference.from_json(known.to_json())
    assert (again.edges.tobytes(), again.shares.tobytes()) == (known.edges.tobytes(), known.shares.tobytes())
    assert np.allclose(known.shares.sum(axis=1), 1)


@given(st.lists(columns, min_size=1, max_size=5), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_training_itself_has_not_moved_and_nothing_moves_by_less_than_nothing(kinds, rows, seed):
    rng = np.random.default_rng(seed)
    x, guess = np.column_stack([column(kind, rows, rng) for kind in kinds]), rng.normal(size=rows)
    known = reference(tuple(f"F{i}" for i in range(len(kinds))), x, guess)
    assert psi(known, x, guess)["psi"].to_list() == [0.0] * (len(kinds) + 1)
    other = np.column_stack([column(kind, 50, rng) for kind in reversed(kinds)])
    moved = psi(known, other, rng.normal(size=50))["psi"]
    assert moved.is_finite().all()
    assert moved.min() >= 0


def test_the_order_of_rows_and_their_repetition_change_nothing():
    rng = np.random.default_rng(3)
    known = reference(("A", "B"), rng.normal(size=(500, 2)).astype(np.float32), rng.normal(size=500))
    x, guess = rng.normal(size=(200, 2)).astype(np.float32), rng.normal(size=200)
    shuffled = rng.permutation(200)
    twice = np.repeat(x, 2, axis=0), np.repeat(guess, 2)
    assert psi(known, x, guess).equals(psi(known, x[shuffled], guess[shuffled]))
    assert psi(known, x, guess).equals(psi(known, *twice))


def test_two_distributions_that_touch_differ_by_the_divergence_in_both_directions():
    rng = np.random.default_rng(5)
    then, now = rng.dirichlet(np.ones(BINS) * 5), rng.dirichlet(np.ones(BINS) * 5)
    assert stability(then, now) == pytest.approx(stats.entropy(then, now) + stats.entropy(now, then), rel=1e-9)


def test_a_shift_of_the_mean_is_measured_as_theory_has_it():
    "For two normal distributions a distance d apart the index is near d², a little less for ten bins."
    rng = np.random.default_rng(6)
    then = rng.normal(size=(40_000, 1))
    for distance in (0.2, 0.5, 1.0):
        edges = edges_of(then)
        found = stability(shares_of(then, edges), shares_of(rng.normal(distance, 1, (40_000, 1)), edges))[0]
        assert 0.8 * distance**2 < found < 1.02 * distance**2


def test_what_does_not_fit_is_refused_with_its_shape():
    known = reference(("A", "B"), np.ones((9, 2), np.float32), np.ones(9))
    with pytest.raises(InputError, match=r"\(3, 4\)"):
        psi(known, np.ones((3, 4), np.float32), np.ones(3))
    with pytest.raises(InputError, match="under 3 names"):
        reference(("A", "B", "C"), np.ones((9, 2), np.float32), np.ones(9))
