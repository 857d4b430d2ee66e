"""Programs: what features share is done once, every step covers what is read of it, and one feature's bits are its own."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.features.strategies import batches, expressions
from tradenb.features.graph import graph
from tradenb.features.program import Program, Step, latest, needs, program
from tradenb.features.reference import Columns
from tradenb.features.sets import feature_set
from tradenb.features.table import HEAD, Tables, tables
from tradenb.features.windows import KINDS, rungs

any_sets = settings(
    max_examples=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
texts = st.integers(1, 4).flatmap(lambda depth: batches(size=6, depth=depth))


def planned(*texts: str) -> Program:
    return program(graph({f"f{i}": text for i, text in enumerate(texts)}))


def merges(p: Program, kind: str) -> list[Step]:
    return [s for s in p.steps if s.op == f"merge:{kind}"]


# Sharing


def test_no_step_of_alpha158_is_done_twice() -> None:
    steps = program(feature_set("alpha158").graph).steps
    assert len(set(steps)) == len(steps)


def test_all_windows_of_closes_in_alpha158_stand_on_one_ladder() -> None:
    p = program(feature_set("alpha158").graph)
    close = p.steps.index(Step("field", params=("close",)))
    assert sum(s.op == "lift:spread" and s.inputs == ((close, 0),) for s in p.steps) == 1
    lengths, by_number = rungs(5, 10, 20, 30, 60), {}
    for i, s in enumerate(p.steps):
        if s.op == "lift:trend" and s.inputs == ((close, 0),):
            by_number[i] = 1
        if s.op == "merge:trend" and s.inputs[0][0] in by_number:
            by_number[i] = by_number[s.inputs[0][0]] + by_number[s.inputs[-1][0]]
    assert sorted(by_number.values()) == lengths


def test_a_window_asked_for_by_many_features_is_merged_once() -> None:
    alone, together = planned("Std($close,60)"), planned("Std($close,60)", "Var($close,60)", "Mean($close,60)", "Rsquare($close,60)", "Std($close,30)")  # fmt: skip
    assert len(merges(alone, "spread")) == len(merges(together, "spread")) == len(rungs(60)) - 1
    assert not merges(together, "total")


def test_ranks_of_an_operand_are_one_step_and_quantiles_of_a_window_too() -> None:
    p = planned("Rank($close,5)", "Rank($close,60)", "Rank($close,20)", "Quantile($close,20,0.2)", "Med($close,20)", "Quantile($close,20,0.8)")  # fmt: skip
    found = {s.op: s.params for s in p.steps if s.op in ("ranks", "quantiles")}
    assert found == {"ranks": (5, 20, 60), "quantiles": (0.2, 0.5, 0.8)}
    assert sum(s.op in ("ranks", "quantiles") for s in p.steps) == 2


@any_sets
@given(texts=texts)
def test_a_program_holds_no_step_twice_and_none_that_nobody_reads(texts: list[str]) -> None:
    "But for numbers that are read rounded to 32 bits, and the squares of a covariance; they are computed for no session."
    p = planned(*texts)
    assert len(set(p.steps)) == len(p.steps)
    read = {j for s in p.steps for j, _ in s.inputs} | {root for root, _ in p.roots}
    unread = [i for i in range(len(p.steps)) if i not in read]
    assert (p.need[unread] == -1).all()
    assert {p.steps[i].op for i in unread} <= {"constant", "map:unless_level"}


@any_sets
@given(texts=texts, text=expressions(4))
def test_a_feature_among_others_takes_the_steps_that_it_takes_alone(texts: list[str], text: str) -> None:
    "But for ranks and quantiles, which are counted together, and means, which may be read off a larger state."
    shared = ("total", "spread", "ranks", "quantiles", "mean", "level_mean", "sum_of")
    alone, among = planned(text), planned(text, *texts)
    kinds = {(s.op, s.k, s.params, s.narrow) for s in alone.steps if not any(k in s.op for k in shared)}
    assert kinds <= {(s.op, s.k, s.params, s.narrow) for s in among.steps}


# How far back


@pytest.mark.parametrize("name", ["alpha158", "alpha360"])
def test_a_set_s_program_needs_the_halo_of_its_graph(name: str) -> None:
    g = feature_set(name).graph
    assert program(g).halo == g.halo == {"alpha158": 60, "alpha360": 59}[name]


@any_sets
@given(text=expressions(4))
def test_a_program_needs_as_many_sessions_as_the_graph_says(text: str) -> None:
    g = graph({"x": text})
    p = program(g)
    assert p.recursive == (g.halo is None)
    if g.halo is not None and not g.ahead:
        assert p.halo == g.halo


@any_sets
@given(texts=texts, out=st.integers(0, 80))
def test_no_step_reads_a_column_that_was_not_computed(texts: list[str], out: int) -> None:
    "Compiled code would read whatever lies there."
    p = planned(*texts)
    begin = p.halo
    first = (begin + out) if p.recursive else p.halo
    starts = Columns(first, begin, p.halo + 100).starts(p)
    for i, s in enumerate(p.steps):
        asked = [begin] if s.recursive or s.historic else [starts[i]]
        for (j, _), back in zip(s.inputs, s.reach, strict=True):
            assert all(0 <= starts[j] <= max(at - back, 0) or back < 0 for at in asked), (i, s, j, p.steps[j])
            assert back >= 0 or starts[j] <= starts[i] - back, (i, s, j)


def test_one_day_computes_only_the_rungs_that_it_hangs_from() -> None:
    p = planned("Mean($close,60)")
    need = {s.k: int(n) for s, (n, _) in zip(p.steps, p.need, strict=True) if s.op == "merge:total"}
    assert need[30] == 0  # the window of 60 itself, its newer part 30 long
    assert p.halo == 59


# Recursions


@pytest.mark.parametrize(
    ("text", "halo", "back", "numbers"),
    [
        ("EMA($close,12)", 0, 0, 2),
        ("EMA(Mean($close,5),12)", 4, 0, 2),
        ("Mean(EMA($close,12),5)", 4, 4, 2),
        ("EMA($close,12)/Ref(EMA($close,12),7)", 7, 7, 2),
        ("Mean($close,0)", 0, 0, 2),
        ("EMA(EMA($close,5),5)", 0, 0, 4),
        ("Ref($close,0)", 0, 0, 2),
        ("Max(EMA($close,5),0)-Min($low,0)", 0, 0, 4),
    ],
)
def test_a_recursion_goes_on_from_its_numbers(text: str, halo: int, back: int, numbers: int) -> None:
    p = planned(text)
    assert (p.resumable, p.halo, p.back, len(p.empty)) == (True, halo, back, numbers)


@pytest.mark.parametrize(
    "text",
    ["EMA(Mean(EMA($close,5),3),5)", "EMA(Ref(EMA($close,5),1),5)", "Med($close,0)", "Rank($close,0)", "Mad($close,0)", "EMA($close,0)",
     "EMA(Ref($close,-1),5)", "Max(Delta($close,-3),0)", "EMA(Rank(Ref($close,-1),3),5)"],
)  # fmt: skip
def test_what_no_state_can_stand_for_needs_all_bars(text: str) -> None:
    assert planned(text).recursive and not planned(text).resumable


def test_a_set_without_recursion_is_resumable_with_no_numbers() -> None:
    p = program(feature_set("alpha158").graph)
    assert (p.recursive, p.resumable, p.back, p.folds, len(p.empty)) == (False, True, 0, {}, 0)


@any_sets
@given(texts=texts)
def test_states_of_all_recursions_lie_one_after_the_other(texts: list[str]) -> None:
    p = planned(*texts)
    at = 0
    for i, begin in p.folds.items():
        assert begin == at and len(p.steps[i].params) == p.steps[i].size
        at += p.steps[i].size
    assert len(p.empty) == at


@any_sets
@given(texts=texts)
def test_what_a_program_looks_ahead_is_what_the_graph_does(texts: list[str]) -> None:
    g = graph({f"f{i}": text for i, text in enumerate(texts)})
    p = program(g)
    ahead = max(latest(p.steps)[root] for root, _ in p.roots)
    assert ahead == max(0, *(g.spans[root][1] for root in g.roots))


# Tables


def placed(whole: Tables, p: Program) -> None:
    "Walk the tables: a row is read only while it holds what is asked for."
    for part in whole.parts:
        holds: dict[int, tuple[int, int]] = {}
        for row, i in zip(part.rows, part.steps, strict=True):
            s, family = p.steps[i], part.families[row[0]]
            lines = [] if family == "host" else list(s.inputs)
            if family in ("store", "hand"):
                assert holds[row[HEAD]][0] == i
                continue
            assert [holds[at] for at in row[HEAD : HEAD + len(lines)]] == lines
            places = range(row[2], row[2] + s.size)
            assert max(places) < part.slots
            if s.recursive or s.size > 1:  # written while operands are still read
                assert not set(places) & set(row[HEAD : HEAD + len(lines)].tolist())
            holds |= {at: (i, c) for c, at in enumerate(places)}


@any_sets
@given(texts=texts)
def test_a_table_never_reads_a_place_that_was_given_away(texts: list[str]) -> None:
    p = planned(*texts)
    placed(tables(p), p)


def test_a_program_without_features_needs_nothing() -> None:
    p = program(graph({}))
    assert (p.steps, p.fields, p.halo, p.back, p.recursive) == ((), (), 0, 0, False)


def test_needs_of_nothing_are_nothing() -> None:
    steps = [Step("field", params=("close",)), Step("shift", ((0, 0),), k=3), Step("field", params=("open",))]
    assert needs(steps, [(1, 0)]).tolist() == [[3, -1], [0, -1], [-1, -1]]
    assert np.all([kind.size == len(kind.empty) for kind in KINDS.values()])


def test_a_window_over_all_of_history_is_itself_looked_back_on() -> None:
    "R² over all history is a formula of states, and no statistic that needs all bars every day."
    p = planned("Slope(Rsquare($vwap,0),60)")
    assert not any(s.historic for s in p.steps)
    assert p.halo == p.back == 59
