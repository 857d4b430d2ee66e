"Hypothesis strategies for expressions: every operator, every kind of operand, only what is not refused."

from hypothesis import strategies as st

from tradenb.features.expressions import OPERATORS, WINDOWS, Node, refusal, takes_number
from tradenb.features.panel import FIELDS

fields = st.sampled_from(FIELDS).map(lambda f: Node("Field", params=(f,)))
numbers = st.one_of(
    st.integers(-50, 50), st.floats(-1e3, 1e3, allow_nan=False), st.sampled_from([1e-12, 0.0, -0.0, 2.5])
)
constants = numbers.map(lambda x: Node("Constant", params=(x,)))


def calls(operands: st.SearchStrategy[Node], operators: tuple[str, ...]) -> st.SearchStrategy[Node]:
    "One more operator around operands."

    @st.composite
    def call(draw: st.DrawFn) -> Node:
        op = draw(st.sampled_from(operators))
        names = [p for p in OPERATORS[op] if p not in ("N", "qscore")]
        args = tuple(draw(st.one_of(operands, constants) if takes_number(op, p) else operands) for p in names)
        return Node(op, args, draw(parameters(op)))

    return call().filter(lambda n: refusal(n.op, n.args, n.params) is None)


def parameters(op: str) -> st.SearchStrategy[tuple[int | float, ...]]:
    "Windows, and the share of a quantile."
    if op not in WINDOWS:
        return st.just(())
    lowest = -5 if op in ("Ref", "Delta") else 0
    n: st.SearchStrategy[int | float] = st.integers(lowest, 12)
    if op == "EMA":
        n = st.one_of(n, st.floats(0.01, 0.99), st.floats(1, 30))
    return st.tuples(n, st.floats(0, 1)) if op == "Quantile" else n.map(lambda x: (x,))


def nodes(operators: tuple[str, ...] = tuple(OPERATORS), leaves: int = 6) -> st.SearchStrategy[Node]:
    "Expressions of the whole grammar, or of some operators."
    return st.recursive(fields, lambda inner: calls(inner, operators), max_leaves=leaves)
