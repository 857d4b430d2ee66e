"The graph: each part once, operands first, its types and spans true of pyqlib's own series, no bit changed by rewriting."

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL

from tests.features.node_strategies import nodes
from tests.features.qlib_series import BARS, bars, series
from tradenb.core.errors import ExpressionError, InputError
from tradenb.features.expressions import Node
from tradenb.features.graph import Graph, crossings, graph, plain, spread


def qlib_set(loader: type) -> dict[str, str]:
    texts, names = loader.get_feature_config()
    return dict(zip(names, texts, strict=True))


@pytest.fixture(scope="module")
def alpha158() -> Graph:
    return graph(qlib_set(Alpha158DL))


@given(st.lists(nodes(), min_size=1, max_size=4))
@settings(max_examples=150)
def test_every_part_stands_once_and_behind_its_operands(roots: list[Node]) -> None:
    got = graph({f"F{k}": str(n) for k, n in enumerate(roots)})
    assert len(set(got.nodes)) == len(got.nodes)
    assert all(a < i for i, operands in enumerate(got.args) for a in operands)
    assert all(tuple(got.nodes[a] for a in operands) == n.args for n, operands in zip(got.nodes, got.args, strict=True))
    assert got.dtypes == tuple(n.dtype for n in got.nodes)
    assert set(got.below(*got.roots)) == set(range(len(got.nodes)))


@given(nodes())
@settings(max_examples=200)
def test_rewriting_changes_no_bit_of_what_pyqlib_computes(node: Node) -> None:
    rewritten = plain(node, {})
    before, after = series(str(node)), series(str(rewritten))
    assert before.dtype == after.dtype
    assert before.to_numpy().tobytes() == after.to_numpy().tobytes()
    assert plain(rewritten, {}) == rewritten


REWRITTEN = [
    ("Ref(Ref($close,2),3)", "Ref($close,5)"),
    ("Ref(Ref(Ref($close,1),1),1)", "Ref($close,3)"),
    ("Ref(Ref($close,-2),-3)", "Ref($close,-5)"),
    ("Ref(Ref($close,2),-3)", "Ref(Ref($close,2),-3)"),
    ("Ref(Ref($close,0),3)", "Ref(Ref($close,0),3)"),
    ("If($close,1,0)", "If(Ne($close,0),1,0)"),
    ("If($close>1,1,0)", "If(Gt($close,1),1,0)"),
    ("And($close>1,3)", "Ne(And(If(Gt($close,1),1,0),3),0)"),
    ("And($close>1,$open>1)", "And(Gt($close,1),Gt($open,1))"),
    ("$open+$close", "Add($open,$close)"),
]


@pytest.mark.parametrize(("text", "rewritten"), REWRITTEN)
def test_only_what_keeps_every_bit_is_rewritten(text: str, rewritten: str) -> None:
    got = graph({"F": text})
    assert str(got.nodes[got.root("F")]) == rewritten
    assert series(text).to_numpy().tobytes() == series(rewritten).to_numpy().tobytes()


SPANS = [
    ("$close", (0, 0)),
    ("$close*2", (0, 0)),
    ("Ref($close,3)", (-3, -3)),
    ("Ref($close,3)+1", (-3, -3)),
    ("Ref($close,-2)/Ref($close,-1)-1", (1, 2)),
    ("Mean($close,20)", (-19, 0)),
    ("Mean(Ref($close,1),20)", (-20, -1)),
    ("Mean(Mean($close,5),20)", (-23, 0)),
    ("Delta($close,5)", (-5, 0)),
    ("Delta($close,-5)", (0, 5)),
    ("Corr($close,Ref($open,3),10)", (-12, 0)),
    ("If($close>Ref($open,4),Ref($low,1),0)", (-4, 0)),
    ("Ref($close,-1)", (1, 1)),
    ("EMA($close,5)", (None, 0)),
    ("EMA(Ref($close,-2),0.5)", (None, 2)),
    ("Sum($close,0)", (None, 0)),
    ("Ref(Sum($close,0),2)", (None, -2)),
    ("Ref($close,0)", (None, 0)),
    ("Delta($close,0)", (None, 0)),
    ("Quantile($close,1,0.5)", (0, 0)),
]


@pytest.mark.parametrize(("text", "span"), SPANS)
def test_a_span_is_the_first_and_last_session_looked_at(text: str, span: tuple[int | None, int]) -> None:
    got = graph({"F": text})
    assert got.spans[got.root("F")] == span


SMOOTH = ("Add", "Sub", "Mul", "Greater", "Less", "Ref", "Delta", "Mean", "Sum", "Max", "Min", "Med", "WMA", "If", "Gt", "Cov", "EMA")  # fmt: skip


@given(nodes(SMOOTH), st.integers(0, BARS - 1))
@settings(max_examples=200)
def test_bars_outside_the_span_do_not_matter_to_pyqlib(node: Node, at: int) -> None:
    first, last = graph({"F": node}).spans[graph({"F": node}).root("F")]
    inside = range(0 if first is None else at + first, at + last + 1)
    true, false = bars(), bars(seed=9)
    mixed = {f: x.where(pd.Series([t in inside for t in range(BARS)]), false[f]) for f, x in true.items()}
    before, after = series(str(node), true).iloc[at], series(str(node), mixed).iloc[at]
    assert np.isclose(float(before), float(after), rtol=1e-4, atol=1e-3, equal_nan=True)


def test_what_waits_for_tomorrow_looks_ahead_however_old_its_bars() -> None:
    for text, span in [
        ("Ref(Ref($close,5),-1)", (-4, 1)),
        ("Delta(Ref($close,5),-1)", (-5, 1)),
        ("Ref(Ref(Ref($close,5),-1),1)", (-5, 0)),
    ]:
        got = graph({"F": text})
        assert (got.spans[got.root("F")], got.ahead) == (span, max(0, span[1]))
        assert np.isnan(series(text, full_bars()).iloc[-1]) == (got.ahead > 0)


@pytest.mark.parametrize("text", [t for t, span in SPANS if span[0] is not None])
def test_the_ends_of_a_span_do_matter(text: str) -> None:
    first, last = graph({"F": text}).spans[graph({"F": text}).root("F")]
    at, true = BARS - 8, full_bars()
    before = series(text, true).iloc[at]
    for end in (first, last):
        others = [{f: x.mask(x.index == at + end, v) for f, x in true.items()} for v in (np.nan, 1e-3, 1e3)]
        assert any(series(text, other).iloc[at].tobytes() != before.tobytes() for other in others)


def full_bars() -> dict[str, pd.Series]:
    return {f: x.interpolate().bfill().astype(np.float32) for f, x in bars().items()}


def test_alpha158_looks_back_sixty_sessions_and_never_ahead(alpha158: Graph) -> None:
    assert (alpha158.halo, alpha158.ahead) == (60, 0)
    assert len(alpha158.roots) == 158
    assert alpha158.computed < alpha158.written / 2


def test_alpha360_looks_back_fifty_nine_sessions() -> None:
    got = graph(qlib_set(Alpha360DL))
    assert (got.halo, got.ahead, len(got.names)) == (59, 0, 360)


def test_one_expression_over_all_history_makes_the_halo_of_the_graph_unbounded() -> None:
    assert graph({"A": "Mean($close,5)", "B": "Sum($close,0)"}).halo is None


def test_a_label_looks_ahead() -> None:
    got = graph({"LABEL": "Ref($close,-6)/Ref($close,-1)-1"})
    assert (got.halo, got.ahead) == (0, 6)


def test_equal_features_share_one_root_and_a_graph_may_be_empty() -> None:
    got = graph({"A": "$close+1", "B": "Add($close,1)"})
    assert got.roots[0] == got.roots[1]
    assert got.uses[got.roots[0]] == 2
    empty = graph({})
    assert (empty.halo, empty.ahead, empty.nodes, empty.below()) == (0, 0, (), [])


def test_a_graph_without_features_says_so() -> None:
    with pytest.raises(InputError, match="no feature A: the graph holds none"):
        graph({}).root("A")
    for nothing in (graph({}).picture, lambda: graph({"A": "$close"}).picture([])):
        with pytest.raises(InputError, match="has no picture"):
            nothing()


def test_an_error_names_the_feature_and_keeps_its_place() -> None:
    with pytest.raises(ExpressionError, match="feature MINE: unknown operator Meen, in column 7") as caught:
        graph({"GOOD": "$close", "MINE": "$open/ Meen($close,5)".replace(" ", "")})
    assert (caught.value.position, caught.value.suggestion) == (7, "Mean")


def test_own_fields_are_known_when_they_are_named() -> None:
    assert graph({"A": "$mood*2"}, ("mood",)).nodes[0] == Node("Field", params=("mood",))
    with pytest.raises(ExpressionError, match="mood"):
        graph({"A": "$mood*2"})


def test_an_unknown_feature_of_the_graph_is_refused(alpha158: Graph) -> None:
    with pytest.raises(InputError, match="no feature MA7"):
        alpha158.tree("MA7")


def test_graphs_travel_to_other_processes(alpha158: Graph) -> None:
    again = pickle.loads(pickle.dumps(alpha158))
    assert (again.nodes, again.args, again.spans, again.dtypes) == (alpha158.nodes, alpha158.args, alpha158.spans, alpha158.dtypes)  # fmt: skip


def test_the_deepest_expression_that_is_read_becomes_a_graph() -> None:
    text = "$close"
    for _ in range(140):
        text = f"Abs({text})"
    got = graph({"DEEP": text})
    assert len(got.nodes) == 141
    assert got.tree("DEEP").count("\n") == 141
    assert got.written == 140


@given(st.lists(nodes(leaves=4), min_size=1, max_size=3))
@settings(max_examples=30)
def test_every_feature_can_be_drawn(roots: list[Node]) -> None:
    got = graph({f"F{k}": n for k, n in enumerate(roots)})
    for name, root in zip(got.names, got.roots, strict=True):
        lines = got.tree(name).split("\n")
        assert lines[0].startswith(name)
        assert len(lines) >= 1 + len({n for i in got.below(root) if (n := got.nodes[i]).op != "Constant"})
    assert {t.get_text() for t in got.picture().axes[0].texts} >= set(got.names)
    assert got._repr_markdown_().startswith("| graph")


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_spread_keeps_order_and_distance_and_moves_nothing_that_may_stay(wanted: list[float]) -> None:
    got = spread(wanted)
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(got))
    assert np.isclose(sum(got), sum(wanted), atol=1e-6)
    apart = [3.0 * k for k in range(len(wanted))]
    assert spread(apart) == apart


@given(st.permutations(range(7)))
def test_crossings_are_counted_as_pairs_in_reverse_order(ends: list[int]) -> None:
    left, right = [(k, 0) for k in range(7)], [(k, 1) for k in range(7)]
    after = {(k, 0): [(e, 1)] for k, e in enumerate(ends)} | {s: [] for s in right}
    assert crossings([left, right], after) == sum(a > b for a, b in itertools.combinations(ends, 2))
