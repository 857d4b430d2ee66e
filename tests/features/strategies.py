"""Hypothesis strategies for Qlib expressions whose value is well defined in floating point.

Any tree of operators is an expression, but not any one can be compared: where a rounding error of 1e-16 decides a rank, a sign,
a comparison or whether a denominator is zero, two right programs give two answers. So expressions are drawn by how much of
rounding is in them, and an operator that jumps is only put upon what has none.

- exact: the same bits in every right program (fields, 32-bit arithmetic, order statistics, shifts)
- steady: rounded, but equal where the exact values are equal
- level: rounded, but of the size of its operands (averages and sums)
- number: anything continuous, small differences of large numbers too (slopes, residuals, covariances)
- condition: a comparison of exact series
"""

from collections.abc import Callable
from functools import cache

from hypothesis import strategies as st

Text = st.SearchStrategy[str]
PRICES = ("$open", "$high", "$low", "$close", "$vwap")
WINDOWS = (1, 2, 3, 5, 7, 10, 20, 33, 60, 61, 0)
SHORTEST = {"Skew": 3, "Kurt": 4}
JUMPS = ("Rank", "IdxMax", "IdxMin")  # discontinuous: of exact series only
AVERAGES = ("Mean", "Sum", "Med", "Mad", "WMA", "Max", "Min")
MOMENTS = ("Skew", "Kurt")  # 0 and −3 of equal values, undefined of nearly equal ones
STEADY = ("Mean", "Sum", "Med", "Max", "Min")  # averages that are equal where the operand is
SPREADS = ("Std", "Var", "Slope", "Resi", "Med", "Mad", "WMA")

price = st.sampled_from(PRICES)
field = st.sampled_from((*PRICES, "$volume"))
constant = st.sampled_from(("0.5", "2", "3.7", "1", "100", "0"))


def windows(operator: str = "", expanding: bool = True) -> Text:
    "Window lengths that the operator takes."
    return st.sampled_from([str(n) for n in WINDOWS if (n >= SHORTEST.get(operator, 1)) or (n == 0 and expanding)])


def call(operator: str, *arguments: Text) -> Text:
    "`operator` with these arguments."
    return st.tuples(*arguments).map(lambda a: f"{operator}({','.join(a)})")


def calls(operators: tuple[str, ...], *operands: Text) -> Text:
    "One of several window operators of the same operands."
    return st.sampled_from(operators).flatmap(lambda op: call(op, *operands, windows(op)))


def sign(symbol: str, left: Text, right: Text) -> Text:
    "Two operands and a sign between them."
    return st.tuples(left, right).map(lambda p: f"({p[0]}{symbol}{p[1]})")


def signs(symbols: str, left: Text, right: Text) -> Text:
    "One of several signs."
    return st.sampled_from(symbols).flatmap(lambda s: sign(s, left, right))


def deepened(leaf: Text) -> Callable[[Callable[[int], Text]], Callable[[int], Text]]:
    "A strategy for each depth; at depth 0 it is the leaf."

    def wrap(grow: Callable[[int], Text]) -> Callable[[int], Text]:
        @st.composite
        def draw_from(draw: st.DrawFn, strategy: Callable[[], Text]) -> str:
            return draw(strategy())

        def at(depth: int) -> Text:
            return leaf if depth == 0 else draw_from(cache(lambda: st.one_of(leaf, grow(depth - 1))))

        return cache(at)

    return wrap


@deepened(price)
def positive(depth: int) -> Text:
    "Series that are positive wherever they are known: safe denominators."
    below = positive(depth)
    shift = st.sampled_from(("1", "2", "5", "20", "0", "-1"))
    return st.one_of(call("Ref", below, shift), call("Greater", below, price), calls(("Max", "Min"), below))


@deepened(price.map(lambda p: f"({p}>Ref({p},1))"))
def condition(depth: int) -> Text:
    "Comparisons and what is made of them."
    below, compared = condition(depth), exact(depth)
    comparison = st.sampled_from(("<", "<=", ">", ">=", "==", "!=")).flatmap(
        lambda s: sign(s, compared, st.one_of(compared, constant))
    )
    named = st.sampled_from(("Gt", "Ge", "Lt", "Le", "Eq", "Ne")).flatmap(lambda op: call(op, compared, compared))
    return st.one_of(comparison, named, signs("&|", below, below), call("And", below, below), call("Not", below))


@deepened(field)
def exact(depth: int) -> Text:
    "Series without rounding of sums: every right program has these bits."
    below, chosen = exact(depth), condition(depth)
    return st.one_of(
        signs("+-*", below, st.one_of(below, constant)),
        sign("/", below, positive(depth)),
        sign("/", below, sign("+", below, st.just("1e-12"))),
        signs("-/", constant, below),
        st.sampled_from(("Abs", "Sign", "Log")).flatmap(lambda op: call(op, below)),
        sign("**", positive(depth), st.sampled_from(("2", "0.5", "-1", "3"))),
        st.sampled_from(("Greater", "Less")).flatmap(lambda op: call(op, below, below)),
        call("Ref", below, st.sampled_from(("1", "2", "5", "20", "0", "-1", "-5"))),
        call("Delta", below, st.sampled_from(("1", "2", "5", "20", "0", "-1"))),
        calls(("Max", "Min", "Count", *JUMPS), below),
        calls(("Sum", "Count"), chosen),
        call("If", chosen, below, st.one_of(below, constant)),
        sign("*", chosen, below),
        calls(("Max", "Sum"), call("If", chosen, st.just("1"), st.sampled_from(("0", "-2")))),
    )


def average(series: Text) -> Text:
    "Windows whose outcome has the size of the operand."
    spans = st.one_of(windows("EMA"), st.sampled_from(("0.3", "0.05", "5.5")))
    shares = st.sampled_from(("0", "0.2", "0.5", "0.8", "1"))
    return st.one_of(calls(AVERAGES, series), call("EMA", series, spans), call("Quantile", series, windows(), shares))


@deepened(field)
def steady(depth: int) -> Text:
    "Exact series, and averages of them that do not creep."
    return st.one_of(exact(depth), calls(STEADY, exact(depth)), calls(("Mean",), condition(depth)))


@deepened(field)
def level(depth: int) -> Text:
    "Averages of averages, scaled."
    below = level(depth)
    return st.one_of(
        exact(depth),
        average(below),
        calls(("Mean",), condition(depth)),
        sign("*", below, st.sampled_from(("0.5", "3.7"))),
        sign("/", below, positive(depth)),
        call("Ref", below, st.sampled_from(("1", "5", "0", "-1"))),
    )


@deepened(field)
def number(depth: int) -> Text:
    "Anything continuous."
    below, firm = number(depth), level(depth)
    return st.one_of(
        firm,
        average(below),
        *(calls((op,), below) for op in SPREADS),
        *(calls((op,), steady(depth)) for op in (*MOMENTS, "Rsquare")),
        *(calls((op,), exact(depth)) for op in (*JUMPS, "Count")),
        *(call(op, steady(depth), steady(depth), windows(op, expanding=False)) for op in ("Corr", "Cov")),
        signs("+-*", below, st.one_of(exact(depth), constant)),
        sign("/", below, positive(depth)),
        call("If", condition(depth), below, st.one_of(below, constant)),
        call("Log", call("Greater", below, st.just("1"))),
        st.sampled_from(("Ref", "Delta")).flatmap(lambda op: call(op, below, st.sampled_from(("1", "3", "0", "-2")))),
        st.sampled_from(("Greater", "Less", "Add", "Sub")).flatmap(lambda op: call(op, firm, exact(depth))),
    )


def expressions(depth: int = 4) -> Text:
    "Qlib expressions of at most `depth` operators inside each other."
    return number(depth)


@st.composite
def batches(draw: st.DrawFn, size: int = 15, depth: int = 4) -> list[str]:
    "Different expressions to be asked at once."
    return draw(st.lists(expressions(depth), min_size=size, max_size=size, unique=True))
