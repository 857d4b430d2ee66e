"""Ours is pyqlib's answer: for its two feature sets, for each operator, for any expression.

Where the two part by more than 1e-5 the exact value, computed in rational numbers from the definition, has to be on our side.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.features.strategies import SHORTEST, batches
from tradenb.core.errors import ExpressionError
from tradenb.features.engine import Engine, compute
from tradenb.features.expressions import parse
from tradenb.features.oracle import (
    ROUNDING,
    adversarial_panel,
    apart,
    error,
    judge,
    qlib_alpha158,
    qlib_alpha360,
    qlib_values,
    truths,
    write_store,
)
from tradenb.features.panel import Panel
from tradenb.features.sets import FeatureSet

Asked = dict[str, str]


def ours(panel: Panel, asked: Asked, engine: Engine = "auto") -> np.ndarray:
    fset = FeatureSet.of("asked", {f"f{i}": text for i, text in enumerate(asked.values())})
    return compute(panel, fset, engine=engine).values


def lost(verdicts: pl.DataFrame) -> list[tuple]:
    "The first cells in which pyqlib is nearer to the exact value."
    return verdicts.filter(pl.col("winner") == "qlib").head(5).rows()


# Qlib's own sets


@pytest.fixture(scope="module")
def hard() -> Panel:
    return adversarial_panel(44, 240)


@pytest.fixture(scope="module")
def hard_store(hard: Panel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(hard, tmp_path_factory.mktemp("hard"))


def test_alpha158_is_pyqlib_s_or_the_exact_value(hard: Panel, hard_store: Path) -> None:
    asked = qlib_alpha158()
    mine, theirs = ours(hard, asked), qlib_values(hard, hard_store, asked)
    assert lost(judge(hard, asked, mine, theirs)) == []
    parted = {name for name, cells in zip(asked, apart(mine, theirs), strict=True) if cells.any()}
    assert {name.rstrip("0123456789") for name in parted} <= {"RSQR", "CORR", "CORD"}
    tame = ~np.isin(np.arange(len(hard.symbols)), (40, 41))  # all but the prices near 100,000
    assert apart(mine[:, tame], theirs[:, tame]).mean() < 1e-5


def test_alpha360_is_pyqlib_s_to_the_bit(hard: Panel, hard_store: Path) -> None:
    asked = qlib_alpha360()
    np.testing.assert_array_equal(ours(hard, asked), qlib_values(hard, hard_store, asked))


# Each operator, on operands of each type, with short, long and growing windows

SERIES = {
    "price": "$close",
    "volume": "$volume",
    "return": "$close/Ref($close,1)",
    "turn": "$volume/Ref($volume,1)",  # infinite after a session without volume
    "rise": "($close>Ref($close,1))",
    "average": "Mean($vwap,3)",
}
PAIRS = (("price", "volume"), ("return", "turn"), ("price", "rise"), ("average", "price"), ("volume", "volume"))
SPANS = (1, 2, 3, 5, 20, 61, 0)
ONE = ("Mean", "Sum", "Std", "Var", "Skew", "Kurt", "Max", "Min", "IdxMax", "IdxMin", "Med", "Mad", "Rank", "Count", "Slope", "Rsquare", "Resi", "WMA", "EMA", "Ref", "Delta")  # fmt: skip
EXTRA = {"EMA": (0.3, 5.5), "Ref": (-1, -5), "Delta": (-1, -5)}

# What pyqlib gives away by running sums: operator → share of the cells below that are off by more than 1e-5, at most, and why.
# An operator that is not here agrees in every cell.
INEXACT = {
    "Std": (2e-4, "what has left the window leaves its rounding in the sum of squares"),
    "Kurt": (5e-4, "fourth powers of prices, summed"),
    "Slope": (0.01, "what once was infinite stays in the sums for ever"),
    "Resi": (0.01, "what once was infinite stays in the sums for ever"),
    "Rsquare": (0.03, "the same, and squares of large prices"),
    "Corr": (0.02, "mean of products minus product of means"),
    "Cov": (0.02, "mean of products minus product of means"),
}


def forms(operator: str) -> Asked:
    "All questions about one operator."
    spans = [n for n in (*SPANS, *EXTRA.get(operator, ())) if n == 0 or n >= SHORTEST.get(operator, n)]
    if operator in ("Corr", "Cov"):
        pairs = itertools.product(PAIRS, (n for n in spans if n))
        return {f"{a} {b} {n}": f"{operator}({SERIES[a]},{SERIES[b]},{n})" for (a, b), n in pairs}
    if operator == "Quantile":
        cells = itertools.product(SERIES, spans, (0, 0.2, 0.5, 0.8, 1))
        return {f"{s} {n} {q}": f"Quantile({SERIES[s]},{n},{q})" for s, n, q in cells}
    takes = [s for s in SERIES if not (s == "rise" and operator in ("Ref", "Delta"))]
    return {f"{s} {n}": f"{operator}({SERIES[s]},{n})" for s, n in itertools.product(takes, spans)}


WINDOWED = (*ONE, "Quantile", "Corr", "Cov")
QUESTIONS = {op: forms(op) for op in WINDOWED}


@pytest.fixture(scope="module")
def motley() -> Panel:
    "Some stocks of each trouble: ties, flat runs, tiny and huge prices, no volume, new listings, strained numbers."
    panel = adversarial_panel(44, 140, 3)
    return panel.select([panel.symbols[i] for i in (0, 8, 12, 15, 18, 20, 22, 26, 28, 31, 32, 36, 40, 43)])


@pytest.fixture(scope="module")
def answers(motley: Panel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    "pyqlib's, all asked at once."
    every = {text: text for questions in QUESTIONS.values() for text in questions.values()}
    values = qlib_values(motley, write_store(motley, tmp_path_factory.mktemp("motley")), every)
    return dict(zip(every, values, strict=True))


@pytest.mark.parametrize("operator", WINDOWED)
def test_an_operator_is_pyqlib_s_or_the_exact_value(
    operator: str, motley: Panel, answers: dict[str, np.ndarray]
) -> None:
    asked = QUESTIONS[operator]
    theirs = np.stack([answers[text] for text in asked.values()])
    mine = ours(motley, asked)
    verdicts = judge(motley, asked, mine, theirs, at_most=None)
    assert lost(verdicts) == []
    assert len(verdicts) <= INEXACT.get(operator, (0.0, ""))[0] * mine.size


@pytest.mark.parametrize("operator", WINDOWED)
def test_an_operator_is_exact_to_32_bits(operator: str, motley: Panel) -> None:
    asked, stocks, rng = QUESTIONS[operator], truths(motley), np.random.default_rng(1)
    mine = ours(motley, asked)
    for name, text in asked.items():
        for i, t in zip(rng.integers(0, len(stocks), 3), rng.integers(60, motley.shape[1], 3), strict=True):
            value, truth = mine[list(asked).index(name), i, t], stocks[i].at(text, int(t))
            off = error(value, truth, ROUNDING * stocks[i].largest)
            assert off == 0 or off <= 2e-7 * abs(truth), (text, motley.symbols[i], t, value, truth)


# Each element-wise operator, on operands of each type

OPERANDS = {
    "price": "$close", "growth": "$volume/Ref($volume,1)", "double": "Max($low,2)", "rise": "($close>Ref($close,1))",
    "whole": "If($open>$close,2,-3)", "int": "2", "zero": "0", "fraction": "0.3", "huge": "1e39",
}  # fmt: skip
ALONE = ("Abs", "Sign", "Log", "Not")
BETWEEN = ("Add", "Sub", "Mul", "Div", "Power", "Greater", "Less", "Gt", "Ge", "Lt", "Le", "Eq", "Ne", "And", "Or")


def is_expression(text: str) -> bool:
    "Not refused: what is, is the language's own test."
    try:
        return bool(parse(text))
    except ExpressionError:
        return False


def test_element_wise_operators_have_the_bits_of_pyqlib_on_operands_of_all_types(motley: Panel, tmp_path: Path) -> None:
    texts = [f"{op}({a})" for op in ALONE for a in OPERANDS.values()]
    texts += [f"{op}({a},{b})" for op in BETWEEN for a, b in itertools.product(OPERANDS.values(), repeat=2)]
    for condition, (a, b) in itertools.product(
        ("rise", "growth", "whole"), itertools.product(OPERANDS.values(), repeat=2)
    ):
        texts.append(f"If({OPERANDS[condition]},{a},{b})")
    asked = {text: text for text in texts if is_expression(text)}
    assert len(asked) > 700
    panel = motley.select(["S0008", "S0020", "S0031"])
    mine, theirs = ours(panel, asked), qlib_values(panel, write_store(panel, tmp_path), asked)
    different = [
        text for text, a, b in zip(asked, mine, theirs, strict=True) if not np.array_equal(a, b, equal_nan=True)
    ]
    assert different == []


# The listing

EARLY = (
    "Mean(Count($close,3),5)", "EMA(Count($volume,2),5)", "Count(Count($close,2),3)", "WMA(Count($close,1),20)", "IdxMin(Count($close,5),10)",
    "Mean(Ref($close,-1),5)", "Rank(Ref($close,-1),2)", "Skew(Ref($low,-5),7)", "Ref(Ref($close,-5),2)", "EMA(Delta($close,-1),3)", "Cov(Ref($close,-1),Ref($open,-2),5)",
    "Sum($close**0,5)", "Mean(Power(1,$close),3)", "Count($close!=$open,5)", "Mean(($close!=$open)*1,5)", "Std(If($close>Ref($close,1),1,0),5)",
    "Sum(Not($close>0),3)", "Max(If($close>0,-1,-2),5)", "Mean(Ref($close,0),3)", "Sum(1-($close>0),0)", "Count($close,0)", "IdxMax(Count($open,3),0)",
    "Min(Rsquare($close,0),10)", "Quantile(Rsquare($open,0),2,1)", "Std(Slope($close,0),5)", "Mean(EMA($close,0),5)", "Max(Rank($close,0),3)", "Corr(Mad($open,0),$close,20)",
)  # fmt: skip


@pytest.mark.parametrize("engine", ["auto", "numpy"])
def test_nothing_from_before_the_listing_enters_a_window(motley: Panel, tmp_path: Path, engine: Engine) -> None:
    asked = {text: text for text in EARLY}
    theirs = qlib_values(motley, write_store(motley, tmp_path), asked)
    assert lost(judge(motley, asked, ours(motley, asked, engine), theirs)) == []


# Any expression


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], pl.DataFrame]:
    "Asks both on a small panel with all troubles, and the judge where they part."
    panel = adversarial_panel(44, 160, 3)
    panel = panel.select([panel.symbols[i] for i in (0, 3, 8, 9, 12, 16, 20, 26, 31, 35, 40, 42)])
    store = write_store(panel, tmp_path_factory.mktemp("few"))

    def verdicts(texts: list[str]) -> pl.DataFrame:
        asked = {text: text for text in texts}
        return judge(panel, asked, ours(panel, asked), qlib_values(panel, store, asked), floor=0.1, at_most=3)

    return verdicts


@settings(
    max_examples=20,
    derandomize=True,  # the same expressions every time: of tens of thousands tried, one was decided by rounding after all
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failure names its expression: nothing to shrink
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(texts=batches())
def test_any_expression_is_pyqlib_s_or_the_exact_value(
    texts: list[str], judged: Callable[[list[str]], pl.DataFrame]
) -> None:
    assert lost(judged(texts)) == []
